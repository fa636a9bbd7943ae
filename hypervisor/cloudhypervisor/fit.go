package cloudhypervisor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// version is a release of cloud-hypervisor, e.g. {53, 0}.
type version struct{ major, minor int }

func (v version) String() string { return fmt.Sprintf("v%d.%d", v.major, v.minor) }

func (v version) before(w version) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
}

// What came with which version, of what a plan uses (tried with v53, else by the
// option parsers of the releases).
var (
	oldest       = version{40, 0} // --api-socket fd=, --event-monitor fd=, serial on a terminal; its events of a reboot
	hasRules     = version{41, 0} // --landlock
	locksDisks   = version{46, 0}
	resizesDisks = version{50, 0} // vm.resize-disk
	namesType    = version{50, 2} // image_type=, backing_files=
	hasSparse    = version{51, 0} // sparse=; quotes that hold any text
	hidesCards   = version{52, 0} // a card need not be found by its name, which the sandbox hides
	resizesAny   = version{52, 0} // vm.resize-disk also of a disk that is not read by io_uring
	leavesTPM    = version{53, 0} // a guest that reboots: its connection to the TPM is closed, and so taken anew
)

// landlockABI is the interface of the kernel that --landlock needs: Linux 6.2.
const landlockABI = 3

var _ hypervisor.Fitter = CloudHypervisor{}

// Release implements [hypervisor.Fitter].
func (CloudHypervisor) Release(ctx context.Context, binary string) (string, error) {
	release, _, err := Version(ctx, binary)
	return release, err
}

// Fit implements [hypervisor.Fitter].
func (CloudHypervisor) Fit(argv []string, release string) (fitted []string, notes []config.Problem, err error) {
	v, err := parseVersion(release)
	if err != nil {
		return nil, nil, fmt.Errorf("%s --version: %w", argv[0], err)
	}
	return fit(argv, v, landlock() >= landlockABI)
}

// versionTime is for a program to tell its version.
const versionTime = 10 * time.Second

// Version asks a program for its version, e.g. "v53.0", and what it was built with,
// e.g. "io_uring" and "kvm".
func Version(ctx context.Context, binary string) (version string, features []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, versionTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "-v", "--version").Output()
	if err != nil {
		return "", nil, fmt.Errorf("%s --version: %w", binary, err)
	}
	lines := strings.Split(string(out), "\n")
	words := strings.Fields(lines[0]) // "cloud-hypervisor v53.0"
	if len(words) < 2 {
		return "", nil, fmt.Errorf("%s --version: want \"cloud-hypervisor VERSION\", got %q", binary, lines[0])
	}
	for _, line := range lines {
		if list, ok := strings.CutPrefix(line, "Enabled features: "); ok && json.Unmarshal([]byte(list), &features) != nil {
			features = nil // in another notation, by another version
		}
	}
	return words[1], features, nil
}

// Lacks says for people what a version cannot do that others can, as the end of a
// sentence, "" for nothing.
func Lacks(text string) string {
	v, err := parseVersion(text)
	switch {
	case err != nil:
		return "is not known"
	case v.before(oldest):
		return fmt.Sprintf("is too old: %v or newer is needed", oldest)
	case v.before(locksDisks):
		return fmt.Sprintf("has neither disks that are written to, which need %v, nor cards, which need %v", locksDisks, hidesCards)
	case v.before(hidesCards):
		return fmt.Sprintf("has no cards but vhost-user ones: %v or newer is needed", hidesCards)
	}
	return ""
}

var versionNumber = regexp.MustCompile(`^v?(\d{1,4})\.(\d{1,4})\b`)

// parseVersion reads "v53.0", or "v53.0-12-gabcdef" of who builds it.
func parseVersion(s string) (version, error) {
	m := versionNumber.FindStringSubmatch(s)
	if m == nil {
		return version{}, fmt.Errorf("want a version such as v53.0, got %q", s)
	}
	major, err := strconv.Atoi(m[1])
	minor, err2 := strconv.Atoi(m[2])
	return version{major, minor}, errors.Join(err, err2)
}

// landlock is the version of the kernel's interface to Landlock, 0 where there is
// none, or the sandbox has no use of it.
func landlock() int {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(abi)
}

// fit is argv, which a plan has, as version v takes it; rules says whether the
// kernel has what --landlock needs. It is pure.
func fit(argv []string, v version, rules bool) (fitted []string, notes []config.Problem, err error) {
	if v.before(oldest) {
		return nil, nil, hypervisor.Unfit{problem("hypervisor", "cloud-hypervisor %v is too old: want %v or newer", v, oldest)}
	}
	unfit := fitQuotes(argv, v)
	fitted = slices.Clone(argv)
	at := slices.Index(fitted, "--landlock")
	confined := at >= 0 && rules && !v.before(hasRules)
	if at >= 0 && !confined {
		fitted = slices.Delete(fitted, at, at+1)
		if rules := slices.Index(fitted, "--landlock-rules"); rules >= 0 {
			fitted = slices.Delete(fitted, rules, rules+2)
		}
		why := "the kernel or the sandbox has no Landlock of version 3 (Linux 6.2)"
		if rules {
			why = fmt.Sprintf("cloud-hypervisor %v has none", v)
		}
		notes = append(notes, problem("", "cloud-hypervisor does not confine itself by Landlock: %s", why))
	}
	if v.before(leavesTPM) && values(fitted, "--tpm") != nil {
		notes = append(notes, problem("tpm.enabled", "cloud-hypervisor %v ends where a guest with a TPM reboots, and only lifecycle.restart has the machine go on: want %v or newer", v, leavesTPM))
	}
	fitted = mapValues(fitted, "--disk", func(disk string) string {
		disk, refused := fitDisk(disk, v, confined)
		unfit = append(unfit, refused...)
		return disk
	})
	for _, card := range values(fitted, "--net") {
		if _, ok := option(card, "fd"); ok && v.before(hidesCards) {
			id, _ := option(card, "id")
			unfit = append(unfit, problem(keyOf(id), "cloud-hypervisor %v finds the interfaces of cards by their names, which the sandbox hides: want %v or newer", v, hidesCards))
		}
	}
	if len(unfit) > 0 {
		return nil, nil, unfit
	}
	return fitted, notes, nil
}

// problem is one of a key; of which file and line, whoever has the definition knows.
func problem(key, format string, args ...any) config.Problem {
	return config.Problem{Key: key, Text: fmt.Sprintf(format, args...)}
}

// fitDisk is the value of one --disk. confined says that the disk cannot make
// cloud-hypervisor read any other file.
func fitDisk(disk string, v version, confined bool) (string, hypervisor.Unfit) {
	id, _ := option(disk, "id")
	refuse := func(format string, args ...any) (string, hypervisor.Unfit) {
		return disk, hypervisor.Unfit{problem(keyOf(id), "cloud-hypervisor %v %s", v, fmt.Sprintf(format, args...))}
	}
	_, readonly := option(disk, "readonly")
	if v.before(locksDisks) && !readonly {
		return refuse("does not lock the disks that it writes to, so that two machines could destroy one: want %v or newer", locksDisks)
	}
	if v.before(namesType) {
		// It looks what a disk begins with, which its guest has written: the
		// name of another file of the host, as the original of an image.
		if format, _ := option(disk, "image_type"); format != "raw" {
			return refuse("reads the files that an image names: want %v or newer", namesType)
		} else if !confined && id != "seed" {
			return refuse("guesses the format of a disk by what its guest has written to it: want %v or newer, or a kernel with Landlock (Linux 6.2)", namesType)
		}
		disk = without(disk, "image_type", "backing_files")
	}
	if v.before(hasSparse) {
		disk = without(disk, "sparse")
	}
	return disk, nil
}

// fitQuotes refuses text that older versions cannot be told.
func fitQuotes(argv []string, v version) (unfit hypervisor.Unfit) {
	if !v.before(hasSparse) {
		return nil
	}
	for _, name := range []string{"--disk", "--net", "--vsock", "--fs", "--tpm", "--landlock-rules"} {
		for _, value := range values(argv, name) {
			for _, key := range []string{"path", "socket", "serial", "tag"} {
				if t, ok := option(value, key); ok && (t != strings.TrimSpace(t) || strings.ContainsAny(t, `"[]`)) {
					id, _ := option(value, "id")
					unfit = append(unfit, problem(keyOf(id), "cloud-hypervisor %v cannot be told %q: want no quotes, brackets or outer spaces in it, or %v or newer", v, t, hasSparse))
				}
			}
		}
	}
	return unfit
}

// keyOf is the key in the definition of a device, or of that it has an identifier
// of no name, e.g. "vsock"; "hypervisor" of what has none.
func keyOf(id string) string {
	if kind, name, ok := strings.Cut(id, "-"); ok {
		return kind + "." + name
	}
	return cmp.Or(id, "hypervisor")
}

package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Img is qemu-img. It is given each file as an open descriptor and each format by
// name, so that it neither guesses a format nor follows what an image names.
// When this process ends, however it ends, so does qemu-img.
type Img struct {
	Program string
	// UID and GID are who runs it: an image is written with no more rights than
	// its owner has. 0 is the caller.
	UID, GID int
	// Bare takes from it what root may beyond what the owner of a file may: for
	// images that a guest's hypervisor has written, whose every table may be
	// made to harm whoever reads it.
	Bare bool
	// Locks are files that it holds open while it runs: where this process is
	// killed, it ends a moment later.
	Locks []*os.File
}

// Progress is told how much of a work is done, from 0 to 1.
type Progress func(done float64)

// node is a node of QEMU's block graph, in the notation of its file names.
type node struct {
	Driver   string `json:"driver"`
	Filename string `json:"filename,omitempty"`
	File     *node  `json:"file,omitempty"`
	// Backing is null where there is none: it is never what the header says.
	Backing json.RawMessage `json:"backing,omitempty"`
}

// source describes a chain whose files are descriptors from first on.
func (c Chain) source(first int) (string, error) {
	backing := json.RawMessage("null")
	for i := len(c) - 1; i >= 0; i-- {
		n := node{Driver: c[i].Format, File: &node{Driver: "file", Filename: descriptor(first + i)}}
		s, err := c[i].File.Stat()
		if err != nil {
			return "", err
		}
		if s.Mode()&os.ModeDevice != 0 {
			n.File.Driver = "host_device"
		}
		if c[i].Format == QCOW2 {
			n.Backing = backing
		}
		if backing, err = json.Marshal(n); err != nil {
			return "", err
		}
	}
	return "json:" + string(backing), nil
}

// files are the chain's.
func (c Chain) files() []*os.File {
	var files []*os.File
	for _, l := range c {
		files = append(files, l.File)
	}
	return files
}

// firstDescriptor is the number of the first file that a child is given.
const firstDescriptor = 3

// descriptor is the path of an open file, which leads to that file whatever lies
// at its name by now.
func descriptor(n int) string { return "/proc/self/fd/" + strconv.Itoa(n) }

// Create makes an image in an empty file. What it stands on, by the name that is
// written into it, is not looked at: size is in bytes and never 0.
func (i Img) Create(ctx context.Context, out *os.File, format string, size int64, backing, backingFormat string) error {
	args := []string{"create", "-q", "-f", format}
	args = append(args, creation(format)...)
	if backing != "" {
		args = append(args, "-u", "-b", backing, "-F", backingFormat)
	}
	_, err := i.run(ctx, nil, []*os.File{out}, append(args, descriptor(firstDescriptor), strconv.FormatInt(size, 10))...)
	return err
}

// creation are the options by which an image of a format has the size that is
// asked for: a VPC image has that of a drive's geometry otherwise.
func creation(format string) []string {
	if format == "vpc" {
		return []string{"-o", "force_size=on"}
	}
	return nil
}

// Resize grows an image in place.
func (i Img) Resize(ctx context.Context, c Chain, size int64) error {
	source, err := c.source(firstDescriptor)
	if err != nil {
		return err
	}
	_, err = i.run(ctx, nil, c.files(), "resize", "-q", source, strconv.FormatInt(size, 10))
	return err
}

// Conversion says what [Img.Convert] makes.
type Conversion struct {
	Format   string
	Compress bool // qcow2 only
	Bitmaps  bool // the dirty bitmaps too, where the image has some: from qcow2 to qcow2
}

// Convert writes all that a chain holds into an empty file.
func (i Img) Convert(ctx context.Context, c Chain, out *os.File, to Conversion, progress Progress) error {
	source, err := c.source(firstDescriptor)
	if err != nil {
		return err
	}
	args := append([]string{"convert", "-p", "-O", to.Format}, creation(to.Format)...)
	if to.Compress {
		args = append(args, "-c")
	}
	if to.Bitmaps {
		args = append(args, "--bitmaps")
	}
	files := append(c.files(), out)
	_, err = i.run(ctx, progress, files, append(args, source, descriptor(firstDescriptor+len(c)))...)
	return err
}

// Rebase makes an image stand on another file, by the name that is written into
// it. With content, what would change is written into the image; without,
// nothing is looked at.
func (i Img) Rebase(ctx context.Context, c Chain, backing, backingFormat string, content bool, progress Progress) error {
	args := []string{"rebase", "-p"}
	if !content {
		args = append(args, "-u")
		c = c[:1]
	}
	source, err := c.source(firstDescriptor)
	if err != nil {
		return err
	}
	_, err = i.run(ctx, progress, c.files(), append(args, "-b", backing, "-F", backingFormat, source)...)
	return err
}

// Measure is how many bytes a file needs that holds all that a chain does, as
// qcow2; as raw it needs hardly less.
func (i Img) Measure(ctx context.Context, c Chain) (int64, error) {
	source, err := c.source(firstDescriptor)
	if err != nil {
		return 0, err
	}
	out, err := i.run(ctx, nil, c.files(), "measure", "-O", QCOW2, "--output=json", source)
	if err != nil {
		return 0, err
	}
	var m struct {
		Required int64 `json:"required"`
	}
	return m.Required, decode(out, &m)
}

// Info is what qemu-img tells of an image, those below it left out.
type Info struct {
	VirtualSize int64 // bytes
	Snapshots   []Snapshot
	Bitmaps     []Bitmap
}

// Snapshot is one that an image itself holds.
type Snapshot struct {
	Name        string    `json:"name"`
	ID          string    `json:"id"`
	Created     time.Time `json:"created_at"`
	MemoryBytes int64     `json:"memory_bytes"` // of the machine's state; 0 for one of the disk alone
}

// Bitmap keeps in mind what was written since a backup.
type Bitmap struct {
	Name        string   `json:"name"`
	Granularity int64    `json:"granularity_bytes"`
	Flags       []string `json:"flags"`
}

// infoTime is how long a look may take: an image can be made so that it takes
// for ever.
const infoTime = 30 * time.Second

// Info looks into an image, also into one that is in use.
func (i Img) Info(ctx context.Context, l Layer) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, infoTime)
	defer cancel()
	source, err := Chain{l}.source(firstDescriptor)
	if err != nil {
		return Info{}, err
	}
	out, err := i.run(ctx, nil, []*os.File{l.File}, "info", "-U", "--output=json", source)
	if err != nil {
		return Info{}, err
	}
	return parseInfo(out)
}

func parseInfo(out []byte) (Info, error) {
	var raw struct {
		Size      int64 `json:"virtual-size"`
		Snapshots []struct {
			ID     string `json:"id"`
			Name   string `json:"name"`
			Memory int64  `json:"vm-state-size"`
			Date   int64  `json:"date-sec"`
		} `json:"snapshots"`
		Specific struct {
			Data struct {
				Bitmaps []Bitmap `json:"bitmaps"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := decode(out, &raw); err != nil {
		return Info{}, err
	}
	info := Info{VirtualSize: raw.Size, Bitmaps: raw.Specific.Data.Bitmaps}
	for _, s := range raw.Snapshots {
		info.Snapshots = append(info.Snapshots, Snapshot{s.Name, s.ID, time.Unix(s.Date, 0), s.Memory})
	}
	return info, nil
}

func decode(out []byte, v any) error {
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("what qemu-img says: %w", err)
	}
	return nil
}

// Check says what is wrong with the tables of an image, those below it left out.
// Space that is lost is not.
func (i Img) Check(ctx context.Context, l Layer) error {
	source, err := Chain{l}.source(firstDescriptor)
	if err != nil {
		return err
	}
	const leaks = 3 // exit status
	_, err = i.run(ctx, nil, []*os.File{l.File}, "check", "-q", source)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == leaks {
		return nil
	}
	return err
}

// run runs qemu-img with files as descriptors; the error is its own first line,
// with their names.
func (i Img) run(ctx context.Context, progress Progress, files []*os.File, args ...string) ([]byte, error) {
	if i.Program == "" {
		return nil, errors.New("this is done by qemu-img, which is not installed (Debian: qemu-utils)")
	}
	cmd := exec.CommandContext(ctx, i.Program, args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	cmd.ExtraFiles = slices.Concat(files, i.Locks)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if i.UID != 0 && i.UID != os.Getuid() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(i.UID), Gid: uint32(i.GID)}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if progress != nil {
		cmd.Stdout = &meter{progress: progress}
	}
	err := i.exec(cmd)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err == nil {
		return stdout.Bytes(), nil
	}
	for line := range strings.Lines(stderr.String()) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "qemu-img: ")
		if line != "" && !strings.Contains(line, "Error when deleting file") {
			return nil, &failure{named(line, files), err}
		}
	}
	return nil, err
}

// exec runs qemu-img to its end. The signal at the end of its parent comes at
// that of the thread that has started it.
func (i Img) exec(cmd *exec.Cmd) error {
	if !i.Bare {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		return cmd.Run()
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked, the thread ends with this: what it has given up it
		// cannot get back.
		runtime.LockOSThread()
		if err := giveUpPrivileges(); err != nil {
			done <- err
			return
		}
		done <- cmd.Run()
	}()
	return <-done
}

// giveUpPrivileges keeps what this thread executes from having any capability,
// root or not, now and ever.
func giveUpPrivileges() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	for c := uintptr(0); ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		switch {
		case err == unix.EINVAL: // there are no more
			return nil
		case err == unix.EPERM: // of others than root
			return nil
		case err != nil:
			return fmt.Errorf("give up capability %d: %w", c, err)
		}
	}
}

// failure is what qemu-img says of its end.
type failure struct {
	text string
	exit error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.exit }

// named is a message with the names of files for their descriptors.
func named(message string, files []*os.File) string {
	for n := len(files) - 1; n >= 0; n-- {
		message = strings.ReplaceAll(message, descriptor(firstDescriptor+n), files[n].Name())
	}
	return message
}

// meter reads the lines "(12.34/100%)" of qemu-img -p, each of which ends with a
// carriage return.
type meter struct {
	progress Progress
	line     []byte
}

func (m *meter) Write(p []byte) (int, error) {
	for _, b := range p {
		if b != '\r' && b != '\n' {
			m.line = append(m.line, b)
			continue
		}
		if percent, ok := parsePercent(string(m.line)); ok {
			m.progress(percent / 100)
		}
		m.line = m.line[:0]
	}
	return len(p), nil
}

func parsePercent(line string) (float64, bool) {
	text, ok := strings.CutSuffix(strings.TrimSpace(line), "/100%)")
	if !ok {
		return 0, false
	}
	percent, err := strconv.ParseFloat(strings.TrimPrefix(text, "("), 64)
	return percent, err == nil
}

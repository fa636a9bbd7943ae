package throwaway

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/netsetup"
)

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// files are all below a root.
func files(t *testing.T, root string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			all = append(all, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func left(paths config.Paths) []string {
	var names []string
	Left(paths, func(vm string) { names = append(names, vm) })
	return names
}

// nobody is no other machine.
type nobody struct{}

func (nobody) Runs(_, _ string) bool { return false }
func (nobody) Has(_, _ string) bool  { return false }
func (nobody) Fixed(netip.Addr) bool { return false }

func TestRemove(t *testing.T) {
	paths := config.SystemPaths(t.TempDir())
	release, err := Reserve(paths, "job")
	if err != nil {
		t.Fatal(err)
	}
	if got := left(paths); got != nil {
		t.Errorf("left while it is being made: %q", got)
	}
	if _, err := Reserve(paths, "job"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("reserved twice: %v", err)
	}
	definition := config.Definition(paths.VMDirs[0], "job")
	for _, path := range []string{definition, definition + ".d/10-x.toml", paths.VMDirs[0] + "/.job.toml.123", paths.Generated("job") + "/50-vmctl.conf",
		paths.Disk("job", "root", "qcow2"), paths.Snapshots("job") + "/one/disk-root.qcow2", paths.Exit("job")} {
		write(t, path)
	}
	kept := []string{config.Definition(paths.VMDirs[0], "job2"), config.Definition(paths.VMDirs[1], "other"), paths.Disk("job2", "root", "qcow2"), "/srv/given.img"}
	for i, path := range kept {
		if !strings.HasPrefix(path, paths.Root) {
			path = paths.Root + path
		}
		write(t, path)
		kept[i] = strings.TrimPrefix(path, paths.Root)
	}
	// Which another machine can have then.
	network, card := &config.Network{Name: "lan", Subnet: "192.168.100.0/29", DHCPRange: "192.168.100.2-192.168.100.2", DHCP: true}, config.NIC{Name: "lan", Network: "lan"}
	addresses := netsetup.AddressesOf(paths, "lan")
	if _, err := addresses.Take(network, &config.Machine{Name: "job"}, card, nobody{}); err != nil {
		t.Fatal(err)
	}
	release()
	if got := left(paths); !slices.Equal(got, []string{"job"}) {
		t.Errorf("left: %q", got)
	}
	write(t, paths.VMJSON("job"))
	if got := left(paths); got != nil {
		t.Errorf("left while it runs: %q", got)
	}
	if err := os.RemoveAll(paths.RuntimeDir("job")); err != nil {
		t.Fatal(err)
	}
	if err := Remove(paths, "job"); err != nil {
		t.Fatal(err)
	}
	if all, err := addresses.All(); err != nil || len(all) > 0 {
		t.Errorf("addresses of cards: %v, %v", all, err)
	}
	if err := errors.Join(os.Remove(addresses.File), os.Remove(addresses.Lock)); err != nil {
		t.Fatal(err)
	}
	slices.Sort(kept)
	if got := files(t, paths.Root); !slices.Equal(got, kept) {
		t.Errorf("kept %q, want %q", got, kept)
	}
	if _, err := os.Lstat(paths.StateDir("job")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the state directory: %v", err)
	}
	if err := Remove(paths, "job"); err != nil {
		t.Errorf("removed again: %v", err)
	}
}

// What is another machine's, or was there before, is not removed.
func TestRemoveKeeps(t *testing.T) {
	paths := config.SystemPaths(t.TempDir())
	disk := paths.Disk("web", "root", "qcow2")
	write(t, disk)
	if _, err := Reserve(paths, "web"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("reserved: %v", err)
	}
	if err := Mark(paths, "web"); err != nil {
		t.Fatal(err)
	}
	write(t, config.Definition(paths.VMDirs[0], "web"))
	if err := Remove(paths, "web"); err != nil {
		t.Fatal(err)
	}
	if got, want := files(t, paths.Root), []string{strings.TrimPrefix(disk, paths.Root)}; !slices.Equal(got, want) {
		t.Errorf("kept %q, want %q", got, want)
	}

	// A directory of its own, but a definition beside.
	release, err := Reserve(paths, "job")
	if err != nil {
		t.Fatal(err)
	}
	release()
	write(t, paths.Disk("job", "root", "qcow2"))
	write(t, config.Definition(paths.VMDirs[1], "job"))
	if err := Remove(paths, "job"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(paths.Disk("job", "root", "qcow2")); err != nil {
		t.Error(err)
	}
}

// A removal that was cut off is known by the mark, and brought to its end.
func TestRemoveCutOff(t *testing.T) {
	paths := config.SystemPaths(t.TempDir())
	release, err := Reserve(paths, "job")
	if err != nil {
		t.Fatal(err)
	}
	release()
	write(t, paths.Disk("job", "root", "qcow2"))
	for range 2 { // with the disk, and then without
		if got := left(paths); !slices.Equal(got, []string{"job"}) {
			t.Errorf("left: %q", got)
		}
		if err := os.RemoveAll(paths.Disk("job", "root", "qcow2")); err != nil {
			t.Fatal(err)
		}
	}
	if err := Remove(paths, "job"); err != nil {
		t.Fatal(err)
	}
	if got := left(paths); got != nil {
		t.Errorf("left: %q", got)
	}
}

package saved

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// newMachine is one with a directory for its state.
func newMachine(t *testing.T) (config.Paths, *Record) {
	t.Helper()
	paths := config.SystemPaths(t.TempDir())
	if err := os.MkdirAll(paths.StateDir("web"), 0o755); err != nil {
		t.Fatal(err)
	}
	return paths, &Record{ID: NewID(), Started: hypervisor.Record{Machine: &config.Machine{Name: "web"}, Plan: &hypervisor.Plan{}}, Saved: time.Now()}
}

func left(t *testing.T, paths config.Paths) []string {
	t.Helper()
	entries, err := os.ReadDir(paths.StateDir("web"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestKeep(t *testing.T) {
	paths, r := newMachine(t)
	content := make([]byte, 3<<20)
	rand.New(rand.NewSource(1)).Read(content[1<<20 : 2<<20])
	n, err := WriteState(paths, "web", io.NopCloser(bytes.NewReader(content)))
	if err != nil || n < 1<<20 || n > 5<<18 {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if Exists(paths, "web") {
		t.Error("saved without a record")
	}
	r.Bytes = n
	if err := r.Keep(paths, "web"); err != nil {
		t.Fatal(err)
	}
	got, err := Read(paths, "web")
	if err != nil || got.ID != r.ID || !Exists(paths, "web") {
		t.Errorf("got %+v, %v", got, err)
	}
	state, err := os.ReadFile(paths.SavedState("web"))
	if err != nil || int64(len(state)) != n {
		t.Fatalf("%d bytes, %v", len(state), err)
	}

	var back bytes.Buffer
	var last int64
	if err := ReadState(bytes.NewReader(state), &back, func(n int64) { last = n }); err != nil || !bytes.Equal(back.Bytes(), content) {
		t.Errorf("%d bytes, %v", back.Len(), err)
	}
	if last != n {
		t.Errorf("%d of %d bytes were told of", last, n)
	}
	// Who does not want all of it still learns whether it is whole.
	some, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	some.Close()
	if err := ReadState(bytes.NewReader(state), w, func(int64) {}); err != nil {
		t.Error(err)
	}
	for _, damage := range []func([]byte) []byte{
		func(b []byte) []byte { return b[:len(b)-1] },
		func(b []byte) []byte { return b[:len(b)/2] },
		func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		func(b []byte) []byte { return append(b, "more"...) },
		func([]byte) []byte { return []byte("not zstd") },
	} {
		if err := ReadState(bytes.NewReader(damage(bytes.Clone(state))), io.Discard, func(int64) {}); err == nil {
			t.Error("damage was not noticed")
		}
	}

	if err := Forget(paths, "web"); err != nil || Exists(paths, "web") {
		t.Errorf("not forgotten: %v", err)
	}
	// And what a writing of the record has left that was killed.
	if err := os.WriteFile(filepath.Join(paths.StateDir("web"), ".saved.json.123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Discard(paths, "web"); err != nil || len(left(t, paths)) > 0 {
		t.Errorf("left: %v, %v", left(t, paths), err)
	}
}

// Where there is no room, nothing is left.
func TestKeepOnFullDisk(t *testing.T) {
	paths, r := newMachine(t)
	if err := unix.Mount("vmctl-test", paths.StateDir("web"), "tmpfs", 0, "size=1M"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(paths.StateDir("web"), unix.MNT_DETACH) })
	_, err := WriteState(paths, "web", io.NopCloser(io.LimitReader(rand.New(rand.NewSource(1)), 3<<20)))
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	r.Started.Machine.Description = strings.Repeat("x", 2<<20)
	if err := r.Keep(paths, "web"); !errors.Is(err, unix.ENOSPC) || Exists(paths, "web") {
		t.Errorf("kept without room: %v", err)
	}
	if names := left(t, paths); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
}

func TestChanged(t *testing.T) {
	_, r := newMachine(t)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Look(disk)
	if err != nil {
		t.Fatal(err)
	}
	r.Files = []File{f}
	if changed := r.Changed(); changed != "" {
		t.Errorf("changed: %s", changed)
	}
	for want, change := range map[string]func() error{
		"was written to at": func() error { return os.Chtimes(disk, time.Now(), time.Now().Add(time.Second)) },
		"had 4 bytes":       func() error { return os.Truncate(disk, 5) },
		"no such file":      func() error { return os.Remove(disk) },
	} {
		if err := os.WriteFile(disk, []byte("data"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(disk, f.Modified, f.Modified); err != nil {
			t.Fatal(err)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if changed := r.Changed(); !strings.Contains(changed, want) {
			t.Errorf("got %q, want %q", changed, want)
		}
	}
}

func TestSameMachine(t *testing.T) {
	a := &config.Machine{Name: "web", CPUs: 1}
	if !SameMachine(a, &config.Machine{Name: "web", CPUs: 1}) || SameMachine(a, &config.Machine{Name: "web", CPUs: 2}) {
		t.Error("the same is not what should be")
	}
	a.Disks = []config.Disk{{Name: "root", IOPS: 500}}
	if !SameMachine(a, &config.Machine{Name: "web", CPUs: 1, Disks: []config.Disk{{Name: "root", Bandwidth: 1 << 20}}}) {
		t.Error("limits of disks can be changed while it runs")
	}
	if !SameMachine(a, &config.Machine{Name: "web", CPUs: 1, Disks: a.Disks, Console: config.Console{Group: "adm"}}) {
		t.Error("who sits down at the console can be changed while it runs")
	}
	if SameMachine(a, &config.Machine{Name: "web", CPUs: 1, Disks: []config.Disk{{Name: "root", IOPS: 500, Bus: "scsi"}}}) {
		t.Error("another bus is the same")
	}
	if got := Differing(a, &config.Machine{Name: "web", CPUs: 2, Disks: []config.Disk{{Name: "root", Bus: "scsi"}}}); !slices.Equal(got, []string{"cpus", "disk.root.bus"}) {
		t.Errorf("differing are %q", got)
	}
}

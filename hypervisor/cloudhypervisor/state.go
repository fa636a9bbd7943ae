package cloudhypervisor

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
)

var (
	_ hypervisor.StateSaver    = control{}
	_ hypervisor.StateUnpacker = CloudHypervisor{}
)

// The files that vm.snapshot makes in a directory. They are packed to one stream in
// this order (tar), and are those that a restore reads.
var stateFiles = []string{"config.json", "state.json", memoryFile}

const memoryFile = "memory-ranges"

const (
	// stateStall is how long cloud-hypervisor may write its memory without the
	// file's growing. It answers nothing else meanwhile.
	stateStall = 2 * time.Minute
	statePoll  = 50 * time.Millisecond
	// maxState bounds all but the memory, in bytes.
	maxState = 64 << 20
)

// StateFormat implements [hypervisor.StateSaver].
func (c control) StateFormat(ctx context.Context) (f hypervisor.StateFormat, err error) {
	var ping struct {
		Version string `json:"build_version"`
	}
	err = c.get(ctx, "vmm.ping", &ping)
	return hypervisor.StateFormat{MachineType: program, Version: ping.Version}, err
}

// plugged is what vm.info says of the devices that have a name of ours, and of what
// can be changed while the machine runs.
type plugged struct {
	Disks  []device `json:"disks"`
	Net    []device `json:"net"`
	FS     []device `json:"fs"`
	Device []device `json:"devices"`
}

type device struct {
	ID string `json:"id"`
}

func (p plugged) ids() map[string]bool {
	ids := map[string]bool{}
	for _, d := range slices.Concat(p.Disks, p.Net, p.FS, p.Device) {
		ids[d.ID] = true
	}
	return ids
}

func (c control) plugged(ctx context.Context) (p plugged, err error) {
	var is struct {
		Config plugged `json:"config"`
	}
	err = c.get(ctx, "vm.info", &is)
	return is.Config, err
}

// deviceOptions are those that take a device with a name.
var deviceOptions = []string{"--disk", "--net", "--fs", "--device"}

// CheckState implements [hypervisor.StateSaver]. What was plugged in is not in argv.
func (c control) CheckState(ctx context.Context, argv []string) error {
	var reasons []string
	if values(argv, "--device") != nil {
		reasons = append(reasons, "cloud-hypervisor cannot save a device of the host (pci)")
	}
	for _, option := range []struct{ name, key string }{{"--tpm", "tpm.enabled"}, {"--fs", "share"}} {
		if values(argv, option.name) != nil {
			reasons = append(reasons, "cloud-hypervisor does not save what is behind "+option.key)
		}
	}
	for _, card := range values(argv, "--net") {
		if user, _ := option(card, "vhost_user"); user == "true" {
			id, _ := option(card, "id")
			reasons = append(reasons, fmt.Sprintf("cloud-hypervisor does not save what is behind %s.vhost_user", keyOf(id)))
		}
	}
	is, err := c.plugged(ctx)
	if err != nil {
		return err
	}
	has := is.ids()
	for _, name := range deviceOptions {
		for _, value := range values(argv, name) {
			id, _ := option(value, "id")
			if !has[id] {
				reasons = append(reasons, "the device "+id+" was taken out while it ran: plug it in first")
			}
			delete(has, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(has)) {
		reasons = append(reasons, "the device "+id+" was plugged in while it ran: take it out first")
	}
	if reasons != nil {
		return &hypervisor.UnsavableError{Reasons: reasons}
	}
	return nil
}

// StateArgv implements [hypervisor.StateSaver]: the state has the machine in it.
func (c control) StateArgv(_ context.Context, argv []string) ([]string, error) { return argv, nil }

// SaveState implements [hypervisor.StateSaver] by a snapshot. The guest stands still
// while it is written, and nothing cuts that short.
func (c control) SaveState(ctx context.Context, w *os.File, scratch *os.Root, progress func(done, total int64), atStop func(context.Context) error) error {
	if scratch == nil {
		return &hypervisor.UnsavableError{Reasons: []string{"it was started without a directory that its state could be written to: start it anew first"}}
	}
	commands := context.WithoutCancel(ctx)
	status, err := c.Status(commands)
	if err != nil {
		return err
	}
	if err := hypervisor.EmptyScratch(scratch); err != nil {
		return err
	}
	if err = c.Pause(commands); err == nil && atStop != nil {
		err = atStop(ctx)
	}
	if err == nil {
		err = c.snapshot(commands, scratch, progress)
	}
	if err == nil {
		err = packState(ctx, w, scratch)
	}
	err = errors.Join(err, hypervisor.EmptyScratch(scratch))
	if err != nil {
		return errors.Join(err, c.EndSave(commands, status != hypervisor.StatusRunning))
	}
	return nil
}

// snapshot has cloud-hypervisor write its files, for as long as that gets on.
func (c control) snapshot(ctx context.Context, scratch *os.Root, progress func(done, total int64)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answered := make(chan error, 1)
	go func() {
		answered <- c.request(ctx, call{
			method: "PUT", path: "vm.snapshot", body: map[string]string{"destination_url": "file://" + scratch.Name()}, timeout: noTimeout,
		}, nil)
	}()
	tick := time.NewTicker(statePoll)
	defer tick.Stop()
	var done int64
	for last := time.Now(); ; {
		select {
		case err := <-answered:
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return err
		case <-tick.C:
		}
		now, total := memoryWritten(scratch)
		if now != done {
			done, last = now, time.Now()
			if progress != nil {
				progress(min(done, total), total)
			}
		} else if time.Since(last) > stateStall {
			cancel(fmt.Errorf("vm.snapshot: cloud-hypervisor has written nothing of its state for %s", stateStall))
		}
	}
}

// memoryWritten is how much of the memory's file is there, of how much, in bytes.
func memoryWritten(scratch *os.Root) (done, total int64) {
	info, err := scratch.Lstat(memoryFile)
	if err != nil {
		return 0, 0
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		done = s.Blocks * 512
	}
	return done, info.Size()
}

// packState writes the files to a stream.
func packState(ctx context.Context, w io.Writer, scratch *os.Root) error {
	archive := tar.NewWriter(w)
	for _, name := range stateFiles {
		if err := packFile(ctx, archive, scratch, name); err != nil {
			return fmt.Errorf("the saved state: %w", err)
		}
	}
	return archive.Close()
}

// packFile adds a file that may be of a hypervisor that a guest has taken over.
func packFile(ctx context.Context, archive *tar.Writer, scratch *os.Root, name string) error {
	f, err := scratch.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a file", name)
	case name != memoryFile && info.Size() > maxState:
		return fmt.Errorf("%s has more than %d bytes", name, maxState)
	}
	if err := archive.WriteHeader(&tar.Header{Name: name, Size: info.Size(), Mode: 0o600, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err = io.CopyN(archive, &untilDone{ctx, f}, info.Size())
	return err
}

// untilDone reads for as long as a context goes on.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u *untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// EndSave implements [hypervisor.StateSaver].
func (c control) EndSave(ctx context.Context, paused bool) error {
	if paused {
		return nil
	}
	return c.Resume(ctx)
}

// CheckFormat implements [hypervisor.StateUnpacker]. Nothing promises that a version
// reads what another one has written.
func (CloudHypervisor) CheckFormat(ctx context.Context, argv []string, format hypervisor.StateFormat) error {
	is, _, err := Version(ctx, argv[0])
	if err != nil {
		return err
	}
	if is != format.Version {
		return fmt.Errorf("the state was saved by cloud-hypervisor %s, and %s is %s, which may not understand it: have hypervisor_options.binary name %s", format.Version, argv[0], is, format.Version)
	}
	return nil
}

// UnpackState implements [hypervisor.StateUnpacker].
func (CloudHypervisor) UnpackState(r io.Reader, scratch *os.Root) error {
	if err := hypervisor.EmptyScratch(scratch); err != nil {
		return err
	}
	archive := tar.NewReader(r)
	for _, name := range stateFiles {
		header, err := archive.Next()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if header.Name != name {
			return fmt.Errorf("want %s, got %q", name, header.Name)
		}
		if err := unpackFile(archive, scratch, header); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	_, err := io.Copy(io.Discard, r) // to its end, which tells whether it was whole
	return err
}

func unpackFile(r io.Reader, scratch *os.Root, header *tar.Header) error {
	f, err := scratch.OpenFile(header.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(header.Size); err != nil {
		return err
	}
	// What the guest has not used takes no room.
	p, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); at < header.Size; {
		n, err := io.ReadFull(r, p[:min(int64(len(p)), header.Size-at)])
		if err != nil {
			return err
		}
		if !bytes.Equal(p[:n], zeros[:n]) {
			if _, err := f.WriteAt(p[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
	}
	return f.Close()
}

// restoreOptions are the options that belong to the process and not to the machine,
// which is in the state, and how many values each has. Landlock is the machine's: its
// state has cloud-hypervisor confine itself, and the option is refused without a
// kernel or firmware beside it (v41 to v53).
var restoreOptions = map[string]int{"--api-socket": 1, "--event-monitor": 1, "-v": 0, "--seccomp": 1}

// WithUnpacked implements [hypervisor.StateUnpacker].
func (CloudHypervisor) WithUnpacked(argv []string, scratch string) []string {
	out := argv[:1:1]
	for i := 1; i < len(argv); i++ {
		if n, ok := restoreOptions[argv[i]]; ok {
			out = append(out, argv[i:i+1+n]...)
		}
	}
	var cards []string
	for _, card := range values(argv, "--net") {
		id, _ := option(card, "id")
		if fds, ok := option(card, "fd"); ok {
			cards = append(cards, id+"@"+fds)
		}
	}
	nets := ""
	if cards != nil {
		nets = "net_fds=" + list(cards)
	}
	return append(out, "--restore", options(text("source_url", "file://"+scratch), nets))
}

package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
)

var (
	_ hypervisor.StateSaver  = (*control)(nil)
	_ hypervisor.StateLoader = QEMU{}
)

const (
	stateFile = "state" // name of the stream, within QEMU
	statePoll = 20 * time.Millisecond

	// stateBandwidth does not bound the stream, in bytes per second: 0 does so
	// from QEMU 8.1 on only.
	stateBandwidth = 1 << 40
	// stateDowntime is the most that QEMU takes, in milliseconds.
	stateDowntime = 2_000_000
	// stateRounds is how often memory is gone through before the CPUs are
	// stopped, however much of it the guest goes on to change.
	stateRounds = 3

	// stateStall is how long QEMU may write nothing of the state and not go on with
	// it otherwise: 7.2 was seen to begin and never go on, after a CPU was taken out.
	stateStall = 5 * time.Minute

	// stateEndTime is for QEMU to notice that it has been told to stop writing.
	stateEndTime = 30 * time.Second
)

// WithState implements [hypervisor.StateLoader]. A second -machine adds to the
// first.
func (QEMU) WithState(argv []string, fd int, format hypervisor.StateFormat) []string {
	return append(slices.Clip(argv), "-machine", options("type="+format.MachineType), "-incoming", "fd:"+strconv.Itoa(fd), "-S")
}

// migration is the answer of query-migrate (MigrationInfo in qapi/migration.json).
type migration struct {
	Status  string   `json:"status"` // "" where there was none
	Error   string   `json:"error-desc"`
	Blocked []string `json:"blocked-reasons"`
	RAM     struct {
		Total     int64 `json:"total"`
		Remaining int64 `json:"remaining"`
		Rounds    int   `json:"dirty-sync-count"`
	} `json:"ram"`
}

// standing is what changes while a state is written.
type standing struct {
	status    string
	remaining int64
	rounds    int
}

func (m migration) standing() standing { return standing{m.Status, m.RAM.Remaining, m.RAM.Rounds} }

// over says whether nothing is being written any more.
func (m migration) over() bool {
	switch m.Status {
	case "", "none", "completed", "failed", "cancelled":
		return true
	}
	return false
}

func (c *control) migration(ctx context.Context) (m migration, err error) {
	return m, c.run(ctx, "query-migrate", nil, &m)
}

// StateFormat implements [hypervisor.StateSaver].
func (c *control) StateFormat(ctx context.Context) (f hypervisor.StateFormat, err error) {
	var class string // "pc-q35-10.0-machine"
	if err := c.run(ctx, "qom-get", map[string]string{"path": "/machine", "property": "type"}, &class); err != nil {
		return f, err
	}
	v, err := c.version(ctx)
	return hypervisor.StateFormat{MachineType: strings.TrimSuffix(class, "-machine"), Version: v.String()}, err
}

// version is the program's.
type version struct{ Major, Minor, Micro int }

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

func (c *control) version(ctx context.Context) (version, error) {
	var answer struct{ QEMU version }
	return answer.QEMU, c.run(ctx, "query-version", nil, &answer)
}

// CheckState implements [hypervisor.StateSaver]. Devices that have been plugged in
// or out are not in argv.
func (c *control) CheckState(ctx context.Context, argv []string) error {
	if _, err := c.unblocked(ctx); err != nil {
		return err
	}
	var children []struct{ Name, Type string }
	if err := c.run(ctx, "qom-list", map[string]string{"path": "/machine/peripheral"}, &children); err != nil {
		return err
	}
	has := map[string]bool{}
	for _, child := range children {
		has[child.Name] = child.Name != "type"
	}
	var reasons []string
	for _, id := range deviceIDs(argv) {
		if !has[id] {
			reasons = append(reasons, "the device "+id+" was taken out while it ran: plug it in first")
		}
		delete(has, id)
	}
	for _, id := range slices.Sorted(maps.Keys(has)) {
		if has[id] {
			reasons = append(reasons, "the device "+id+" was plugged in while it ran: take it out first")
		}
	}
	if reasons != nil {
		return &hypervisor.UnsavableError{Reasons: reasons}
	}
	return nil
}

// deviceIDs are the names of a command line's devices.
func deviceIDs(argv []string) (ids []string) {
	for i, arg := range argv {
		if i == 0 || argv[i-1] != "-device" {
			continue
		}
		for option := range strings.SplitSeq(arg, ",") {
			if id, ok := strings.CutPrefix(option, "id="); ok {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// unblocked is how the last migration went, or why there can be none.
func (c *control) unblocked(ctx context.Context) (migration, error) {
	m, err := c.migration(ctx)
	if err == nil && len(m.Blocked) > 0 {
		err = &hypervisor.UnsavableError{Reasons: m.Blocked}
	}
	return m, err
}

// SaveState implements [hypervisor.StateSaver] by a migration to nowhere. It
// asks how that goes, again and again, instead of waiting for events: so the
// connection is still good when ctx ends.
func (c *control) SaveState(ctx context.Context, w *os.File, _ *os.Root, progress func(done, total int64), atStop func(context.Context) error) error {
	commands := context.WithoutCancel(ctx)
	before, err := c.unblocked(commands)
	if err != nil {
		return err
	}
	if !before.over() {
		return errors.New("QEMU is writing its state already")
	}
	status, err := c.Status(commands)
	if err != nil {
		return err
	}
	err = c.writeState(ctx, w, progress, atStop)
	if err == nil {
		err = c.settings(commands, defaultSettings)
	}
	if err != nil {
		return errors.Join(err, c.EndSave(commands, status != hypervisor.StatusRunning))
	}
	return nil
}

func (c *control) writeState(ctx context.Context, w *os.File, progress func(done, total int64), atStop func(context.Context) error) error {
	commands := context.WithoutCancel(ctx)
	if err := c.settings(commands, saveSettings); err != nil {
		return err
	}
	if err := c.runWith(commands, w, "getfd", map[string]string{"fdname": stateFile}, nil); err != nil {
		return err
	}
	if err := c.run(commands, "migrate", map[string]string{"uri": "fd:" + stateFile}, nil); err != nil {
		// Nobody else takes it.
		return errors.Join(err, c.run(commands, "closefd", map[string]string{"fdname": stateFile}, nil))
	}
	stall := cmp.Or(c.stall, stateStall)
	last, moved := standing{}, time.Now()
	for hurried, stopped := false, false; ; {
		m, err := c.migration(commands)
		if err != nil {
			return err
		}
		if now := m.standing(); now != last {
			last, moved = now, time.Now()
		}
		switch {
		case m.Status == "completed":
			return nil
		case m.over():
			return fmt.Errorf("QEMU could not write its state: %s", m.reason())
		case m.Status == "pre-switchover" && !stopped:
			stopped = true
			if atStop != nil {
				if err := atStop(ctx); err != nil {
					return err
				}
				moved = time.Now()
			}
			if err := c.run(commands, "migrate-continue", map[string]string{"state": m.Status}, nil); err != nil {
				return err
			}
		case m.RAM.Rounds >= stateRounds && !hurried:
			hurried = true
			if err := c.settings(commands, hurriedSettings); err != nil {
				return err
			}
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Since(moved) > stall:
			return fmt.Errorf("QEMU has not gone on to write its state for %v: it is %s, with %d of %d bytes of memory to be written", stall, m.Status, m.RAM.Remaining, m.RAM.Total)
		}
		if m.RAM.Total > 0 && progress != nil {
			progress(m.RAM.Total-m.RAM.Remaining, m.RAM.Total)
		}
		time.Sleep(statePoll)
	}
}

// reason is why a migration that is over has not written all.
func (m migration) reason() string {
	if m.Error != "" {
		return m.Error
	}
	return "it was " + m.Status
}

// migrationSettings are those of QEMU's that a migration goes by.
type migrationSettings struct {
	pause     bool  // wait with the CPUs stopped, before the disks are let go of
	bandwidth int64 // bytes per second
	downtime  int   // ms that the CPUs may be stopped for
}

var (
	defaultSettings = migrationSettings{false, 128 << 20, 300}
	saveSettings    = migrationSettings{true, stateBandwidth, 300}
	hurriedSettings = migrationSettings{true, stateBandwidth, stateDowntime}
)

func (c *control) settings(ctx context.Context, s migrationSettings) error {
	// While a migration goes on, its capabilities cannot be set, whether they
	// change or not.
	if s != hurriedSettings {
		type capability struct {
			Capability string `json:"capability"`
			State      bool   `json:"state"`
		}
		err := c.run(ctx, "migrate-set-capabilities",
			map[string]any{"capabilities": []capability{{"pause-before-switchover", s.pause}}}, nil)
		if err != nil {
			return err
		}
	}
	return c.run(ctx, "migrate-set-parameters",
		map[string]any{"max-bandwidth": s.bandwidth, "downtime-limit": s.downtime}, nil)
}

// EndSave implements [hypervisor.StateSaver].
func (c *control) EndSave(ctx context.Context, paused bool) error {
	m, err := c.migration(ctx)
	if err != nil {
		return err
	}
	if !m.over() {
		if err := c.run(ctx, "migrate_cancel", nil, nil); err != nil {
			return err
		}
	}
	for end := time.Now().Add(stateEndTime); !m.over(); {
		if time.Now().After(end) {
			return fmt.Errorf("QEMU goes on to write its state: it is %s", m.Status)
		}
		time.Sleep(statePoll)
		if m, err = c.migration(ctx); err != nil {
			return err
		}
	}
	if err := c.settings(ctx, defaultSettings); err != nil {
		return err
	}
	var is struct{ Status string }
	if err := c.run(ctx, "query-status", nil, &is); err != nil {
		return err
	}
	// A guest that ran goes on by itself, if it was not at its end.
	if is.Status != "postmigrate" {
		return nil
	}
	if err := c.Resume(ctx); err != nil || !paused {
		return err
	}
	// There is no other way back to a pause from which the state can be saved
	// once more, and in which the disks are open.
	return c.Pause(ctx)
}

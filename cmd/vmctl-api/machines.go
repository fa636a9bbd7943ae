package main

import (
	"cmp"
	"context"
	"encoding/json"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmctl/vmctl/config"
)

// row is a machine in vmctl list -o json, as far as it is of use here.
type row struct {
	Name           string     `json:"name"`
	State          string     `json:"state"`
	Hypervisor     string     `json:"hypervisor"`
	CPUs           int        `json:"cpus"`
	MemoryBytes    int64      `json:"memory_bytes"`
	PID            int        `json:"pid"`
	Addresses      []string   `json:"addresses"`
	Autostart      bool       `json:"autostart"`
	Description    string     `json:"description"`
	StartedAt      *time.Time `json:"started_at"`
	PendingChanges bool       `json:"pending_changes"`
	Error          string     `json:"error"`
}

// States of vmctl(1).
const (
	starting = "starting"
	loading  = "loading"
	running  = "running"
	paused   = "paused"
	stopping = "stopping"
	saving   = "saving"
	stopped  = "stopped"
)

// machine is a machine as it was found.
type machine struct {
	row
	vm      config.VM // its Machine is nil where the definition is broken or gone
	knownAs string    // what programs know it by
	created time.Time
}

func nameOf(m *machine) string { return m.Name }

// id is what programs know it by.
func (m *machine) id() string { return m.knownAs }

// idOf is what programs know a machine by: where its definition cannot be read, or is
// gone, what they did when it was started last.
func (s *server) idOf(vm config.VM, name string) string {
	return cmp.Or(vm.ID, s.recordedID(name), name)
}

// recordedID is the id that a machine was started with last, "" where it never was.
func (s *server) recordedID(name string) string {
	var record struct {
		Machine config.Machine `json:"machine"`
	}
	b, err := os.ReadFile(s.paths.Record(name))
	if err != nil || json.Unmarshal(b, &record) != nil {
		return ""
	}
	return record.Machine.ID()
}

// machines finds all machines, by name.
func (s *server) machines(ctx context.Context) ([]*machine, error) {
	var set *config.Set
	var loadErr error
	var wg sync.WaitGroup
	wg.Go(func() { set, loadErr = s.load() })
	rows, err := s.rows(ctx)
	wg.Wait()
	if err := cmp.Or(err, loadErr); err != nil {
		return nil, err
	}
	return s.join(set, rows), nil
}

// load reads all definitions.
func (s *server) load() (*config.Set, error) {
	set, err := config.Load(s.paths)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return set, nil
}

// rows asks vmctl for machines: those named, or all.
func (s *server) rows(ctx context.Context, names ...string) ([]row, error) {
	var rows []row
	if err := s.commands.run(ctx, look(append([]string{"list", "--"}, names...)...), &rows); err != nil {
		return nil, statusOf("list: ", err)
	}
	return rows, nil
}

// join puts together what the files and what vmctl say. Of what has neither
// definition nor hypervisor any more there is nothing to tell.
func (s *server) join(set *config.Set, rows []row) []*machine {
	var out []*machine
	for _, r := range rows {
		m := &machine{row: r}
		if i, found := slices.BinarySearchFunc(set.VMs, r.Name, byName); found {
			m.vm = set.VMs[i]
			m.created = created(m.vm.File)
		} else if r.PID == 0 {
			continue
		}
		m.knownAs = s.idOf(m.vm, r.Name)
		if m.StartedAt == nil {
			m.StartedAt = s.lastStart(r.Name)
		}
		out = append(out, m)
	}
	return out
}

func byName(vm config.VM, name string) int {
	switch {
	case vm.Name < name:
		return -1
	case vm.Name > name:
		return 1
	}
	return 0
}

// created is when a definition was made, as far as the file system says.
func created(file string) time.Time {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, file, 0, unix.STATX_BTIME|unix.STATX_MTIME, &st); err != nil {
		return time.Time{}
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		return time.Unix(st.Btime.Sec, int64(st.Btime.Nsec))
	}
	return time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec))
}

// lastStart is when a machine that does not run was started last, nil where it
// never was.
func (s *server) lastStart(name string) *time.Time {
	info, err := os.Stat(s.paths.Record(name))
	if err != nil {
		return nil
	}
	return new(info.ModTime())
}

// find is the machine with an id, which the caller has to be allowed to use.
func (s *server) find(ctx context.Context, id string) (*machine, error) {
	name, set, err := s.nameOf(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.look(ctx, id, name, set)
}

// nameOf is the name of the machine with an id.
func (s *server) nameOf(ctx context.Context, id string) (string, *config.Set, error) {
	set, err := s.load()
	if err != nil {
		return "", nil, err
	}
	name := ""
	if i := slices.IndexFunc(set.VMs, func(vm config.VM) bool { return s.idOf(vm, vm.Name) == id }); i >= 0 {
		name = set.VMs[i].Name
	} else if name, err = s.undefined(ctx, set, id); err != nil {
		return "", nil, err
	}
	return name, set, s.allow(ctx, name)
}

// undefined is the name of a machine with an id that runs and has no definition.
func (s *server) undefined(ctx context.Context, set *config.Set, id string) (string, error) {
	// There is none where nothing was ever started.
	entries, _ := os.ReadDir(s.paths.State)
	for _, e := range entries {
		name := e.Name()
		_, defined := slices.BinarySearchFunc(set.VMs, name, byName)
		if defined || config.CheckName(name) != nil || s.recordedID(name) != id {
			continue
		}
		rows, err := s.rows(ctx, name)
		if status.Code(err) == codes.NotFound {
			continue
		}
		if err != nil {
			return "", err
		}
		if len(s.join(set, rows)) > 0 {
			return name, nil
		}
	}
	return "", noSuchVM(id)
}

// look finds out about a machine whose name is known.
func (s *server) look(ctx context.Context, id, name string, set *config.Set) (*machine, error) {
	rows, err := s.rows(ctx, name)
	if status.Code(err) == codes.NotFound { // deleted meanwhile
		return nil, noSuchVM(id)
	}
	if err != nil {
		return nil, err
	}
	found := s.join(set, rows)
	if len(found) != 1 {
		return nil, noSuchVM(id)
	}
	return found[0], nil
}

// lookAgain is a machine as it is now; one that is gone has stopped.
func (s *server) lookAgain(ctx context.Context, m *machine) (*machine, error) {
	now, err := s.machineNamed(ctx, m.Name)
	if err != nil {
		return nil, err
	}
	return cmp.Or(now, m.ended()), nil
}

// ended is a machine that was found, and is no more.
func (m *machine) ended() *machine {
	out := *m
	out.State, out.PID, out.Addresses = stopped, 0, nil
	return &out
}

func noSuchVM(id string) error { return status.Errorf(codes.NotFound, "VM %s not found", id) }

// machineNamed finds a machine by its name, nil where it is gone.
func (s *server) machineNamed(ctx context.Context, name string) (*machine, error) {
	set, err := s.load()
	if err != nil {
		return nil, err
	}
	rows, err := s.rows(ctx, name)
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, m := range s.join(set, rows) {
		return m, nil
	}
	return nil, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
	vmctlv1 "github.com/vmctl/vmctl/cmd/vmctl-api/proto/vmctl/v1"
	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units/journal"
)

// answers has vmctl answer with a script, and keep how it was called.
func (s *service) answers(t testing.TB, script string) {
	t.Helper()
	text := "#!/bin/sh\ncd " + s.dir + "\nprintf '%s\\n' \"$*\" >>called\n" + script + "\n"
	// In its place at once: another may be running.
	if err := os.WriteFile(s.dir+"/answer.new", []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.dir+"/answer.new", s.dir+"/answer"); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(s.dir + "/called")
}

// events is a script that says what happens.
func (s *service) events(t testing.TB, script string) {
	t.Helper()
	if err := os.WriteFile(s.dir+"/events", []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
}

// called are the arguments that vmctl was called with, one call a line.
func (s *service) called() string {
	text, _ := os.ReadFile(s.dir + "/called")
	return strings.TrimSpace(string(text))
}

// dial connects to the service by a Unix socket.
func (s *service) dial(t testing.TB, most role) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+s.listen(t, "unix", unixGate{most}).String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// fails is a script that fails as vmctl does.
func fails(exit, message string) string {
	return `printf 'vmctl: warning: beside it\n{\n  "error": {\n    "message": "` + message + `",\n    "status": ` + exit + `\n  }\n}\n' >&2; exit ` + exit
}

// What is asked for becomes vmctl's arguments, and what that prints an answer.
func TestServices(t *testing.T) {
	s := newService(t)
	conn := s.dial(t, operator)
	ctx := t.Context()
	snapshots, images, networks := vmctlv1.NewSnapshotServiceClient(conn), vmctlv1.NewImageServiceClient(conn), vmctlv1.NewNetworkServiceClient(conn)
	const network = `echo '{"name": "lan", "state": "running", "subnet": "10.20.0.0/24", "leases": [{"network": "lan", "address": "10.20.0.5", "kind": "given", "lent": true}], "cards": [{"vm": "web", "nic": "lan"}]}'`
	for what, c := range map[string]struct {
		script string
		call   func() (proto.Message, error)
		args   string
		answer proto.Message
	}{
		"ListSnapshots": {
			`echo '[{"vm": "web", "name": "a", "state": "paused", "memory_bytes": 7, "disks": [{"name": "root", "path": "/x", "size_bytes": 9}]}]'`,
			func() (proto.Message, error) {
				r, err := snapshots.ListSnapshots(ctx, &vmctlv1.ListSnapshotsRequest{Machine: "web"})
				for _, s := range r.GetSnapshots() {
					s.CreatedAt = nil
				}
				return r, err
			},
			"-o json snapshot list -- web",
			&vmctlv1.ListSnapshotsResponse{Snapshots: []*vmctlv1.Snapshot{{
				Machine: "web", Name: "a", State: vmctlv1.MachineState_MACHINE_STATE_PAUSED, MemoryBytes: 7,
				Disks: []*vmctlv1.SnapshotDisk{{Name: "root", Path: "/x", SizeBytes: 9}},
			}}},
		},
		"CreateSnapshot": {
			`echo '{"name": "a", "state": "running", "quiesced": true}'`,
			func() (proto.Message, error) {
				r, err := snapshots.CreateSnapshot(ctx, &vmctlv1.CreateSnapshotRequest{Machine: "web", Name: "a", Description: "two words", Quiesce: vmctlv1.Quiesce_QUIESCE_REQUIRE})
				return &vmctlv1.Snapshot{Machine: r.GetSnapshot().GetMachine(), Name: r.GetSnapshot().GetName(), Quiesced: r.GetSnapshot().GetQuiesced()}, err
			},
			"-o json snapshot create --description=two words --quiesce=require -- web a",
			&vmctlv1.Snapshot{Machine: "web", Name: "a", Quiesced: true},
		},
		"RestoreSnapshot": {
			`echo '{"name": "a", "disks": ["root"], "memory": true, "started": true}'`,
			func() (proto.Message, error) {
				return snapshots.RestoreSnapshot(ctx, &vmctlv1.RestoreSnapshotRequest{Machine: "web", Name: "a", Force: true, DisksOnly: true, After: vmctlv1.AfterRestore_AFTER_RESTORE_STAY_OFF})
			},
			"-o json snapshot restore --yes --force --disks-only --no-start -- web a",
			&vmctlv1.RestoreSnapshotResponse{Disks: []string{"root"}, Memory: true, Started: true},
		},
		"DeleteSnapshot": {
			`echo '["a"]'`,
			func() (proto.Message, error) {
				return snapshots.DeleteSnapshot(ctx, &vmctlv1.DeleteSnapshotRequest{Machine: "web", Name: "a"})
			},
			"-o json snapshot delete --yes -- web a", &vmctlv1.DeleteSnapshotResponse{},
		},
		"ListImages": {
			`echo '[{"name": "debian-13", "format": "qcow2", "virtual_size_bytes": 3, "children": [{"vm": "a"}, {"vm": "a"}, {"vm": "b"}]}]'`,
			func() (proto.Message, error) {
				r, err := images.ListImages(ctx, &vmctlv1.ListImagesRequest{})
				for _, i := range r.GetImages() {
					i.StoredAt = nil
				}
				return r, err
			},
			"-o json image list",
			&vmctlv1.ListImagesResponse{Images: []*vmctlv1.Image{{Name: "debian-13", Format: "qcow2", VirtualSizeBytes: 3, Machines: []string{"a", "b"}}}},
		},
		"ListAvailableImages": {
			`echo '[{"name": "debian-13", "url": "https://example.org", "signed": true}]'`,
			func() (proto.Message, error) {
				return images.ListAvailableImages(ctx, &vmctlv1.ListAvailableImagesRequest{})
			},
			"-o json image list --available",
			&vmctlv1.ListAvailableImagesResponse{Images: []*vmctlv1.AvailableImage{{Name: "debian-13", Url: "https://example.org", Signed: true}}},
		},
		"DeleteImage": {
			`echo '["x"]'`,
			func() (proto.Message, error) { return images.DeleteImage(ctx, &vmctlv1.DeleteImageRequest{Name: "x"}) },
			"-o json image delete --yes -- x", &vmctlv1.DeleteImageResponse{},
		},
		"GetNetwork": {
			network,
			func() (proto.Message, error) {
				return networks.GetNetwork(ctx, &vmctlv1.GetNetworkRequest{Name: "lan"})
			},
			"-o json network show -- lan",
			&vmctlv1.GetNetworkResponse{
				Network: &vmctlv1.Network{Name: "lan", State: vmctlv1.NetworkState_NETWORK_STATE_RUNNING, Subnet: "10.20.0.0/24"},
				Cards:   []*vmctlv1.NetworkCard{{Machine: "web", Nic: "lan"}},
				Leases:  []*vmctlv1.Lease{{Network: "lan", Address: "10.20.0.5", Kind: vmctlv1.LeaseKind_LEASE_KIND_GIVEN, Lent: true}},
			},
		},
		"CreateNetwork": {
			network,
			func() (proto.Message, error) {
				return networks.CreateNetwork(ctx, &vmctlv1.CreateNetworkRequest{Name: "lan", Subnet: "10.20.0.0/24", MtuBytes: 1400, NoNat: true, Settings: []string{"dhcp=false"}})
			},
			"-o json network create --subnet=10.20.0.0/24 --mtu=1400 --no-nat --set=dhcp=false -- lan\n-o json network show -- lan",
			&vmctlv1.CreateNetworkResponse{Network: &vmctlv1.Network{Name: "lan", State: vmctlv1.NetworkState_NETWORK_STATE_RUNNING, Subnet: "10.20.0.0/24"}},
		},
		"DeleteNetwork": {
			`echo '[]'`,
			func() (proto.Message, error) {
				return networks.DeleteNetwork(ctx, &vmctlv1.DeleteNetworkRequest{Name: "lan"})
			},
			"-o json network delete --yes -- lan", &vmctlv1.DeleteNetworkResponse{},
		},
		"GetMetrics": {
			`echo '# EOF'`,
			func() (proto.Message, error) {
				return vmctlv1.NewMetricsServiceClient(conn).GetMetrics(ctx, &vmctlv1.GetMetricsRequest{})
			},
			"-o text metrics", &vmctlv1.GetMetricsResponse{Text: "# EOF\n"},
		},
	} {
		s.answers(t, c.script)
		got, err := c.call()
		if err != nil || !proto.Equal(got, c.answer) {
			t.Errorf("%s: %v, %v, want %v", what, got, err, c.answer)
		}
		if s.called() != c.args {
			t.Errorf("%s: called as\n%s, want\n%s", what, s.called(), c.args)
		}
		s.answers(t, fails("4", "not now"))
		if _, err := c.call(); what != "GetMetrics" && (status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "not now") {
			t.Errorf("%s where vmctl refuses: %v", what, err)
		}
	}
	// What begins with - is no option, and no name either.
	s.answers(t, "exit 1")
	_, err := networks.StartNetwork(ctx, &vmctlv1.StartNetworkRequest{Name: "--all"})
	wantCode(t, "a name of no network", err, codes.InvalidArgument)
	_, err = snapshots.DeleteSnapshot(ctx, &vmctlv1.DeleteSnapshotRequest{Machine: "web", Name: "../x"})
	wantCode(t, "a name of no snapshot", err, codes.InvalidArgument)
	if s.called() != "" {
		t.Errorf("called %s", s.called())
	}
}

// ofMachine is an answer that tells of a machine.
type ofMachine interface{ GetMachine() *vmctlv1.Machine }

// What is asked of a machine becomes vmctl's arguments, and the answer tells how the
// machine is then.
func TestMachineCalls(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	ctx := t.Context()
	machines := vmctlv1.NewMachineServiceClient(s.dial(t, operator))
	const name = "vm0000"
	for what, c := range map[string]struct {
		call  func() (ofMachine, error)
		args  string
		state string // of vmctl list, once it was called
		want  vmctlv1.MachineState
	}{
		"StartMachine": {
			func() (ofMachine, error) {
				return machines.StartMachine(ctx, &vmctlv1.StartMachineRequest{Name: name})
			},
			"-o json start -- vm0000", "running", vmctlv1.MachineState_MACHINE_STATE_RUNNING,
		},
		"StopMachine": {
			func() (ofMachine, error) {
				return machines.StopMachine(ctx, &vmctlv1.StopMachineRequest{Name: name})
			},
			"-o json stop -- vm0000", "stopped", vmctlv1.MachineState_MACHINE_STATE_STOPPED,
		},
		"StopMachine with a grace": {
			func() (ofMachine, error) {
				return machines.StopMachine(ctx, &vmctlv1.StopMachineRequest{Name: name, GraceSeconds: 7})
			},
			"-o json stop --grace 7s -- vm0000", "stopped", vmctlv1.MachineState_MACHINE_STATE_STOPPED,
		},
		"RestartMachine": {
			func() (ofMachine, error) {
				return machines.RestartMachine(ctx, &vmctlv1.RestartMachineRequest{Name: name})
			},
			"-o json restart -- vm0000", "starting", vmctlv1.MachineState_MACHINE_STATE_STARTING,
		},
		"KillMachine": {
			func() (ofMachine, error) {
				return machines.KillMachine(ctx, &vmctlv1.KillMachineRequest{Name: name})
			},
			"-o json kill -- vm0000", "failed", vmctlv1.MachineState_MACHINE_STATE_FAILED,
		},
		"ResetMachine": {
			func() (ofMachine, error) {
				return machines.ResetMachine(ctx, &vmctlv1.ResetMachineRequest{Name: name})
			},
			"-o json reset -- vm0000", "running", vmctlv1.MachineState_MACHINE_STATE_RUNNING,
		},
		"PauseMachine": {
			func() (ofMachine, error) {
				return machines.PauseMachine(ctx, &vmctlv1.PauseMachineRequest{Name: name})
			},
			"-o json pause -- vm0000", "paused", vmctlv1.MachineState_MACHINE_STATE_PAUSED,
		},
		"ResumeMachine": {
			func() (ofMachine, error) {
				return machines.ResumeMachine(ctx, &vmctlv1.ResumeMachineRequest{Name: name})
			},
			"-o json resume -- vm0000", "running", vmctlv1.MachineState_MACHINE_STATE_RUNNING,
		},
		"SaveMachine": {
			func() (ofMachine, error) {
				return machines.SaveMachine(ctx, &vmctlv1.SaveMachineRequest{Name: name})
			},
			"-o json save -- vm0000", "saved", vmctlv1.MachineState_MACHINE_STATE_SAVED,
		},
	} {
		s.is(t, name, "loading") // which no answer may be
		s.answers(t, "sed s/loading/"+c.state+"/ listvm0000.json >list.new; mv list.new listvm0000.json")
		got, err := c.call()
		want := &vmctlv1.Machine{Name: name, Id: name, State: c.want, Cpus: 1, MemoryBytes: 64 << 20}
		if err != nil || !proto.Equal(got.GetMachine(), want) {
			t.Errorf("%s: %v, %v, want %v", what, got, err, want)
		}
		if s.called() != c.args {
			t.Errorf("%s: called as\n%s, want\n%s", what, s.called(), c.args)
		}
		s.answers(t, fails("4", "not now"))
		if _, err := c.call(); status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "not now" {
			t.Errorf("%s where vmctl refuses: %v", what, err)
		}
	}
	for args, keep := range map[string]bool{"-o json delete --yes -- vm0000": false, "-o json delete --yes --keep-disks -- vm0000": true} {
		request := &vmctlv1.DeleteMachineRequest{Name: name, KeepDisks: keep}
		s.answers(t, "echo '[]'")
		if _, err := machines.DeleteMachine(ctx, request); err != nil || s.called() != args {
			t.Errorf("DeleteMachine: %v, called as\n%s, want\n%s", err, s.called(), args)
		}
		s.answers(t, fails("4", "it runs"))
		if _, err := machines.DeleteMachine(ctx, request); status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "it runs" {
			t.Errorf("DeleteMachine where vmctl refuses: %v", err)
		}
	}
	s.answers(t, "exit 1")
	_, err := machines.KillMachine(ctx, &vmctlv1.KillMachineRequest{Name: "--all"})
	wantCode(t, "a name of no machine", err, codes.InvalidArgument)
	_, err = machines.DeleteMachine(ctx, &vmctlv1.DeleteMachineRequest{Name: "../x"})
	wantCode(t, "a name of no machine", err, codes.InvalidArgument)
	if s.called() != "" {
		t.Errorf("called %s", s.called())
	}
}

// is has vmctl say that a machine is in a state.
func (s *service) is(t testing.TB, name, state string) {
	t.Helper()
	row := fmt.Sprintf(`[{"name": %q, "state": %q, "cpus": 1, "memory_bytes": 67108864}]`, name, state)
	for _, file := range []string{"/list.json", "/list" + name + ".json"} {
		if err := os.WriteFile(s.dir+file, []byte(row), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Each state that vmctl tells has its word in both services, and mvirt's StopVm and
// KillVm end what can be ended in it.
func TestStates(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	ctx := t.Context()
	conn := s.dial(t, operator)
	machines, api := vmctlv1.NewMachineServiceClient(conn), mvirt.NewVmServiceClient(conn)
	const name = "vm0000"
	seen := map[vmctlv1.MachineState]bool{vmctlv1.MachineState_MACHINE_STATE_UNSPECIFIED: true}
	for state, c := range map[string]struct {
		want        vmctlv1.MachineState
		mvirt       mvirt.VmState
		stop, kills bool
	}{
		"stopped":  {vmctlv1.MachineState_MACHINE_STATE_STOPPED, mvirt.VmState_VM_STATE_STOPPED, false, false},
		"starting": {vmctlv1.MachineState_MACHINE_STATE_STARTING, mvirt.VmState_VM_STATE_STARTING, false, false},
		"loading":  {vmctlv1.MachineState_MACHINE_STATE_LOADING, mvirt.VmState_VM_STATE_STARTING, false, false},
		"running":  {vmctlv1.MachineState_MACHINE_STATE_RUNNING, mvirt.VmState_VM_STATE_RUNNING, true, true},
		"paused":   {vmctlv1.MachineState_MACHINE_STATE_PAUSED, mvirt.VmState_VM_STATE_RUNNING, true, true},
		"stopping": {vmctlv1.MachineState_MACHINE_STATE_STOPPING, mvirt.VmState_VM_STATE_STOPPING, false, true},
		"saving":   {vmctlv1.MachineState_MACHINE_STATE_SAVING, mvirt.VmState_VM_STATE_STOPPING, false, true},
		"saved":    {vmctlv1.MachineState_MACHINE_STATE_SAVED, mvirt.VmState_VM_STATE_STOPPED, false, false},
		"failed":   {vmctlv1.MachineState_MACHINE_STATE_FAILED, mvirt.VmState_VM_STATE_STOPPED, false, false},
		"dreaming": {vmctlv1.MachineState_MACHINE_STATE_UNSPECIFIED, mvirt.VmState_VM_STATE_STOPPED, false, false},
	} {
		seen[c.want] = true
		s.is(t, name, state)
		s.answers(t, "")
		one, err := machines.GetMachine(ctx, &vmctlv1.GetMachineRequest{Name: name})
		if err != nil || one.GetMachine().GetState() != c.want {
			t.Errorf("%s: %v, %v, want %v", state, one, err, c.want)
		}
		all, err := machines.ListMachines(ctx, &vmctlv1.ListMachinesRequest{})
		if err != nil || len(all.Machines) != 1 || all.Machines[0].State != c.want {
			t.Errorf("%s: %v, %v, want %v", state, all, err, c.want)
		}
		if vm, err := api.GetVm(ctx, &mvirt.GetVmRequest{Id: name}); err != nil || vm.State != c.mvirt {
			t.Errorf("%s: %v, %v, want %v", state, vm, err, c.mvirt)
		}
		ends := func(what string, can bool, vm *mvirt.Vm, err error, args string) {
			t.Helper()
			if !can {
				args = ""
				if status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "VM is not running" {
					t.Errorf("%s of what is %s: %v", what, state, err)
				}
			} else if err != nil || vm.State != mvirt.VmState_VM_STATE_STOPPING {
				t.Errorf("%s of what is %s: %v, %v", what, state, vm, err)
			}
			// Where there is a systemd, the call may be over before vmctl has begun.
			eventually(t, what+" of what is "+state, func() bool { return s.called() == args })
			s.answers(t, "")
		}
		vm, err := api.StopVm(ctx, &mvirt.StopVmRequest{Id: name, TimeoutSeconds: 9})
		ends("StopVm", c.stop, vm, err, "-o json stop vm0000 --grace 9s")
		vm, err = api.KillVm(ctx, &mvirt.KillVmRequest{Id: name})
		ends("KillVm", c.kills, vm, err, "-o json kill vm0000")
	}
	for value, name := range vmctlv1.MachineState_name {
		if !seen[vmctlv1.MachineState(value)] {
			t.Errorf("%s is the state of no machine", name)
		}
	}
}

// The journal is told of each call who has called what of which machine, how that has
// ended, and how long it took.
func TestCallsAreKept(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	type entry struct {
		call     journal.Call
		text     string
		priority sdjournal.Priority
	}
	kept := make(chan entry, 1)
	s.server.journal = func(c journal.Call, text string, p sdjournal.Priority) { kept <- entry{c, text, p} }
	conn := s.dial(t, operator)
	machines := vmctlv1.NewMachineServiceClient(conn)
	ctx := t.Context()
	start := func() error {
		return second(machines.StartMachine(ctx, &vmctlv1.StartMachineRequest{Name: "vm0000"}))
	}
	for what, c := range map[string]struct {
		script   string
		call     func() error
		want     journal.Call
		begins   string // before the caller
		priority sdjournal.Priority
	}{
		"a change": {
			"", start,
			journal.Call{Method: "/vmctl.v1.MachineService/StartMachine", VM: "vm0000", Code: "OK"},
			"StartMachine vm0000 by ", sdjournal.PriInfo,
		},
		"a change that is refused": {
			fails("4", `not\\nnow`), start,
			journal.Call{Method: "/vmctl.v1.MachineService/StartMachine", VM: "vm0000", Code: "FailedPrecondition", Message: "not now"},
			"StartMachine vm0000 by ", sdjournal.PriNotice,
		},
		"a look": {
			"", func() error {
				return second(machines.GetMachine(ctx, &vmctlv1.GetMachineRequest{Name: "vm0000"}))
			},
			journal.Call{Method: "/vmctl.v1.MachineService/GetMachine", VM: "vm0000", Code: "OK", Look: true},
			"GetMachine vm0000 by ", sdjournal.PriDebug,
		},
		"what is about no machine": {
			"echo '[]'", func() error {
				return second(vmctlv1.NewNetworkServiceClient(conn).DeleteNetwork(ctx, &vmctlv1.DeleteNetworkRequest{Name: "lan"}))
			},
			journal.Call{Method: "/vmctl.v1.NetworkService/DeleteNetwork", Code: "OK"},
			"DeleteNetwork lan by ", sdjournal.PriInfo,
		},
		"mvirt's": {
			"", func() error {
				return second(mvirt.NewVmServiceClient(conn).DeleteVm(ctx, &mvirt.DeleteVmRequest{Id: "vm0000"}))
			},
			journal.Call{Method: "/mvirt.VmService/DeleteVm", VM: "vm0000", Code: "FailedPrecondition", Message: "Cannot delete running VM"},
			"DeleteVm vm0000 by ", sdjournal.PriNotice,
		},
	} {
		s.answers(t, c.script)
		begun := time.Now()
		err := c.call()
		got := <-kept
		if status.Code(err).String() != c.want.Code {
			t.Errorf("%s: %v, want %s", what, err, c.want.Code)
		}
		if took := got.call.Took; took <= 0 || took > time.Since(begun) {
			t.Errorf("%s: took %s", what, took)
		}
		if !strings.Contains(got.call.Peer, fmt.Sprintf("(uid %d, pid %d", os.Getuid(), os.Getpid())) {
			t.Errorf("%s: called by %q", what, got.call.Peer)
		}
		text := fmt.Sprintf("%s%s: %s in %.3f s", c.begins, got.call.Peer, c.want.Code, got.call.Took.Seconds())
		if c.want.Message != "" {
			text += ": " + c.want.Message
		}
		c.want.Peer, c.want.Took = got.call.Peer, got.call.Took
		if got.call != c.want || got.text != text || got.priority != c.priority {
			t.Errorf("%s: kept %+v, want %+v, %q, %v", what, got, c.want, text, c.priority)
		}
	}
}

// Viewers may look, and nothing else, in all services.
func TestServicesOfViewers(t *testing.T) {
	s := newService(t)
	s.answers(t, "echo '[]'")
	conn := s.dial(t, viewer)
	for name, service := range s.grpc.GetServiceInfo() {
		if !strings.HasPrefix(name, "vmctl.v1.") {
			continue
		}
		for _, m := range service.Methods {
			look := strings.HasPrefix(m.Name, "List") || strings.HasPrefix(m.Name, "Get") || strings.HasPrefix(m.Name, "Watch")
			method := "/" + name + "/" + m.Name
			if looks[method] != look {
				t.Errorf("%s: a viewer may call it: %t, want %t", method, looks[method], look)
			}
			if look {
				continue
			}
			stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
			if err == nil {
				_ = stream.SendMsg(&vmctlv1.ListImagesRequest{}) // which is as empty as any
				_ = stream.CloseSend()
				err = stream.RecvMsg(&vmctlv1.ListImagesRequest{})
			}
			wantCode(t, method+" by a viewer", err, codes.PermissionDenied)
		}
	}
}

// lastOf receives to the end of a stream.
func lastOf[T any](stream grpc.ServerStreamingClient[T]) (all []*T, err error) {
	for {
		one, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, one)
	}
}

func TestPullImage(t *testing.T) {
	s := newService(t)
	images := vmctlv1.NewImageServiceClient(s.dial(t, operator))
	s.answers(t, `echo 'vmctl: warning: slow' >&2
echo '{"progress":{"name":"x","phase":"downloading","done_bytes":5,"total_bytes":10,"rate_bytes_per_second":2}}' >&2
echo '[{"name": "x", "fresh": true}]'`)
	stream, err := images.PullImage(t.Context(), &vmctlv1.PullImageRequest{Source: "debian-13", Name: "x", Update: true})
	if err != nil {
		t.Fatal(err)
	}
	all, err := lastOf(stream)
	if err != nil || len(all) != 2 || all[0].GetProgress().GetDoneBytes() != 5 || all[1].GetImage().GetName() != "x" || !all[1].GetFresh() {
		t.Errorf("%v, %v", all, err)
	}
	if want := "-o json image pull --progress --name=x --update -- debian-13"; s.called() != want {
		t.Errorf("called %s, want %s", s.called(), want)
	}
	s.answers(t, fails("3", "no image that can be pulled is named x"))
	if stream, err = images.PullImage(t.Context(), &vmctlv1.PullImageRequest{Source: "x"}); err == nil {
		_, err = lastOf(stream)
	}
	wantCode(t, "an unknown name", err, codes.NotFound)
	imported, err := images.ImportImage(t.Context(), &vmctlv1.ImportImageRequest{File: "x.img"})
	if err == nil {
		_, err = lastOf(imported)
	}
	wantCode(t, "a relative path", err, codes.InvalidArgument)

	// Both where it comes from and what it would be stored as may be somebody else's.
	for _, c := range []struct {
		hidden, source, name string
	}{
		{"x", "x", ""}, {"x", "debian-13", "x"}, {"debian-13", "debian-13", "x"},
		{"x", "https://example.org/a/x.qcow2.xz?b", ""}, {"https://example.org/y", "https://example.org/y", "x"},
		{"x", "/srv/x.img", ""}, {"x", "/srv/y.img", "x"}, {"/srv/x.img", "/srv/x.img", "y"},
	} {
		s.policy = hiding{imageObject, c.hidden}
		s.answers(t, ": >stored")
		if filepath.IsAbs(c.source) {
			if imported, err = images.ImportImage(t.Context(), &vmctlv1.ImportImageRequest{File: c.source, Name: c.name}); err == nil {
				_, err = lastOf(imported)
			}
		} else if stream, err = images.PullImage(t.Context(), &vmctlv1.PullImageRequest{Source: c.source, Name: c.name}); err == nil {
			_, err = lastOf(stream)
		}
		wantCode(t, fmt.Sprint(c), err, codes.PermissionDenied)
		if _, err := os.Stat(filepath.Join(s.dir, "stored")); err == nil {
			t.Errorf("%v: it was stored all the same", c)
		}
	}
	s.policy = hiding{} // nothing

	// Who never reads how far it is holds nothing up.
	s.answers(t, `i=0; while [ $i -lt 20000 ]; do echo '{"progress":{"name":"x","phase":"downloading"}}' >&2; i=$((i+1)); done
: >done; echo '[{"name": "x"}]'`)
	if stream, err = images.PullImage(t.Context(), &vmctlv1.PullImageRequest{Source: "x"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pull ends", func() bool {
		_, err := os.Stat(filepath.Join(s.dir, "done"))
		return err == nil
	})
	if all, err := lastOf(stream); err != nil || all[len(all)-1].GetImage() == nil {
		t.Errorf("%d messages, %v", len(all), err)
	}
	// Who leaves breaks it off.
	s.answers(t, "trap ': >ended; exit 1' TERM; : >begun; while :; do sleep 0.1; done")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err = images.PullImage(ctx, &vmctlv1.PullImageRequest{Source: "x"}); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"begun", "ended"} {
		eventually(t, "it has "+file, func() bool {
			_, err := os.Stat(filepath.Join(s.dir, file))
			return err == nil
		})
		cancel()
	}
}

func TestApplyEnvironment(t *testing.T) {
	s := newService(t)
	environments := vmctlv1.NewEnvironmentServiceClient(s.dial(t, operator))
	const steps = `"steps": [{"action": "create", "kind": "vm", "name": "web", "result": "%s", "differences": [{"key": "cpus", "from": "1", "to": "2"}]}], "pending_restart": ["db"], "warnings": [{"key": "cpus", "text": "many"}]`
	step := func(result string) string { return strings.Replace(steps, "%s", result, 1) }
	apply := func() ([]*vmctlv1.ApplyEnvironmentResponse, error) {
		stream, err := environments.ApplyEnvironment(t.Context(), &vmctlv1.ApplyEnvironmentRequest{Environment: &vmctlv1.Environment{Name: "shop", Text: "[vm.web]\n", Prune: true}})
		if err != nil {
			return nil, err
		}
		return lastOf(stream)
	}
	plan := `case $* in *--check*) cat >text; echo '{"changed": true, ` + step("planned") + `}'; ` + fails("10", "there are changes") + `;; esac
`
	s.answers(t, plan+`cat >/dev/null
echo '{"progress":{"action":"create","kind":"vm","name":"web","result":"done"}}' >&2
echo '{"changed": true, `+step("done")+`}'; `+fails("10", "there are changes"))
	checked, err := environments.CheckEnvironment(t.Context(), &vmctlv1.CheckEnvironmentRequest{Environment: &vmctlv1.Environment{Name: "shop", Text: "[vm.web]\n"}})
	if err != nil || !checked.Result.Changed || checked.Result.Steps[0].Result != vmctlv1.StepResult_STEP_RESULT_PLANNED ||
		checked.Result.Steps[0].Differences[0].To != "2" || !slices.Equal(checked.Result.Warnings, []string{"cpus: many"}) {
		t.Errorf("%v, %v", checked, err)
	}
	if text, _ := os.ReadFile(s.dir + "/text"); string(text) != "[vm.web]\n" {
		t.Errorf("vmctl was given %q", text)
	}
	_ = os.Remove(s.dir + "/called")
	all, err := apply()
	if err != nil || len(all) != 2 || all[0].GetStep().GetResult() != vmctlv1.StepResult_STEP_RESULT_DONE || !slices.Equal(all[1].GetResult().GetPendingRestart(), []string{"db"}) {
		t.Errorf("%v, %v", all, err)
	}
	if want := "-o json apply --name=shop --check --prune -\n-o json apply --name=shop --yes --progress --prune -"; s.called() != want {
		t.Errorf("called\n%s, want\n%s", s.called(), want)
	}
	s.answers(t, plan+`cat >/dev/null; echo '{"changed": true, `+step("failed")+`}'; `+fails("1", "not all could be done: web"))
	all, err = apply()
	wantCode(t, "a step that fails", err, codes.Internal)
	if len(all) != 1 || all[0].GetResult().GetSteps()[0].GetResult() != vmctlv1.StepResult_STEP_RESULT_FAILED {
		t.Errorf("%v", all)
	}
	s.answers(t, fails("6", "stdin:1: vm.web: unknown key"))
	_, err = apply()
	wantCode(t, "a text that is no environment", err, codes.InvalidArgument)
	_, err = environments.CheckEnvironment(t.Context(), &vmctlv1.CheckEnvironmentRequest{})
	wantCode(t, "no name", err, codes.InvalidArgument)
	// Whoever may not use a machine does not change it by this either.
	for _, kind := range config.Kinds() {
		s.policy = hiding{string(kind), "web"}
		s.answers(t, strings.Replace(plan, `"kind": "vm"`, `"kind": "`+string(kind)+`"`, 1)+": >applied")
		_, err = apply()
		wantCode(t, "a "+string(kind)+" of others", err, codes.PermissionDenied)
		if _, err := os.Stat(s.dir + "/applied"); err == nil {
			t.Error("it was applied all the same")
		}
	}
}

// hiding is a policy that keeps one thing from all callers.
type hiding object

func (h hiding) check(_ context.Context, _ *call, objects []object) []error {
	out := make([]error, len(objects))
	for i, o := range objects {
		if o == object(h) {
			out[i] = status.Error(codes.PermissionDenied, "hidden")
		}
	}
	return out
}

// A machine that the caller may not use shows up nowhere.
func TestHidden(t *testing.T) {
	s := newService(t)
	s.define(t, 3)
	s.policy = hiding{vmObject, "vm0001"}
	conn := s.dial(t, operator)
	vms, machines := mvirt.NewVmServiceClient(conn), vmctlv1.NewMachineServiceClient(conn)
	list, err := vms.ListVms(t.Context(), &mvirt.ListVmsRequest{})
	if err != nil || len(list.Vms) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	all, err := machines.ListMachines(t.Context(), &vmctlv1.ListMachinesRequest{})
	if err != nil || len(all.Machines) != 2 {
		t.Errorf("%v, %v", all, err)
	}
	stream, err := vms.WatchVms(t.Context(), &mvirt.WatchVmsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for range 2 {
		e, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, e.VmId)
	}
	os.Remove(s.paths.VMDirs[1] + "/vm0001.toml")
	eventually(t, "the service knows that it is gone", func() bool {
		s.watch.mu.Lock()
		defer s.watch.mu.Unlock()
		_, known := s.watch.known["vm0001"]
		return !known
	})
	os.Remove(s.paths.VMDirs[1] + "/vm0002.toml")
	e, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if seen = append(seen, e.VmId); !slices.Equal(seen, []string{"vm0000", "vm0002", "vm0002"}) {
		t.Errorf("told of %v", seen)
	}
}

// exec runs a command, with input, and returns what it wrote.
func execute(ctx context.Context, conn *grpc.ClientConn, requests ...*vmctlv1.ExecRequest) (stdout, stderr string, exit int, err error) {
	stream, err := vmctlv1.NewExecServiceClient(conn).Exec(ctx)
	if err != nil {
		return "", "", -1, err
	}
	for _, r := range requests {
		// How it ended is told by what is received.
		_ = stream.Send(r)
	}
	_ = stream.CloseSend()
	for exit = -1; ; {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stdout, stderr, exit, nil
		}
		if err != nil {
			return stdout, stderr, exit, err
		}
		stdout, stderr = stdout+string(r.GetStdout()), stderr+string(r.GetStderr())
		if e, ok := r.Part.(*vmctlv1.ExecResponse_ExitStatus); ok {
			exit = int(e.ExitStatus)
		}
	}
}

func TestExec(t *testing.T) {
	s := newService(t)
	conn := s.dial(t, operator)
	command := &vmctlv1.ExecRequest{Part: &vmctlv1.ExecRequest_Command{Command: &vmctlv1.ExecCommand{
		Machine: "web", Argv: []string{"--help", "a b"}, User: "me", Environment: []string{"A=1", "B=2"}, TimeoutSeconds: 90,
	}}}
	input := func(text string) *vmctlv1.ExecRequest {
		return &vmctlv1.ExecRequest{Part: &vmctlv1.ExecRequest_Stdin{Stdin: []byte(text)}}
	}
	s.answers(t, `echo "{\"stdout\": \"$(base64 -w0)\"}"; echo '{"stderr": "b29wcw=="}'; echo '{"exit_status": 3}'; `+fails("3", "exec in web: the command ended with exit status 3"))
	stdout, stderr, exit, err := execute(t.Context(), conn, command, input("one "), input("two"))
	if stdout != "one two" || stderr != "oops" || exit != 3 || err != nil {
		t.Errorf("%q, %q, %d, %v", stdout, stderr, exit, err)
	}
	if want := "-o json exec --stream --user=me --env=A=1 --env=B=2 --timeout=90s -- web --help a b"; s.called() != want {
		t.Errorf("called %s, want %s", s.called(), want)
	}
	s.answers(t, fails("3", "no VM is named web"))
	_, _, exit, err = execute(t.Context(), conn, command)
	wantCode(t, "no such machine", err, codes.NotFound)
	if exit != -1 {
		t.Errorf("it has ended with %d", exit)
	}
	s.answers(t, "exec 3<&0; cat <&3 >input & trap \"kill $!\" TERM; wait $! && : >whole && echo '{\"exit_status\": 0}'")
	for what, requests := range map[string][]*vmctlv1.ExecRequest{
		"nothing": nil, "input alone": {input("x")}, "two commands": {command, input("x"), command},
		"no program": {{Part: &vmctlv1.ExecRequest_Command{Command: &vmctlv1.ExecCommand{Machine: "web"}}}},
	} {
		_, _, _, err := execute(t.Context(), conn, requests...)
		wantCode(t, what, err, codes.InvalidArgument)
	}
	// Input that breaks off is nobody's whole input.
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := vmctlv1.NewExecServiceClient(conn).Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*vmctlv1.ExecRequest{command, input("half")} {
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "half of it is there", func() bool {
		text, _ := os.ReadFile(s.dir + "/input")
		return string(text) == "half"
	})
	cancel()
	eventually(t, "the call has ended", func() bool { return s.commands.long.now() == 0 })
	if _, err := os.Stat(s.dir + "/whole"); err == nil {
		t.Error("the command took half of its input for all of it")
	}
}

// Calls that take long have a limit of their own, and keep no others waiting.
func TestTooManyLong(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	s.commands.long = newCounts("calls are under way", 1, 1)
	machines := vmctlv1.NewMachineServiceClient(s.dial(t, operator))
	watch := func() vmctlv1.MachineService_WatchEventsClient {
		stream, err := machines.WatchEvents(t.Context(), &vmctlv1.WatchEventsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	watch()
	eventually(t, "one is under way", func() bool { return s.commands.long.now() == 1 })
	_, err := watch().Recv()
	wantCode(t, "one too many", err, codes.ResourceExhausted)
	if _, err := machines.ListMachines(t.Context(), &vmctlv1.ListMachinesRequest{}); err != nil {
		t.Error(err)
	}
}

// now is how many there are.
func (c *counts) now() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

func TestFileNames(t *testing.T) {
	const id = "8C5a2f0e-1f4b-4c3d-9a6e-0b1c2d3e4f50"
	for name, want := range map[string][]string{
		"web":          {"web", "web-8c5a2f0e", "web-8c5a2f0e-1f4b-4c3d-9"},
		"Web Server 7": {"web-server-7", "web-server-7-8c5a2f0e", "web-server-7-8c5a2f0e-1f4b-4c3d-9"},
		"":             {"vm-8c5a2f0e", "vm-8c5a2f0e-1f4b-4c3d-9a6e-0b1c2d3e4f50"},
		"é / ü":        {"vm-8c5a2f0e", "vm-8c5a2f0e-1f4b-4c3d-9a6e-0b1c2d3e4f50"},
		"../../x":      {"x", "x-8c5a2f0e", "x-8c5a2f0e-1f4b-4c3d-9"},
		strings.Repeat("ab-", 30): {strings.Repeat("ab-", 13) + "a", strings.Repeat("ab-", 13) + "a-8c5a2f0e",
			strings.Repeat("ab-", 13) + "a-8c5a2f0e-1f4b-4c3d-9"},
	} {
		got := fileNames(name, id)
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
		for _, name := range got {
			if err := config.CheckName(name); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestCreateSettings(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	kernel, disk, socket := file("kernel"), file("disk"), file("socket")
	uefi := hypervisor.Host{Firmware: make([]hypervisor.Firmware, 1)}
	for what, c := range map[string]struct {
		config *mvirt.VmConfig
		host   hypervisor.Host
		want   string // words, or how the error begins
	}{
		"kernel, as by the first version": {&mvirt.VmConfig{Vcpus: 2, MemoryMb: 512, Kernel: &kernel, NestedVirt: true}, uefi,
			"cpus=2 memory=512M boot.kernel=" + kernel},
		"disk": {&mvirt.VmConfig{Vcpus: 1, MemoryMb: 1, Disks: []*mvirt.DiskConfig{{Path: disk, Readonly: true}}}, uefi,
			"cpus=1 memory=1M boot.firmware=uefi cpu.features=-vmx cpu.features=-svm disk.disk0.path=" + disk + " disk.disk0.readonly=true"},
		"disk, on a host without UEFI": {&mvirt.VmConfig{Vcpus: 1, MemoryMb: 1, BootMode: mvirt.BootMode_BOOT_MODE_DISK, Kernel: &kernel, NestedVirt: true,
			Disks: []*mvirt.DiskConfig{{Path: disk}}}, hypervisor.Host{}, "cpus=1 memory=1M disk.disk0.path=" + disk},
		"cards": {&mvirt.VmConfig{Kernel: &kernel, NestedVirt: true, Nics: []*mvirt.NicConfig{
			{Tap: new("t"), VhostSocket: new("/x")}, {VhostSocket: new("tap:u")}, {VhostSocket: new("vhost-user:" + socket)}, {VhostSocket: &socket, Mac: new("52:54:00:00:00:01")}, {}}}, uefi,
			"cpus=0 memory=0M boot.kernel=" + kernel + " nic.nic0.tap=t nic.nic1.tap=u nic.nic2.vhost_user=" + socket + " nic.nic3.vhost_user=" + socket +
				" nic.nic3.mac=52:54:00:00:00:01 nic.nic4.enabled=true"},
		"a NUL":           {&mvirt.VmConfig{Kernel: &kernel, Cmdline: new("a\x00b")}, uefi, "boot.cmdline: want"},
		"a relative path": {&mvirt.VmConfig{Kernel: new("kernel")}, uefi, "kernel: want an absolute path"},
		"a long text":     {&mvirt.VmConfig{Kernel: &kernel, Cmdline: new(strings.Repeat("x", 1<<17))}, uefi, "boot.cmdline: want"},
	} {
		got, err := createSettings(c.config, c.host)
		text := strings.Join(got, " ")
		if err != nil {
			text = err.Error()
		}
		if text != c.want && !(err != nil && strings.HasPrefix(text, c.want)) {
			t.Errorf("%s:\n%s, want\n%s", what, text, c.want)
		}
	}
}

// User data, which may have secrets, are in no list: what GetVm tells polkit can
// deny for each machine.
func TestUserData(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	file := filepath.Join(s.paths.VMDirs[1], "vm0000.toml")
	if err := os.WriteFile(file, []byte("[disk.root]\nsize = \"1G\"\n[cloud_init]\nuser_data = \"#cloud-config\\n\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	api := s.local(t, operator)
	list, err := api.ListVms(t.Context(), &mvirt.ListVmsRequest{})
	if err != nil || len(list.Vms) != 1 {
		t.Fatal(list, err)
	}
	stream, err := api.WatchVms(t.Context(), &mvirt.WatchVmsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	id := list.Vms[0].Id
	seen, err := s.local(t, viewer).GetVm(t.Context(), &mvirt.GetVmRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	for what, vm := range map[string]*mvirt.Vm{"a list": list.Vms[0], "a watch": first.Vm, "a viewer": seen} {
		if vm.Config.UserData != nil {
			t.Errorf("%s has the user data", what)
		}
	}
	if vm, err := api.GetVm(t.Context(), &mvirt.GetVmRequest{Id: id}); err != nil || vm.Config.GetUserData() != "#cloud-config\n" {
		t.Errorf("%v, %v", vm, err)
	}
}

// What is being started or stopped is not deleted under way, as mvirt did.
func TestDeleteUnderWay(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	s.answers(t, fails("4", "invalid transition"))
	api := s.local(t, operator)
	for _, state := range []string{starting, stopping, saving, loading} {
		if err := os.WriteFile(s.dir+"/listvm0000.json", []byte(`[{"name": "vm0000", "state": "`+state+`"}]`), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := api.DeleteVm(t.Context(), &mvirt.DeleteVmRequest{Id: "vm0000"})
		wantCode(t, state, err, codes.FailedPrecondition)
	}
	if want := strings.TrimSpace(strings.Repeat("-o json delete --yes --keep-disks vm0000\n", 4)); s.called() != want {
		t.Errorf("called %s", s.called())
	}
}

// A card that is plugged in is what it would be in a new machine.
func TestAttachNic(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	s.answers(t, "")
	api := s.local(t, operator)
	_, err := api.AttachNic(t.Context(), &mvirt.AttachNicRequest{VmId: "vm0000"})
	wantCode(t, "no default network", err, codes.InvalidArgument)
	settings := filepath.Join(s.paths.SettingsDirs[0], "vmctl.toml")
	if err := os.MkdirAll(filepath.Dir(settings), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(settings, []byte("network = \"lan\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		nic  *mvirt.NicConfig
		want string
	}{
		{&mvirt.NicConfig{Tap: new("tap7")}, "--tap tap7"},
		{&mvirt.NicConfig{VhostSocket: new("tap:tap8"), Mac: new("52:54:00:00:00:01")}, "--tap tap8 --mac 52:54:00:00:00:01"},
		{&mvirt.NicConfig{VhostSocket: new("/run/x.sock")}, "--vhost-user /run/x.sock"},
		{&mvirt.NicConfig{}, "--network lan"},
		{nil, "--network lan"},
	} {
		if _, err := api.AttachNic(t.Context(), &mvirt.AttachNicRequest{VmId: "vm0000", Nic: c.nic}); err != nil {
			t.Errorf("%v: %v", c.nic, err)
		}
		if want := "-o json nic attach --persist " + c.want + " vm0000 nic0"; s.called() != want {
			t.Errorf("%v: called %s, want %s", c.nic, s.called(), want)
		}
		s.answers(t, "")
	}
}

func TestStartError(t *testing.T) {
	for exit, want := range map[int]codes.Code{
		exitFailed: codes.Internal, exitTimeout: codes.Internal, exitInvalid: codes.FailedPrecondition,
		exitWrongState: codes.FailedPrecondition, exitNotFound: codes.NotFound,
	} {
		err := startError(&commandError{Message: "cause", Status: exit})
		wantCode(t, "an exit with "+strconv.Itoa(exit), err, want)
		if text := status.Convert(err).Message(); text != "Failed to start VM: cause" {
			t.Error(text)
		}
	}
}

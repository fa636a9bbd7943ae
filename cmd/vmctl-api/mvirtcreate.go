package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// maxValue is how long one key may be, in bytes: the kernel takes no longer
// argument of a program than 128 KiB.
const maxValue = 64 << 10

// noNested are the CPU flags that take nested virtualization from a guest.
var noNested = []string{"-vmx", "-svm"}

func (s *mvirtService) CreateVm(ctx context.Context, r *mvirt.CreateVmRequest) (*mvirt.Vm, error) {
	settings, err := createSettings(r.GetConfig(), hypervisor.Probe(""))
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	id := r.GetId()
	if id == "" {
		id = newUUID()
	}
	// Whether an id is free can be told of one call at a time.
	select {
	case s.creating <- struct{}{}:
		defer func() { <-s.creating }()
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	switch _, _, err := s.nameOf(ctx, id); status.Code(err) {
	case codes.NotFound:
	case codes.OK, codes.PermissionDenied:
		return nil, status.Errorf(codes.Internal, "VM %s exists already", id)
	default:
		return nil, err
	}
	if config.CheckUUID(id) == nil && strings.ToLower(id) == id {
		settings = append(settings, "uuid="+id)
	} else {
		settings = append(settings, "api.id="+id)
	}
	for _, name := range fileNames(r.GetName(), id) {
		if err := s.allow(ctx, name); err != nil {
			return nil, err
		}
		err = s.create(ctx, name, r, settings)
		if e, ok := errors.AsType[*commandError](err); !ok || e.Status != exitWrongState {
			break // all but that the name is taken
		}
	}
	if err != nil {
		return nil, statusOf("", err)
	}
	m, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.toVM(ctx, m), nil
}

// create has vmctl write the definition.
func (s *mvirtService) create(ctx context.Context, name string, r *mvirt.CreateVmRequest, settings []string) error {
	cmd := vmctl("create")
	cmd.quick = true
	if want := r.GetName(); want != "" && want != name {
		settings = append(slices.Clip(settings), "api.name="+want)
	}
	for _, setting := range settings {
		cmd.args = append(cmd.args, "--set", setting)
	}
	if text := r.GetConfig().GetUserData(); text != "" {
		cmd.args, cmd.stdin = append(cmd.args, "--user-data", "-"), text
	}
	cmd.args = append(cmd.args, "--", name)
	return s.commands.run(ctx, cmd, nil)
}

// createSettings are the keys of the definition that a configuration becomes. What
// vmctl would find wrong with them it says itself.
func createSettings(c *mvirt.VmConfig, host hypervisor.Host) ([]string, error) {
	if c == nil {
		return nil, errors.New("config is required")
	}
	settings := []string{
		"cpus=" + strconv.FormatUint(uint64(c.GetVcpus()), 10),
		"memory=" + strconv.FormatUint(c.GetMemoryMb(), 10) + "M",
	}
	boot, err := bootSettings(c, host)
	if err != nil {
		return nil, err
	}
	settings = append(settings, boot...)
	if !c.GetNestedVirt() {
		for _, flag := range noNested {
			settings = append(settings, "cpu.features="+flag)
		}
	}
	for i, d := range c.GetDisks() {
		if err := checkFile("disk", d.GetPath()); err != nil {
			return nil, err
		}
		disk := "disk." + diskName(i)
		settings = append(settings, disk+".path="+d.GetPath())
		if d.GetReadonly() {
			settings = append(settings, disk+".readonly=true")
		}
	}
	for i, n := range c.GetNics() {
		nic, err := nicSettings("nic."+nicName(i), n)
		if err != nil {
			return nil, err
		}
		settings = append(settings, nic...)
	}
	if _, file := config.Text(c.GetUserData()).Path(); file {
		return nil, errors.New("user_data: want the text itself, got a path")
	}
	for _, setting := range settings {
		key, value, _ := strings.Cut(setting, "=")
		if strings.Contains(value, "\x00") || len(value) > maxValue {
			return nil, fmt.Errorf("%s: want at most %d bytes without NUL", key, maxValue)
		}
	}
	return settings, nil
}

// bootSettings decide what is booted: clients of mvirt's first version say no
// mode, and always mean the kernel that they give.
func bootSettings(c *mvirt.VmConfig, host hypervisor.Host) ([]string, error) {
	kernel := c.GetKernel()
	mode := c.GetBootMode()
	if mode == mvirt.BootMode_BOOT_MODE_KERNEL && kernel == "" {
		return nil, errors.New("Kernel boot mode requires kernel path")
	}
	if mode == mvirt.BootMode_BOOT_MODE_KERNEL || mode == mvirt.BootMode_BOOT_MODE_UNSPECIFIED && kernel != "" {
		settings := []string{}
		for _, f := range []struct{ what, key, path string }{{"kernel", "boot.kernel", kernel}, {"initramfs", "boot.initrd", c.GetInitramfs()}} {
			if f.path == "" {
				continue
			}
			if err := checkFile(f.what, f.path); err != nil {
				return nil, err
			}
			settings = append(settings, f.key+"="+f.path)
		}
		if c.GetCmdline() != "" {
			settings = append(settings, "boot.cmdline="+c.GetCmdline())
		}
		return settings, nil
	}
	if len(c.GetDisks()) == 0 {
		return nil, errors.New("Disk boot mode requires at least one disk")
	}
	// As mvirt's machines have, where the host has it.
	if len(host.Firmware) > 0 {
		return []string{"boot.firmware=uefi"}, nil
	}
	return nil, nil
}

// checkFile refuses what is not there: mvirt's clients are told of no warnings.
func checkFile(what, path string) error {
	if !strings.HasPrefix(path, "/") {
		return fmt.Errorf("%s: want an absolute path, got %q", what, path)
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// nicSettings are the keys of a network card.
func nicSettings(table string, n *mvirt.NicConfig) ([]string, error) {
	var settings []string
	tap, socket := nicSource(n)
	switch {
	case tap != "":
		settings = append(settings, table+".tap="+tap)
	case socket != "":
		if err := checkFile("vhost_socket", socket); err != nil {
			return nil, err
		}
		settings = append(settings, table+".vhost_user="+socket)
	}
	if n.GetMac() != "" {
		settings = append(settings, table+".mac="+n.GetMac())
	}
	if len(settings) == 0 {
		// The host's default network.
		settings = append(settings, table+".enabled=true")
	}
	return settings, nil
}

// nicSource is what a card is plugged into: an interface, or the socket of a
// peer.
func nicSource(n *mvirt.NicConfig) (tap, socket string) {
	if n.GetTap() != "" {
		return n.GetTap(), ""
	}
	text := n.GetVhostSocket()
	if tap, ok := strings.CutPrefix(text, "tap:"); ok {
		return tap, ""
	}
	return "", strings.TrimPrefix(text, "vhost-user:")
}

func diskName(i int) string { return "disk" + strconv.Itoa(i) }
func nicName(i int) string  { return "nic" + strconv.Itoa(i) }

// fileNames are names that a machine can have, the best first. Names of mvirt's
// machines are any text, not of their own, and may be left out.
func fileNames(name, id string) []string {
	plain := config.PlainName(name, 40)
	if plain == "" {
		return []string{namelessName(id), "vm-" + config.PlainName(id, 60)}
	}
	names := []string{plain, plain + "-" + config.PlainName(id, 8), plain + "-" + config.PlainName(id, 20)}
	if config.CheckName(name) == nil {
		names = slices.Concat([]string{name}, names)
	}
	return slices.Compact(names)
}

// namelessName is the name of a machine that was given none.
func namelessName(id string) string { return "vm-" + config.PlainName(id, 8) }

// newUUID is a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

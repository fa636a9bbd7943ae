package main

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/all"
	"github.com/vmctl/vmctl/packaging/man/roff"
)

// got ends a refusal: what an example had.
var got = regexp.MustCompile(`( \(\d+\))?, got .*$`)

// differences is what hypervisors cannot do, key by key: what they refuse of
// machines that use every key, on a host with everything. What all can is left out.
func differences() string {
	host := hypervisor.Host{
		CPUVirtualization: true,
		HugepageSize:      2 << 20,
		Nodes:             map[string]bool{"/dev/kvm": true, "/dev/vhost-vsock": true, "/dev/vhost-net": true, "/dev/net/tun": true},
		Programs:          map[string]string{},
		CloudFirmware:     []string{"/usr/share/cloud-hypervisor/CLOUDHV.fd"},
	}
	for _, program := range []string{"qemu-system-x86_64", "cloud-hypervisor", "virtiofsd", "swtpm", "passt"} {
		host.Programs[program] = "/usr/bin/" + program
	}
	refused := map[string]map[string][]string{} // by key, then by hypervisor
	for _, h := range all.Table() {
		for _, m := range config.Examples() {
			_, problems := h.Plan(m, host, config.SystemPaths(""))
			for _, p := range problems {
				value, rest, ok := strings.Cut(p.Text, "not supported by "+h.Name())
				if !ok {
					continue
				}
				key := general(p.Key)
				if strings.HasPrefix(key, "credentials.") { // whose names have dots
					key = "credentials.NAME"
				}
				if refused[key] == nil {
					refused[key] = map[string][]string{}
				}
				text := cannot(strings.TrimSuffix(value, " is "), got.ReplaceAllString(rest, ""))
				if !slices.Contains(refused[key][h.Name()], text) {
					refused[key][h.Name()] = append(refused[key][h.Name()], text)
				}
			}
		}
	}
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(refused)) {
		fmt.Fprintf(&b, ".TP\n.B %s\n", roff.Escape(key))
		for i, h := range all.Table() {
			texts := refused[key][h.Name()]
			if texts == nil {
				texts = []string{"yes"}
			}
			if i > 0 {
				b.WriteString(".br\n")
			}
			fmt.Fprintf(&b, "%s: %s.\n", roff.Escape(h.Name()), roff.Escape(strings.Join(texts, "; ")))
		}
	}
	return b.String()
}

// cannot is how the table says that a hypervisor does not support a value, or "" for the
// key; rest is what its refusal has after that.
func cannot(value, rest string) string {
	if value != "" {
		return "no " + value + rest
	}
	if rest == " yet" {
		return "not yet"
	}
	if wanted, ok := strings.CutPrefix(rest, ": want "); ok {
		return "takes " + wanted
	}
	return "no" + rest
}

// ability is what can be done to a machine that runs, and the interface that a
// hypervisor's control has for it.
type ability struct {
	commands string
	by       reflect.Type
}

var abilities = []ability{
	{"vmctl pause, resume, reset, stop, kill, console", reflect.TypeFor[hypervisor.Control]()},
	{"vmctl save", reflect.TypeFor[hypervisor.StateSaver]()},
	{"vmctl snapshot", reflect.TypeFor[hypervisor.DiskSnapshotter]()},
	{"vmctl backup", reflect.TypeFor[hypervisor.DiskCopier]()},
	{"vmctl disk attach, detach, resize", reflect.TypeFor[hypervisor.DiskHotplug]()},
	{"vmctl disk throttle", reflect.TypeFor[hypervisor.Throttler]()},
	{"vmctl nic attach, detach", reflect.TypeFor[hypervisor.NICHotplug]()},
	{"vmctl share attach, detach", reflect.TypeFor[hypervisor.ShareHotplug]()},
	{"vmctl set, balloon", reflect.TypeFor[hypervisor.Resizer]()},
	{"vmctl view, screenshot", reflect.TypeFor[hypervisor.DisplayControl]()},
	{"vmctl sendkey", reflect.TypeFor[hypervisor.KeySender]()},
	{"vmctl exec, copy (by the guest agent)", reflect.TypeFor[hypervisor.AgentWatcher]()},
	{"vmctl monitor --command", reflect.TypeFor[hypervisor.Commander]()},
	{"vmctl metrics: what passes a disk", reflect.TypeFor[hypervisor.DiskMeter]()},
	{"vmctl metrics: memory that the guest uses", reflect.TypeFor[hypervisor.MemoryMeter]()},
}

// commands is what hypervisors can do to machines that run.
func commands() string {
	var b strings.Builder
	for _, a := range abilities {
		fmt.Fprintf(&b, ".TP\n.B %s\n", roff.Escape(a.commands))
		for i, h := range all.Table() {
			if i > 0 {
				b.WriteString(".br\n")
			}
			can := "no"
			if h.ControlType().Implements(a.by) {
				can = "yes"
			}
			fmt.Fprintf(&b, "%s: %s.\n", roff.Escape(h.Name()), can)
		}
	}
	return b.String()
}

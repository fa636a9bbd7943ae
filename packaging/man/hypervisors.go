package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/all"
	"github.com/vmctl/vmctl/packaging/man/roff"
)

// got ends a refusal: what an example had.
var got = regexp.MustCompile(`, got .*$`)

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
				text := "no" + strings.TrimRight(" "+strings.TrimSuffix(value, " is "), " ") + got.ReplaceAllString(rest, "")
				if text == "no yet" {
					text = "not yet"
				}
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

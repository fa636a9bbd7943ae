package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

func TestCheckHost(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", filepath.Join(root, "dev/null")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		machine config.Machine
		plan    hypervisor.Plan
		key     string
		text    string
	}{
		{config.Machine{}, hypervisor.Plan{Devices: []string{"/dev/no-such-node"}}, "", "/dev/no-such-node: does not exist on this host"},
		{config.Machine{Memory: 3 << 20}, hypervisor.Plan{HugepageSize: 2 << 20 << 30}, "memory_options.hugepages", "want 1 free pages of "},
		{config.Machine{Accel: "auto"}, hypervisor.Plan{Devices: []string{hypervisor.KVM}}, "", ""},
		{config.Machine{}, hypervisor.Plan{Devices: []string{"/dev/null"}}, "", ""},
	} {
		problems := app{paths: config.SystemPaths(root)}.checkHost(&test.machine, &test.plan)
		if test.text == "" {
			if len(problems) > 0 {
				t.Errorf("%+v: got %v", test.plan, problems)
			}
			continue
		}
		if len(problems) != 1 || problems[0].Key != test.key || !strings.HasPrefix(problems[0].Text, test.text) {
			t.Errorf("%+v: got %v, want %s: %s", test.plan, problems, test.key, test.text)
		}
	}
	for node, key := range map[string]string{"/dev/vhost-vsock": "vsock.enabled", "/dev/net/tun": "nic"} {
		if got := nodeKey(node); got != key {
			t.Errorf("%s: got %q, want %q", node, got, key)
		}
	}
}

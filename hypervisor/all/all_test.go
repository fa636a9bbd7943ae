package all

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

func TestTable(t *testing.T) {
	var names []string
	for _, h := range Table() {
		if slices.Contains(names, h.Name()) {
			t.Errorf("%s is there twice", h.Name())
		}
		names = append(names, h.Name())
		if got, ok := ByName(h.Name()); !ok || got != h {
			t.Errorf("ByName(%q) is %v, %v", h.Name(), got, ok)
		}
	}
	if _, ok := ByName("bochs"); ok {
		t.Error("ByName finds what is not there")
	}
	_, problems := Plan(&config.Machine{Hypervisor: "bochs"}, hypervisor.Host{}, config.Paths{})
	if len(problems) != 1 || problems[0].Key != "hypervisor" || problems[0].Text != "not supported yet: bochs" {
		t.Errorf("got %v", problems)
	}
}

// What plans machines is linked into the generator, and may know neither units
// nor networks.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for banned, why := range map[string]string{
		"github.com/vmctl/vmctl/units":     "a hypervisor knows no units",
		"github.com/vmctl/vmctl/netsetup":  "a hypervisor is given its network",
		"github.com/vmctl/vmctl/cloudinit": "a hypervisor only attaches the seed",
		"github.com/godbus":                "D-Bus is not there when generators run",
		"github.com/coreos/go-systemd":     "the same",
		"github.com/vishvananda/netlink":   "the generator must start fast",
		"github.com/spf13/cobra":           "the same",
	} {
		for dep := range strings.Lines(string(out)) {
			if strings.HasPrefix(dep, banned) {
				t.Errorf("imports %s: %s", strings.TrimSpace(dep), why)
			}
		}
	}
}

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// A drop-in is refused for what the definition would have wrong beside others, but
// not for what it has wrong already.
func TestPlanDropIn(t *testing.T) {
	root := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(root, "etc/vmctl", path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write("networks/lab.toml", "subnet = \"10.77.0.0/24\"\n")
	write("vms/a.toml", "[nic.lan]\nnetwork = \"lab\"\naddress = \"10.77.0.50\"\n")
	write("vms/b.toml", "[nic.lan]\nnetwork = \"lab\"\n")
	a := newApp()
	a.paths = config.SystemPaths(root)
	plan := func(text string) error {
		t.Helper()
		set, err := config.Load(a.paths)
		if err != nil {
			t.Fatal(err)
		}
		vm := set.VMs[1]
		_, err = a.planDropIn(vm, a.paths.SetDropIn(vm), text)
		return err
	}
	for text, want := range map[string]string{
		"description = \"x\"":                    "",
		"nic.lan.address = \"10.77.0.51\"":       "",
		"nic.lan.address = \"10.77.0.50\"":       "10.77.0.50",
		"nic.lan.address = \"10.77.1.5\"":        "want an address of the network lab",
		"nic.lan.network = \"nope\"":             "want a network that is defined",
		"nic.lan.security_groups = [\"nobody\"]": "want a security group that is defined",
	} {
		err := plan(config.DropInMark + "it\n" + text + "\n")
		if err == nil && want != "" || err != nil && (want == "" || exitStatus(err) != exitInvalid || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
	write("vms/b.toml", "[nic.lan]\nnetwork = \"lab\"\naddress = \"10.77.0.50\"\n")
	if err := plan(config.DropInMark + "it\ndescription = \"x\"\n"); err != nil {
		t.Errorf("for what was wrong before: %v", err)
	}
}

// A disk that is plugged in has the defaults of the machine's hypervisor.
func TestAlone(t *testing.T) {
	a := newApp()
	a.paths = config.SystemPaths(t.TempDir())
	for hypervisor, want := range map[string]string{"qemu": "qcow2", "cloud-hypervisor": "raw"} {
		vm := config.Parse(a.paths, "web.toml", "hypervisor = \""+hypervisor+"\"\nboot.kernel = \"/k\"\n")
		c := &hotChange{app: a, look: look{vm: vm}}
		draft := config.NewDraft()
		if err := draft.Set("disk.data.size", "1G"); err != nil {
			t.Fatal(err)
		}
		m, err := c.alone(draft)
		if err != nil || m.Disks[0].Format != want {
			t.Errorf("%s: got %+v, %v, want a disk of format %s", hypervisor, m, err, want)
		}
	}
}

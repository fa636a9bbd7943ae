package disk

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

func TestInOtherFormat(t *testing.T) {
	dir := t.TempDir()
	m := &config.Machine{Name: "web"}
	disk := hypervisor.NewFile{Key: "disk.root", Path: filepath.Join(dir, "disk-root.raw"), Format: Raw}
	if p := InOtherFormat(m, disk); p != nil {
		t.Errorf("of no disk: %v", p)
	}
	other := filepath.Join(dir, "disk-root.qcow2")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if p := InOtherFormat(m, disk); p == nil || p.Key != "disk.root.format" || !strings.Contains(p.Text, other+`, got "raw"`) || !strings.Contains(p.Text, "vmctl disk convert web root") {
		t.Errorf("got %v", p)
	}
	ephemeral := disk
	ephemeral.Ephemeral = true
	if p := InOtherFormat(m, ephemeral); p != nil {
		t.Errorf("of one that is made at each start: %v", p)
	}
	if err := os.WriteFile(disk.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if p := InOtherFormat(m, disk); p != nil {
		t.Errorf("of one that is there: %v", p)
	}
}

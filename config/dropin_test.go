package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDeviceDropIn(t *testing.T) {
	p := SystemPaths(t.TempDir())
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	main := Definition(p.VMDirs[1], "web")
	write(main, "boot.order = [\"disk.root\", \"disk.data\"]\n[nic.lan]\nuser = true\n[disk.root]\nsize = \"1G\"\n[disk.data]\nsize = \"1G\"\n")
	write(main+".d/50-x.toml", "[disk.data]\nbus = \"scsi\"\n")
	write(main+".d/70-x.toml", "[disk.data]\nsize = \"3G\"\n")
	vm, err := LoadVM(p, "web")
	if err != nil {
		t.Fatal(err)
	}
	file := p.DeviceDropIn(vm, "disk.data")
	if file != main+".d/60-disk-data.toml" {
		t.Errorf("the drop-in is %s", file)
	}
	with := func(text string) VM {
		t.Helper()
		vm, err := LoadVMWith(p, "web", file, text)
		if err != nil || len(vm.Problems) > 0 {
			t.Fatal(err, vm.Problems)
		}
		return vm
	}
	if d := with("[disk.data]\nsize = \"2G\"\nbus = \"nvme\"\n").Machine.Disks[1]; d.Size != 3<<30 || d.Bus != "nvme" {
		t.Errorf("merged is %+v", d)
	}
	off := "[disk.data]\nenabled = false\n"
	m := with(off).Machine
	if len(m.Disks) != 1 || m.Disks[0].Name != "root" || len(m.Boot.Order) != 1 {
		t.Errorf("without the disk: %+v, %v", m.Disks, m.Boot.Order)
	}
	// The file itself is of no account.
	write(file, off)
	if m := with("").Machine; len(m.Disks) != 2 {
		t.Errorf("without the drop-in: %+v", m.Disks)
	}
	if vm, err := LoadVM(p, "web"); err != nil || len(vm.Machine.Disks) != 1 {
		t.Errorf("with it: %+v, %v", vm.Machine.Disks, err)
	}
	vm, err = LoadVMWith(p, "web", file, "[disk.data]\nsise = 1\n")
	if err != nil || len(vm.Problems) != 1 || vm.Problems[0].File != file || !strings.Contains(vm.Problems[0].Text, "size") {
		t.Errorf("a mistake: %v, %v", vm.Problems, err)
	}

	card := p.DeviceDropIn(vm, "nic.lan")
	if vm, err := LoadVMWith(p, "web", card, "[nic.lan]\nenabled = false\n"); err != nil || filepath.Base(card) != "60-nic-lan.toml" || len(vm.Machine.NICs) != 0 {
		t.Errorf("without the card of %s: %+v, %v", card, vm.Machine, err)
	}

	// Of a definition that is gone with the host's end, so is this.
	vm.File = Definition(p.VMDirs[0], "web")
	if got := p.DeviceDropIn(vm, "disk.data"); filepath.Dir(got) != Definition(p.VMDirs[0], "web")+".d" {
		t.Errorf("of a machine below /run it is %s", got)
	}
}

func TestParse(t *testing.T) {
	vm := Parse(SystemPaths(t.TempDir()), "x.toml", "[disk.a]\npath = \"/srv/a, b.qcow2\"\n")
	if len(vm.Problems) > 0 || vm.Machine.Disks[0].Format != "qcow2" {
		t.Errorf("got %+v, %v", vm.Machine, vm.Problems)
	}
	if vm := Parse(SystemPaths(t.TempDir()), "x.toml", "[disk.a]\n"); len(vm.Problems) != 1 {
		t.Errorf("got %v", vm.Problems)
	}
}

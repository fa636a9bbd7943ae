package config

import (
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"
)

// writeLater writes a file whose change is seen to be later than that of another.
func writeLater(t *testing.T, file, text, than string) {
	t.Helper()
	changed := func(file string) int64 {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Ctim.Nano()
	}
	for write(t, file, text); changed(file) <= changed(than); {
		write(t, file, text)
	}
}

// TestNewcomer: of two machines that cannot have the same, the one is refused that
// has had it for less long, whatever their names are: first counts what runs with
// it, then the age of the files.
func TestNewcomer(t *testing.T) {
	p := hostPaths(t)
	a, b := Definition(p.VMDirs[1], "a"), Definition(p.VMDirs[1], "b")
	machine := func(key string) string {
		return `uuid = "5e0c1f2a-7a57-4b53-9a3e-0d6d8a0f5b11"
[vsock]
cid = 77
[nic.lan]
user = true
mac = "52:54:00:00:00:01"
forward = ["` + key + `:22"]
[display]
type = "vnc"
address = ":5900"
`
	}
	const problems = 5 // UUID, CID, MAC and two ports
	refused := func() string {
		t.Helper()
		set, err := Load(p)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, vm := range set.VMs {
			if len(vm.Problems) > 0 {
				all = append(all, vm.Name)
			}
			if n := len(vm.Problems); n != 0 && n != problems {
				t.Errorf("%s: got %v, want %d problems", vm.Name, vm.Problems, problems)
			}
		}
		return strings.Join(all, " ")
	}
	runs := func(name string, m *Machine) {
		t.Helper()
		record, err := json.Marshal(map[string]any{"machine": m})
		if err != nil {
			t.Fatal(err)
		}
		write(t, p.VMJSON(name), string(record))
	}

	write(t, b, machine("2222"))
	writeLater(t, a, machine("127.0.0.1:2222"), b)
	if got := refused(); got != "a" {
		t.Errorf("refused %s, want the newer file's a", got)
	}
	writeLater(t, b+".d/10-more.toml", "cpus = 2\n", a)
	if got := refused(); got != "b" {
		t.Errorf("refused %s, want b, which has a newer drop-in", got)
	}
	runs("b", LoadFile(p, b).Machine)
	if got := refused(); got != "a" {
		t.Errorf("refused %s, want a, as b runs", got)
	}
	runs("a", LoadFile(p, a).Machine)
	if got := refused(); got != "b" {
		t.Errorf("refused %s, want the newer of two that run", got)
	}
	other := LoadFile(p, a).Machine
	other.NICs[0].MAC = "52:54:00:00:00:02"
	other.UUID, other.Vsock.CID, other.Display = "f0c85f2c-4b80-8de0-bcdd-a2126a7213a1", 78, Display{}
	other.NICs[0].Forward = nil
	runs("a", other)
	if got := refused(); got != "a" {
		t.Errorf("refused %s, want a, which runs with others", got)
	}
	if got := other.Beside(LoadFile(p, b).Machine); len(got) != 0 {
		t.Errorf("beside each other: %v", got)
	}
	if got := LoadFile(p, a).Machine.Beside(LoadFile(p, b).Machine); len(got) != problems {
		t.Errorf("beside each other: %v, want %d problems", got, problems)
	}

	// What a machine's own user may have put there instead.
	for _, forged := range []string{"", "{", `{"machine": {"display": {"address": "x"}}}`, `{"machine": {"nics": [{}]}}`, "[]"} {
		write(t, p.VMJSON("a"), forged)
		if got := refused(); got != "a" {
			t.Errorf("%q: refused %s, want a", forged, got)
		}
	}
}

package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// TestBeside: what a machine that runs has, another is refused at its start,
// whatever the definition of the first has become; but not what a machine had
// before, whose record is not of this run yet.
func TestBeside(t *testing.T) {
	h := newHost(t)
	h.define(h.definition() + "[nic.lan]\nuser = true\nmac = \"52:54:00:00:00:01\"\nforward = [\"127.0.0.1:42222:22\"]\n")
	dir := filepath.Join(h.paths.State, "db")
	h.mkdir(dir, 0o755)
	h.mkdir(h.paths.RuntimeDir("db"), 0o755)
	h.write(h.paths.Record("db"), `{"machine": {"name": "db", "nics": [{"name": "net", "user": true, "mac": "52:54:00:00:00:01", "forward": [{"host_port": 42222, "guest_port": 80, "protocol": "tcp"}]}]}, "plan": {}}`, 0o600)

	if out := h.must(nil, "prepare", h.vm); strings.Contains(out, "db") {
		t.Errorf("beside a machine that begins to start: %s", out)
	}
	h.anotherRun()
	h.write(h.paths.Claimed("db"), "", 0o644)
	file := config.Definition(h.paths.VMDirs[1], h.vm)
	lines := strings.Split(h.definition(), "\n")
	at := func(key string) string {
		n := 1 + slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, key) })
		return fmt.Sprintf("%s:%d: nic.lan.", file, n)
	}
	want := at("mac") + `mac: want an address of its own, got "52:54:00:00:00:01" as machine db has` + "\n" +
		at("forward") + `forward[0]: want a port of the host of its own, got "127.0.0.1:42222:22/tcp" beside that of machine db (nic.net.forward[0]: "42222:80/tcp")` + "\n"
	if out := h.must(nil, "prepare", h.vm); out != want {
		t.Errorf("got:\n%swant:\n%s", out, want)
	}
	if _, err := os.Stat(h.paths.Claimed(h.vm)); err == nil {
		t.Error("what was refused counts as running")
	}

	// What it has noted for that counts, where there is such a note.
	h.anotherRun()
	h.write(h.paths.Claims("db"), `{"name": "db", "nics": [{"name": "net", "mac": "52:54:00:00:00:01"}]}`, 0o600)
	if out := h.must(nil, "prepare", h.vm); out != strings.SplitAfter(want, "\n")[0] {
		t.Errorf("by its note: got %s", out)
	}
	if err := os.Remove(h.paths.Claims("db")); err != nil {
		t.Fatal(err)
	}

	h.anotherRun()
	h.write(h.paths.Record("db"), "{", 0o600)
	if out := h.must(nil, "prepare", h.vm); !strings.Contains(out, "db, which runs: what it has of the host is not known: "+h.paths.Record("db")+": unexpected end of JSON input\n") {
		t.Errorf("beside a broken record: %s", out)
	}
}

// TestCheckPlug: a card that is plugged in is not refused for what the machine has
// itself and another has too; and it is slirp's, which gets no ports that need
// privileges, also where passt is there for the machine's first cards.
func TestCheckPlug(t *testing.T) {
	h := newHost(t)
	a := app{paths: h.paths, vm: "web", err: io.Discard}
	h.mkdir(h.paths.RuntimeDir("db"), 0o755)
	h.write(h.paths.Claimed("db"), "", 0o644)
	h.write(h.paths.Record("db"), `{"machine": {"name": "db", "uuid": "5e0c1f2a-7a57-4b53-9a3e-0d6d8a0f5b11", "vsock": {"cid": 77}, "nics": [{"name": "net", "user": true, "mac": "52:54:00:00:00:01"}]}, "plan": {}}`, 0o600)
	m := &config.Machine{Name: "web", UUID: "5e0c1f2a-7a57-4b53-9a3e-0d6d8a0f5b11", Vsock: config.Vsock{CID: 77}}
	host := hypervisor.Host{Programs: map[string]string{hypervisor.Passt: "/usr/bin/passt", "passt-repair": "/usr/bin/passt-repair"}}
	card := config.NIC{Name: "b", User: true, MAC: "52:54:00:00:00:02"}
	low := card
	low.Forward = []config.Forward{{HostPort: 1, GuestPort: 80, Protocol: config.TCP}}
	taken := card
	taken.MAC = "52:54:00:00:00:01"
	for _, test := range []struct {
		card config.NIC
		want string
	}{
		{card, ""},
		{taken, "nic.b.mac: want an address of its own"},
		{low, "nic.b.forward[0]: want a port of the host from"},
	} {
		found, err := a.checkPlug(m, test.card, host)
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		for _, p := range found {
			text += p.Error() + "\n"
		}
		if test.want == "" && text != "" || strings.Count(text, "\n") > 1 || !strings.Contains(text, test.want) {
			t.Errorf("%v: got %q, want %q", test.card, text, test.want)
		}
	}
}

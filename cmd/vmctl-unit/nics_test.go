package main

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/netsetup"
)

// bridged is a host with a bridge, in a network namespace of its own.
func bridged(t *testing.T) host {
	t.Helper()
	makeBridge(t)
	return newHost(t)
}

func makeBridge(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_FS); err != nil {
		t.Fatal(err)
	}
	command(t, "ip", "link", "add", "br0", "type", "bridge")
	command(t, "ip", "link", "set", "br0", "up")
}

func command(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return string(out)
}

// card is a card as a definition would have it.
func (h host) card(name, table string) config.NIC {
	h.Helper()
	file := filepath.Join(h.TB.TempDir(), "x.toml")
	h.write(file, "[nic."+name+"]\n"+table, 0o644)
	vm := config.LoadFile(h.paths, file)
	if len(vm.Problems) > 0 {
		h.Fatal(vm.Problems)
	}
	return vm.Machine.NICs[0]
}

// nicOperation is the command that does something to a card.
func (h host) nicOperation(what string, n config.NIC) *exec.Cmd {
	h.Helper()
	b, err := json.Marshal(hypervisor.NICRequest{NIC: n, Timeout: 2 * time.Second})
	if err != nil {
		h.Fatal(err)
	}
	return h.command(nil, "operate", h.vm, what, string(b))
}

// nic does something to a card, and wants an error with the text, "" for none.
func (h host) nic(what string, n config.NIC, want string) {
	h.Helper()
	out, err := h.nicOperation(what, n).Output()
	if err != nil && len(out) == 0 {
		h.Fatal(err)
	}
	got := ""
	if err := operation.Follow(strings.NewReader(string(out)), func(operation.Progress) {}, func(string) {}, nil); err != nil {
		got = err.Error()
	}
	if want == "" && got != "" || !strings.Contains(got, want) {
		h.Fatalf("%s %s: got %q, want %q", what, n.Name, got, want)
	}
}

// cards are those that the hypervisor has.
func (h host) cards() (names []string) {
	h.Helper()
	h.control(func(ctx context.Context, c hypervisor.Control) (err error) {
		names, err = c.(hypervisor.NICHotplug).PluggedNICs(ctx)
		return err
	})
	return names
}

// letGo has the guest let go of what it was asked to, which this one does at a
// reset alone.
func (h host) letGo(n config.NIC) {
	h.Helper()
	h.control(func(ctx context.Context, c hypervisor.Control) error { return c.Reset(ctx) })
	for end := time.Now().Add(time.Minute); slices.Contains(h.cards(), n.Name); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			h.Fatalf("the guest has %s after a reset", n.Name)
		}
	}
}

// detach takes a card out.
func (h host) detach(n config.NIC) {
	h.Helper()
	// One that has just been reset has not got so far as to be asked.
	cmd := h.nicOperation(hypervisor.NICDetach, n)
	var eb strings.Builder
	cmd.Stderr = &eb
	out, _ := cmd.Output()
	h.Logf("detach: %s %s", out, eb.String())
	if strings.Contains(string(out), "has not let go") {
		h.letGo(n)
		h.nic(hypervisor.NICDetach, n, "")
	}
}

// ofHost is what the host has for cards: interfaces and filters.
func (h host) ofHost() string {
	h.Helper()
	return command(h, "ip", "-brief", "link", "show", "type", "tun") + command(h, "nft", "list", "tables")
}

// agree checks that hypervisor, record and host have the card, or have not.
func (h host) agree(n config.NIC) (there bool) {
	h.Helper()
	there = slices.Contains(h.cards(), n.Name)
	noted := slices.ContainsFunc(h.changes().NICs, func(c config.NIC) bool { return c.Name == n.Name })
	host := h.ofHost()
	tap := strings.Contains(host, netsetup.TapName(h.vm, n.Name))
	if there != noted || there != tap || !there && host != "" {
		h.Fatalf("there: %v, noted: %v, and the host has %q", there, noted, host)
	}
	return there
}

func TestAttachAndDetachNIC(t *testing.T) {
	h := bridged(t)
	h.define(h.definition() + "\n[nic.boot]\nuser = true\n")
	p := h.start()
	lan := h.card("lan", "bridge = \"br0\"\nqueues = 2\nrate_out = \"1M\"\n")
	h.nic(hypervisor.NICAttach, lan, "")
	if !h.agree(lan) {
		t.Fatal("the card is not there")
	}
	h.claims("boot", "lan")
	h.nic(hypervisor.NICAttach, lan, "has a card named lan already")
	twin := lan
	twin.Name = "twin"
	h.nic(hypervisor.NICAttach, twin, "want an address of its own")
	h.nic(hypervisor.NICAttach, h.card("x", "bridge = \"br9\"\n"), "want the bridge br9, the host has no such interface")
	h.nic(hypervisor.NICAttach, h.card("x", "bridge = \"br0\"\nmodel = \"e1000\"\n"), "is conventional PCI")
	h.nic(hypervisor.NICDetach, config.NIC{Name: "none"}, "runs without a card named none")
	h.nic(hypervisor.NICSet, config.NIC{Name: "boot", RateIn: 1 << 20}, "only a card on a bridge (network or bridge) can be limited")
	// Somebody listens on port 2222 (proc_net(5)).
	h.mkdir(filepath.Join(h.paths.Root, "proc/thread-self/net"), 0o755)
	h.write(filepath.Join(h.paths.Root, "proc/thread-self/net/tcp"), "0: 00000000:08AE 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 12345\n", 0o644)
	h.nic(hypervisor.NICAttach, h.card("x", "user = true\nforward = [\"2222:22\"]\n"), "want a port of the host that is free")
	if got := h.ofHost(); strings.Contains(got, netsetup.TapName(h.vm, "x")) {
		t.Errorf("of a refused card the host has %s", got)
	}

	// Its link and limits.
	tap := netsetup.TapName(h.vm, "lan")
	h.nic(hypervisor.NICSet, config.NIC{Name: "lan", Link: "down", RateIn: 1 << 20}, "")
	h.nic(hypervisor.NICSet, config.NIC{Name: "boot", Link: "down"}, "")
	if got := command(t, "ip", "-brief", "link", "show", tap) + command(t, "tc", "qdisc", "show", "dev", tap) + h.ofHost(); strings.Contains(got, ",UP") || !strings.Contains(got, "tbf") || strings.Contains(got, "vmctl_rate") {
		t.Errorf("the interface is set to %s", got)
	}
	c := h.changes()
	if len(c.NICs) != 2 || c.NICs[0].Link != "down" || c.NICs[0].RateOut != 0 || c.NICs[0].Queues != 2 || !slices.Equal(c.SetNICs, []string{"boot"}) {
		t.Errorf("changed are %+v", c)
	}
	h.must(nil, "mend", h.vm) // with nothing to do
	h.nic(hypervisor.NICSet, config.NIC{Name: "lan", Link: "up"}, "")
	if got := command(t, "ip", "-brief", "link", "show", tap); !strings.Contains(got, ",UP") {
		t.Errorf("the interface is set to %s", got)
	}

	h.nic(hypervisor.NICDetach, lan, "the guest has not let go of lan")
	h.nic(hypervisor.NICAttach, lan, "has not let go of lan yet")
	h.letGo(lan)
	for _, n := range []config.NIC{lan, {Name: "boot"}} {
		h.detach(n)
	}
	h.claims()
	if c := h.changes(); h.agree(lan) || !slices.Equal(c.GoneNICs, []string{"boot"}) {
		t.Errorf("changed are %+v", c)
	}
	// Back again, and the end of the machine takes it all.
	h.nic(hypervisor.NICAttach, h.card("boot", "user = true\n"), "")
	h.nic(hypervisor.NICAttach, lan, "")
	p.Process.Kill()
	h.cleanup(p)
	if got := h.ofHost(); got != "" || !h.changes().None() {
		t.Errorf("after the end the host has %s; %+v", got, h.changes())
	}
	h.nic(hypervisor.NICAttach, lan, "does not run")
}

// claims checks with which cards of the machine others are compared.
func (h host) claims(want ...string) {
	h.Helper()
	m, err := app{paths: h.paths}.other(h.vm)
	if err != nil {
		h.Fatal(err)
	}
	var got []string
	for _, n := range m.NICs {
		got = append(got, n.Name)
	}
	if !slices.Equal(got, want) {
		h.Errorf("others are compared with the cards %v, want %v", got, want)
	}
}

// A reload puts back all of a card's tables, whatever has become of its
// definition, which changes the rules where it is sound alone.
func TestReload(t *testing.T) {
	h := bridged(t)
	h.start()
	const text = "bridge = \"br0\"\nrate_out = \"1M\"\nallow_in = [\"tcp/22\"]\n"
	lan := h.card("lan", text)
	h.nic(hypervisor.NICAttach, lan, "")
	sound := h.definition()
	for _, c := range []struct {
		what, definition, want string
		fails                  bool
	}{
		{"sound", sound + "[nic.lan]\n" + strings.ReplaceAll(text, "22", "23"), "tcp dport 23", false},
		{"broken", "[nic.lan", "tcp dport 23", true},
		{"in no group that is there", sound + "[nic.lan]\nbridge = \"br0\"\nsecurity_groups = [\"none\"]\n", "tcp dport 23", true},
		{"on no bridge", sound + "[nic.lan]\nuser = true\n", "tcp dport 22", false},
		{"sound again", sound + "[nic.lan]\n" + text, "tcp dport 22", false},
	} {
		h.define(c.definition)
		command(t, "nft", "flush", "ruleset")
		if _, err := h.command(nil, "reload", h.vm).CombinedOutput(); (err != nil) != c.fails {
			t.Errorf("%s: %v", c.what, err)
		}
		rules := command(t, "nft", "list", "ruleset")
		for _, want := range []string{c.want, "ether saddr != " + string(lan.MAC), "limit rate over 1 mbytes/second"} {
			if !strings.Contains(rules, want) {
				t.Errorf("%s: want %s, got %s", c.what, want, rules)
			}
		}
	}
	h.reloadsConsole(sound)
	if err := os.Remove(filepath.Join(h.paths.VMDirs[1], h.vm+".toml")); err != nil {
		t.Fatal(err)
	}
	command(t, "nft", "flush", "ruleset")
	if err := h.command(nil, "reload", h.vm).Run(); err == nil {
		t.Error("reloaded without a definition")
	}
	if rules := command(t, "nft", "list", "ruleset"); !strings.Contains(rules, "tcp dport 22") {
		t.Errorf("without a definition: %s", rules)
	}
}

// reloadsConsole reloads definitions that are sound but for the console's group.
func (h host) reloadsConsole(sound string) {
	h.Helper()
	g, err := user.LookupGroup("adm")
	if err != nil {
		h.Fatal(err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		h.Fatal(err)
	}
	for _, c := range []struct {
		text string
		gid  int
		mode os.FileMode
	}{
		{"console.group = \"adm\"\n", gid, 0o660},
		{"console.group = \"no-such-group\"\n", gid, 0o660}, // as it was
		{"broken", gid, 0o660},
		{"", vmUser, 0o600},
	} {
		h.define(c.text + sound)
		if err := h.command(nil, "reload", h.vm).Run(); (err != nil) != (c.gid == gid && !strings.Contains(c.text, "adm")) {
			h.Errorf("%q: %v", c.text, err)
		}
		info, err := os.Stat(h.paths.ConsoleSocket(h.vm))
		if err != nil {
			h.Fatal(err)
		}
		if got := int(info.Sys().(*syscall.Stat_t).Gid); got != c.gid || info.Mode().Perm() != c.mode {
			h.Errorf("%q: the console's group is %d, its mode %v", c.text, got, info.Mode())
		}
		if got := strings.Contains(acls(h, h.paths.RuntimeDir(h.vm)), "group:adm:--x"); got != (c.gid == gid) {
			h.Errorf("%q: the directory is open to the group: %v", c.text, got)
		}
	}
}

// A machine whose sandbox has no way out does not get one by a card.
func TestAttachNICSandbox(t *testing.T) {
	h := newHost(t)
	h.start()
	h.nic(hypervisor.NICAttach, h.card("x", "user = true\n"), "nic.x.user: the machine was started without any way out of its sandbox")
}

// Whenever what attaches, sets or detaches is killed, mending has record,
// hypervisor and host agree, and the next attempt works.
func TestNICOperationsKilled(t *testing.T) {
	h := bridged(t)
	main := h.start()
	lan := h.card("lan", "bridge = \"br0\"\nqueues = 2\nrate_out = \"1M\"\n")
	kill := func(what string, n config.NIC, most int) {
		t.Helper()
		cmd := h.nicOperation(what, n)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(most)) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		t.Log(what, h.must(nil, "mend", h.vm))
	}
	for range 12 {
		kill(hypervisor.NICAttach, lan, 150)
		if !h.agree(lan) {
			h.nic(hypervisor.NICAttach, lan, "")
		}
		other := lan
		other.Link = "down"
		kill(hypervisor.NICSet, other, 100)
		down := h.changes().NICs[0].Link == "down"
		if up := strings.Contains(command(t, "ip", "-brief", "link", "show", "type", "tun"), ",UP"); up == down || !h.agree(lan) {
			t.Fatalf("noted as down: %v, up: %v", down, up)
		}
		kill(hypervisor.NICDetach, lan, 100)
		t.Logf("killed detach: %v %+v", h.cards(), h.changes())
		if h.agree(lan) {
			h.detach(lan)
		}
		if h.agree(lan) {
			t.Fatal("the card is there")
		}
	}
	// The end of a machine while something is under way.
	for range 3 {
		cmd := h.nicOperation(hypervisor.NICAttach, lan)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
		main.Process.Kill()
		main.Wait()
		cmd.Process.Kill()
		cmd.Wait()
		h.must(nil, "mend", h.vm)
		h.must([]string{"SERVICE_RESULT=signal", "EXIT_CODE=killed", "EXIT_STATUS=KILL"}, "cleanup", h.vm)
		if got := h.ofHost(); got != "" {
			t.Fatalf("after the end the host has %s", got)
		}
		h.newRuntimeDir()
		main = h.start()
	}
}

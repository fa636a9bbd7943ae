//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// applyEnvironment is an environment of a network, an image, a template, and two
// machines of it.
type applyEnvironment struct {
	subnet, memory string
	rule           string // of a security group
	more           string // further tables
}

func (e applyEnvironment) text(url string) string {
	return fmt.Sprintf(`
[image.apply-golden]
url = %q

[network.applied]
subnet = %q

[security_group.applied]
allow_in = [%q]

[template.applied]
description = "${name} in the shop"
memory = "${memory}"
lifecycle.stop_timeout = "1s"
lifecycle.restart = "no"
[template.applied.parameters]
memory = "64M"
[template.applied.disk.root]
image = "apply-golden"
[template.applied.nic.lan]
network = "applied"
security_groups = ["applied"]

[vm.apply-one]
template = "applied"
autostart = true
after = ["apply-two"]
parameters.memory = %q
`, url, e.subnet, e.rule, e.memory) + e.more
}

// applyTwo is the second machine.
const applyTwo = "\n[vm.apply-two]\ntemplate = \"applied\"\n"

// applied is what vmctl apply -o json says.
type appliedJSON struct {
	Changed bool `json:"changed"`
	Steps   []struct {
		Action, Kind, Name, Result string
		Differences                []struct{ Key, From, To string }
	} `json:"steps"`
	PendingRestart []string `json:"pending_restart"`
}

func (a appliedJSON) steps() string {
	var all []string
	for _, s := range a.Steps {
		all = append(all, strings.TrimSpace(strings.Join([]string{s.Action, s.Kind, s.Name}, " ")))
	}
	return strings.Join(all, ", ")
}

// An environment comes about, with all that its machines need, in the order in
// which they do; applied again, nothing happens; what is changed is applied to what
// runs as far as that goes, and pending until a restart; what is left out goes when
// that is asked for, but no disk.
func TestApply(t *testing.T) {
	dir := hostDir(t, "apply")
	golden := image(t, filepath.Join(dir, "golden.img"), "golden", megabyte)
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	url, file := server.URL+"/"+filepath.Base(golden), filepath.Join(dir, "shop.toml")
	one, two := &vm{t: t, name: "apply-one", screen: newScreen(t, "apply-one")}, &vm{t: t, name: "apply-two", screen: newScreen(t, "apply-two")}
	newNetwork(t, "applied", "") // for what cleans up
	if err := os.Remove(networkFile("applied")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		one.remove()
		two.remove()
		for _, path := range []string{"/etc/vmctl/images.toml.d/50-apply-apply-golden.toml", "/etc/vmctl/templates/applied.toml", "/etc/vmctl/security-groups/applied.toml"} {
			os.Remove(path)
		}
		try("vmctl", "image", "delete", "--yes", "apply-golden")
	})
	env := applyEnvironment{subnet: "10.77.4.0/24", memory: "80M", rule: "tcp/22", more: applyTwo}
	write := func() { writeFile(t, file, env.text(url)) }
	apply := func(code int, options ...string) appliedJSON {
		t.Helper()
		r := try(append([]string{"vmctl", "apply", "-o", "json", "--yes", file}, options...)...)
		if r.code != code {
			t.Fatalf("vmctl apply %s: exit status %d, want %d\n%s", strings.Join(options, " "), r.code, code, r.all())
		}
		return decode[appliedJSON](t, r.stdout)
	}
	expect := func(a appliedJSON, steps string) {
		t.Helper()
		if got := a.steps(); got != steps {
			t.Errorf("got the steps %s\nwant %s", got, steps)
		}
	}
	write()

	const all = "pull image apply-golden, create image apply-golden, create security_group applied, create network applied, " +
		"create template applied, create vm apply-one, create vm apply-two, reload, start network applied, start vm apply-one"
	expect(apply(10, "--check"), all)
	for _, path := range []string{one.file(), networkFile("applied"), images + "apply-golden.img"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("--check made %s", path)
		}
	}
	expect(apply(10), all)
	one.waitState("active")
	two.waitState("inactive")
	if state := run(t, "systemctl", "is-active", "vm-network@applied"); state != "active" {
		t.Errorf("the network is %s", state)
	}
	if shown := one.show(); shown["memory_bytes"] != float64(80*megabyte) || shown["description"] != "apply-one in the shop" {
		t.Errorf("apply-one has %v and is called %v", shown["memory_bytes"], shown["description"])
	}
	for range 2 {
		if again := apply(0); again.Changed || len(again.Steps) > 0 {
			t.Errorf("applied again: %s", again.steps())
		}
	}
	expect(apply(10, "--start"), "start vm apply-two")
	apply(0, "--start")

	// What cards may get is applied to what runs; memory is not.
	env.rule = "tcp/80"
	write()
	expect(apply(10), "change security_group applied, reload, reload vm apply-one, reload vm apply-two")
	contains(t, run(t, "nft", "list", "ruleset"), "dport 80")
	pending := func(v *vm, want bool) {
		t.Helper()
		if got := v.show()["pending_changes"]; got != want {
			t.Errorf("%s: pending_changes is %v, want %v", v.name, got, want)
		}
		star := strings.Contains(run(t, "vmctl", "list"), v.name+"  running*")
		if star != want {
			t.Errorf("%s: a star is %v, want %v:\n%s", v.name, star, want, run(t, "vmctl", "list"))
		}
	}
	pending(one, false)
	env.memory = "96M"
	write()
	check := apply(10, "--check")
	expect(check, "change vm apply-one, reload")
	if d := check.Steps[0].Differences; len(d) != 1 || d[0].Key != "memory" || d[0].From != `"80M"` || d[0].To != `"96M"` {
		t.Errorf("the differences are %v", d)
	}
	pending(one, false)
	if changed := apply(10); len(changed.PendingRestart) != 1 || changed.PendingRestart[0] != "apply-one" {
		t.Errorf("pending are %v", changed.PendingRestart)
	}
	pending(one, true)
	if again := apply(0); len(again.PendingRestart) != 1 {
		t.Errorf("pending are %v by now", again.PendingRestart)
	}
	before := one.mainPID()
	expect(apply(10, "--restart"), "restart vm apply-one")
	if pid := one.mainPID(); pid == before || pid == 0 {
		t.Errorf("the process is %d, and was %d before the restart", pid, before)
	}
	pending(one, false)
	apply(0, "--restart")

	// One that does not come up any more runs as it did before.
	good := env.memory
	defined := run(t, "cat", one.file())
	writeFile(t, file, strings.Replace(env.text(url), "parameters.memory = \""+good+"\"", "parameters.memory = \"72M\"\nhypervisor_options.extra_args = [\"-no-such\"]", 1))
	r := try("vmctl", "apply", "--yes", "--restart", file)
	if r.code != 1 {
		t.Errorf("a restart that fails: exit status %d\n%s", r.code, r.all())
	}
	contains(t, r.all(), "-no-such", "put back "+one.file()+" as it was", "apply-one: started again, with the definition that it had", "left: change apply-one, restart apply-one")
	if now := run(t, "cat", one.file()); now != defined {
		t.Errorf("the definition is\n%s\nwant\n%s", now, defined)
	}
	one.waitState("active")
	write()
	apply(0)

	// What else makes a definition another than what runs.
	dropIn := two.file() + ".d/10-memory.toml"
	writeFile(t, dropIn, "description = \"by hand\"\n")
	pending(two, true)
	if done := apply(10); !strings.HasSuffix(done.steps(), "reload vm apply-two") {
		t.Errorf("the steps are %s", done.steps())
	}
	pending(two, false)
	apply(0)
	if err := os.RemoveAll(filepath.Dir(dropIn)); err != nil {
		t.Fatal(err)
	}
	apply(10)
	pending(two, false)
	writeFile(t, dropIn, "memory = \"70M\"\n")
	pending(two, true)
	if err := os.RemoveAll(filepath.Dir(dropIn)); err != nil {
		t.Fatal(err)
	}
	pending(two, false)
	const templateDropIn = "/etc/vmctl/templates/applied.toml.d/10-cpus.toml"
	writeFile(t, templateDropIn, "cpus = 2\n")
	pending(one, true)
	if err := os.RemoveAll(filepath.Dir(templateDropIn)); err != nil {
		t.Fatal(err)
	}
	pending(one, false)
	if err := os.Rename(two.file(), two.file()+".away"); err != nil {
		t.Fatal(err)
	}
	pending(two, true)
	if err := os.Rename(two.file()+".away", two.file()); err != nil {
		t.Fatal(err)
	}

	// What does not work as machines run is done in part, told, and gone on with.
	env.subnet = "10.77.5.0/24"
	write()
	r = try("vmctl", "apply", "--yes", file)
	if r.code != 1 {
		t.Errorf("another subnet under machines that run: exit status %d\n%s", r.code, r.all())
	}
	contains(t, r.stderr, "left: reload network applied")
	run(t, "vmctl", "stop", "apply-one", "apply-two")
	expect(apply(10), "reload network applied, start vm apply-one")
	contains(t, run(t, "ip", "-brief", "address", "show", "vmbr-applied"), "10.77.5.1/24")
	apply(0)

	// A mistake anywhere keeps all from being changed.
	env.more = applyTwo + "[vm.apply-three]\ncpus = 1\n[vm.apply-four]\ncpus = 0\n"
	write()
	contains(t, fail(t, 6, "vmctl", "apply", "--yes", file), file+":", "vm.apply-four.cpus: want an integer from 1 to 1024, got 0")
	if _, err := os.Stat("/etc/vmctl/vms/apply-three.toml"); err == nil {
		t.Error("something was written")
	}

	// Nor is an image replaced that disks may stand on.
	env.more = applyTwo
	writeFile(t, file, env.text(url+".other"))
	contains(t, try("vmctl", "apply", "--check", file).stderr, "image.apply-golden.url: the image that is stored by this name is of "+url+", and stays: vmctl image pull --update apply-golden replaces it")

	// What is left out stays until it is pruned; what runs is not ended unasked.
	env.more = applyTwo + "lifecycle.stop_timeout = \"8s\"\n"
	write()
	apply(10)
	run(t, "vmctl", "start", "apply-two")
	env.more = ""
	write()
	contains(t, fail(t, 6, "vmctl", "apply", "--yes", "--prune", file), "after: want a machine that is defined") // one names it
	writeFile(t, file, strings.Replace(env.text(url), "after = [\"apply-two\"]\n", "", 1))
	contains(t, fail(t, 4, "vmctl", "apply", "--yes", "--prune", file), "apply-two is to be removed, and runs", "--force shuts it down first")
	interruptStop(t, two, file)
	expect(apply(10, "--prune", "--force"), "stop vm apply-two, change vm apply-one, remove vm apply-two, reload")
	two.waitState("inactive")
	if _, err := os.Stat(two.stateDir() + "/disk-root.qcow2"); err != nil {
		t.Errorf("the disk of what was pruned: %v", err)
	}
	apply(0, "--prune")
	writeFile(t, file, "")
	run(t, "vmctl", "stop", "apply-one")
	expect(apply(10, "--prune"), "stop network applied, remove vm apply-one, remove template applied, remove network applied, "+
		"remove security_group applied, remove image apply-golden, reload")
	apply(0, "--prune")
}

// interruptStop interrupts vmctl apply while it stops a machine that is to go: that
// runs again then, and stays defined.
func interruptStop(t *testing.T, v *vm, file string) {
	t.Helper()
	before := v.mainPID()
	var out bytes.Buffer
	cmd := exec.Command("vmctl", "apply", "--yes", "--prune", "--force", file)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v.waitState("deactivating")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	contains(t, out.String(), "stop "+v.name+": interrupted", v.name+": started again")
	v.waitState("active")
	if pid := v.mainPID(); pid == before {
		t.Error("it was not stopped")
	}
	if _, err := os.Stat(v.file()); err != nil {
		t.Error(err)
	}
	contains(t, run(t, "vmctl", "history", v.name), "start", "interrupted")
}

// Killed at any moment, the next apply finishes; of two at once, each does all or
// nothing.
func TestApplyKilled(t *testing.T) {
	newerSuiteOnly(t, "nothing of it depends on a version")
	dir := hostDir(t, "apply-killed")
	file := filepath.Join(dir, "env.toml")
	environment := func(round int) string {
		text := ""
		for i := range 8 {
			text += fmt.Sprintf("[vm.killed-%d]\ncpus = %d\n", i, 1+round%3)
		}
		return text
	}
	t.Cleanup(func() {
		left, _ := filepath.Glob("/etc/vmctl/vms/*killed-*")
		for _, path := range left {
			os.Remove(path)
		}
		try("systemctl", "daemon-reload")
	})
	begun := time.Now()
	writeFile(t, file, environment(0))
	fail(t, 10, "vmctl", "apply", "--yes", file)
	took := time.Since(begun)
	for round := 1; round <= 12; round++ {
		text := environment(round)
		if round%4 == 0 {
			text = "" // all go
		}
		writeFile(t, file, text)
		cmd := exec.Command("vmctl", "apply", "--yes", "--prune", file)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.Int64N(int64(took))))
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if r := try("vmctl", "apply", "--yes", "--prune", file); r.code != 0 && r.code != 10 {
			t.Fatalf("after a kill: exit status %d\n%s", r.code, r.all())
		}
		run(t, "vmctl", "apply", "--prune", file)
		defined, _ := filepath.Glob("/etc/vmctl/vms/killed-*.toml")
		generated, _ := filepath.Glob("/run/systemd/generator/vm@killed-*.service.d")
		if want := strings.Count(text, "[vm."); len(defined) != want || len(generated) != want {
			t.Fatalf("%d files and %d units, want %d", len(defined), len(generated), want)
		}
	}
	left, _ := filepath.Glob("/etc/vmctl/vms/.killed-*")
	for _, path := range left { // a file beside its place, which nobody reads
		os.Remove(path)
	}

	writeFile(t, file, environment(1))
	var wg sync.WaitGroup
	results := make([]result, 4)
	for i := range results {
		wg.Go(func() { results[i] = try("vmctl", "apply", "--yes", file) })
	}
	wg.Wait()
	changed := 0
	for _, r := range results {
		switch r.code {
		case 10:
			changed++
		case 4:
			contains(t, r.stderr, "another apply is under way")
		case 0:
		default:
			t.Errorf("one of several at once: exit status %d\n%s", r.code, r.all())
		}
	}
	if changed != 1 {
		t.Errorf("%d of several at once changed something", changed)
	}
}

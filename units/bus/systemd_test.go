//go:build e2e

package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/units"
)

// These tests run as root where PID 1 is systemd: compiled by
// go test -tags e2e -c, and then run in a container. Anywhere else they fail,
// so that they cannot pass by not running.
func TestMain(m *testing.M) {
	if os.Getenv(deniedEnv) != "" {
		os.Exit(denied())
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil || os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "needs to be root where PID 1 is systemd")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// place writes units into systemd's runtime directory, has it read them, and
// takes them away after the test.
func place(t *testing.T, c *Conn, unitsByName map[string]string) {
	t.Helper()
	dir, err := os.OpenRoot("/run/systemd/system")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var files []units.File
	for name, text := range unitsByName {
		files = append(files, units.File{Name: name, Text: text})
	}
	if err := units.Write(dir, files); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for name := range unitsByName {
			os.Remove(filepath.Join("/run/systemd/system", name))
		}
		if err := c.Reload(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := c.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// connect connects to systemd over the bus.
func connect(t *testing.T) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if c.direct {
		t.Fatal("connected to systemd itself, though there is a bus")
	}
	return c
}

// connectDirectly connects to systemd itself, as root does where there is no
// bus.
func connectDirectly(t *testing.T) *Conn {
	t.Helper()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere")
	c, err := Dial(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if !c.direct {
		t.Fatal("connected to a bus that is not there")
	}
	return c
}

const (
	goodUnit = "vmctl-test-good.service"
	badUnit  = "vmctl-test-bad.service"
	needUnit = "vmctl-test-need.service"
	slowUnit = "vmctl-test-slow.service"
)

var testUnits = map[string]string{
	goodUnit: "[Service]\nType=notify\nNotifyAccess=all\nExecStart=/bin/sh -c 'systemd-notify --ready --status=up; exec sleep 1000'\n[Install]\nWantedBy=multi-user.target\n",
	badUnit:  "[Service]\nType=oneshot\nExecStart=/bin/false\n",
	needUnit: "[Unit]\nRequires=" + badUnit + "\nAfter=" + badUnit + "\n[Service]\nExecStart=/bin/sleep 1000\n",
	slowUnit: "[Service]\nType=oneshot\nExecStart=/bin/sleep 1000\n",
}

func TestJobs(t *testing.T) {
	for name, dial := range map[string]func(*testing.T) *Conn{"bus": connect, "direct": connectDirectly} {
		t.Run(name, func(t *testing.T) { jobs(t, dial(t)) })
	}
}

func jobs(t *testing.T, c *Conn) {
	place(t, c, testUnits)
	ctx := t.Context()
	t.Cleanup(func() {
		for unit := range testUnits {
			if err := c.Stop(context.Background(), unit); err != nil {
				t.Error(err)
			}
			// Only what failed can be reset.
			_ = c.ResetFailed(context.Background(), unit)
		}
	})

	wantState := func(unit, want string) {
		t.Helper()
		if p, err := c.Properties(ctx, unit); err != nil || p.ActiveState != want {
			t.Errorf("%s is %s (%v), want %s", unit, p.ActiveState, err, want)
		}
	}
	wantResult := func(err error, want string) {
		t.Helper()
		if job, ok := errors.AsType[*JobError](err); !ok || job.Result != want {
			t.Errorf("got %v, want a JobError %q", err, want)
		}
	}

	if err := c.Start(ctx, goodUnit); err != nil {
		t.Fatal(err)
	}
	p, err := c.Properties(ctx, goodUnit)
	if err != nil || p.ActiveState != "active" || p.SubState != "running" || p.LoadState != "loaded" ||
		p.MainPID == 0 || p.StatusText != "up" || p.Result != "success" || len(p.InvocationID) != 32 ||
		time.Since(p.ActiveEnterTimestamp) > time.Hour || p.NeedDaemonReload {
		t.Errorf("properties = %+v, %v", p, err)
	}
	if err := c.Restart(ctx, goodUnit); err != nil {
		t.Error(err)
	}
	if q, err := c.Properties(ctx, goodUnit); err != nil || q.MainPID == p.MainPID || q.InvocationID == p.InvocationID {
		t.Errorf("after a restart: %+v, %v", q, err)
	}
	if err := c.Kill(ctx, goodUnit, Main, int(syscall.SIGKILL)); err != nil {
		t.Error(err)
	}
	if err := c.Stop(ctx, goodUnit); err != nil {
		t.Error(err)
	}
	wantState(goodUnit, "failed")
	if err := c.ResetFailed(ctx, goodUnit); err != nil {
		t.Error(err)
	}
	wantState(goodUnit, "inactive")
	if err := c.Stop(ctx, goodUnit); err != nil {
		t.Errorf("stopping what does not run: %v", err)
	}
	if err := c.Kill(ctx, goodUnit, Main, int(syscall.SIGKILL)); !errors.Is(err, ErrNoSuchProcess) {
		t.Errorf("killing what does not run: %v, want ErrNoSuchProcess", err)
	}

	wantResult(c.Start(ctx, badUnit), "failed")
	wantResult(c.Start(ctx, needUnit), "dependency")
	if err := c.Start(ctx, "vmctl-test-missing.service"); !errors.Is(err, ErrNoSuchUnit) {
		t.Errorf("starting what does not exist: %v, want ErrNoSuchUnit", err)
	}
	if p, err := c.Properties(ctx, "vmctl-test-missing.service"); err != nil || p.LoadState != "not-found" {
		t.Errorf("looking at what does not exist: %q, %v", p.LoadState, err)
	}

	// A wait that ends leaves the job; the next job works all the same, and
	// the one that takes the first one's place ends it.
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := c.Start(short, slowUnit); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting too short: %v", err)
	}
	wantState(slowUnit, "activating")
	job, err := c.Begin(ctx, Start, slowUnit)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(ctx, slowUnit); err != nil {
		t.Error(err)
	}
	wantResult(job.Wait(ctx), "canceled")
}

func TestUnitsByPattern(t *testing.T) {
	c := connect(t)
	place(t, c, testUnits)
	if err := c.Start(t.Context(), goodUnit); err != nil {
		t.Fatal(err)
	}
	defer c.Stop(context.Background(), goodUnit)
	list, err := c.Units(t.Context(), "vmctl-test-g*.service")
	want := []UnitStatus{{Name: goodUnit, Load: "loaded", Active: "active", Sub: "running"}}
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("units = %+v, %v, want %+v", list, err, want)
	}
}

func TestEnable(t *testing.T) {
	c := connect(t)
	place(t, c, testUnits)
	state := func() string {
		if err := c.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		p, err := c.Properties(t.Context(), goodUnit)
		if err != nil {
			t.Fatal(err)
		}
		return p.UnitFileState
	}
	if err := c.Enable(t.Context(), goodUnit); err != nil {
		t.Fatal(err)
	}
	if got := state(); got != "enabled" && got != "enabled-runtime" {
		t.Errorf("after Enable: %s", got)
	}
	if err := c.Disable(t.Context(), goodUnit); err != nil {
		t.Fatal(err)
	}
	if got := state(); got != "disabled" {
		t.Errorf("after Disable: %s", got)
	}
}

func TestWatchSeesEachState(t *testing.T) {
	for name, dial := range map[string]func(*testing.T) *Conn{"bus": connect, "direct": connectDirectly} {
		t.Run(name, func(t *testing.T) { watch(t, dial(t)) })
	}
}

func watch(t *testing.T, c *Conn) {
	place(t, c, testUnits)
	ctx, cancel := context.WithCancel(t.Context())
	states := make(chan State, 100)
	ended := make(chan error, 1)
	go func() { ended <- c.WatchUnit(ctx, goodUnit, func(s State) { states <- s }) }()

	await := func(what string, ok func(State) bool) {
		t.Helper()
		for {
			select {
			case s := <-states:
				if ok(s) {
					return
				}
			case err := <-ended:
				t.Fatalf("watch ended: %v", err)
			case <-time.After(time.Minute):
				t.Fatalf("never %s", what)
			}
		}
	}
	await("inactive at first", func(s State) bool { return s.Active == "inactive" })
	if _, err := c.Begin(ctx, Start, goodUnit); err != nil {
		t.Fatal(err)
	}
	await("activating", func(s State) bool { return s.Active == "activating" })
	await("active, with its status", func(s State) bool { return s.Active == "active" && s.StatusText == "up" && s.MainPID > 0 })
	if err := c.Stop(ctx, goodUnit); err != nil {
		t.Fatal(err)
	}
	await("inactive again", func(s State) bool { return s.Active == "inactive" })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("watch ended with %v", err)
	}
}

func TestVersion(t *testing.T) {
	whole, major, err := connect(t).Version(t.Context())
	if err != nil || major < 252 || !strings.HasPrefix(whole, fmt.Sprint(major)) {
		t.Errorf("version = %q, %d, %v", whole, major, err)
	}
}

func TestRegisterMachine(t *testing.T) {
	c := connect(t)
	place(t, c, testUnits)
	if err := c.Start(t.Context(), goodUnit); err != nil {
		t.Fatal(err)
	}
	defer c.Stop(context.Background(), goodUnit)
	p, err := c.Properties(t.Context(), goodUnit)
	if err != nil {
		t.Fatal(err)
	}
	m := Machine{Name: "vmctl-test", UUID: [16]byte{1, 2, 3}, Leader: p.MainPID}
	if err := c.RegisterMachine(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	var path string
	if err := c.calls.Object("org.freedesktop.machine1", "/org/freedesktop/machine1").
		CallWithContext(t.Context(), "org.freedesktop.machine1.Manager.GetMachine", 0, m.Name).Store(&path); err != nil {
		t.Error(err)
	}
	class, err := c.calls.Object("org.freedesktop.machine1", "/org/freedesktop/machine1/machine/vmctl_2dtest").
		GetProperty("org.freedesktop.machine1.Machine.Class")
	if err != nil || class.Value() != "vm" {
		t.Errorf("class = %v, %v", class, err)
	}
	if err := c.RegisterMachine(t.Context(), m); err == nil || !strings.Contains(err.Error(), "vmctl-test") {
		t.Errorf("registered twice: %v", err)
	}
	// With vsock, where machined can be told.
	if err := c.machined().CallWithContext(t.Context(), manager+".UnregisterMachine", 0, m.Name).Err; err != nil {
		t.Fatal(err)
	}
	m.VsockCID = 4242
	if err := c.RegisterMachine(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := c.RegisterMachine(t.Context(), m); err == nil || !exists(err) {
		t.Errorf("registered twice: %v", err)
	}
	known, err := exec.Command("machinectl", "show", m.Name).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, known)
	}
	want := []string{"Service=vmctl", "Class=vm", "Unit=" + goodUnit, fmt.Sprintf("Leader=%d", m.Leader)}
	_, major, err := c.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if major >= 257 {
		want = append(want, "VSockCID=4242", "SSHAddress=vsock/4242")
	}
	for _, line := range want {
		if !strings.Contains("\n"+string(known), "\n"+line+"\n") {
			t.Errorf("no %s in\n%s", line, known)
		}
	}
	if major < 257 {
		return
	}
	// Here is no vsock; that the proxy looks for it there is seen.
	out, err := exec.Command("/usr/lib/systemd/systemd-ssh-proxy", "machine/"+m.Name, "22").CombinedOutput()
	t.Logf("%v: %s", err, out)
	if err == nil || !strings.Contains(string(out), "vsock:4242:22") && !strings.Contains(string(out), "Address family not supported") {
		t.Errorf("systemd-ssh-proxy: %v: %s", err, out)
	}
}

// deniedEnv has the test binary run [denied] in place of the tests.
const deniedEnv = "VMCTL_TEST_DENIED"

// denied tries what only root may, and returns 0 where that was refused as it
// should be.
func denied() int {
	c, err := Dial(context.Background(), false)
	if err == nil {
		defer c.Close()
		err = c.Start(context.Background(), goodUnit)
	}
	if !errors.Is(err, ErrNotPermitted) {
		fmt.Fprintf(os.Stderr, "got %v, want ErrNotPermitted\n", err)
		return 1
	}
	return 0
}

func TestDenied(t *testing.T) {
	place(t, connect(t), testUnits)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), deniedEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestSystemdReadsWhatWasRendered has systemd read a drop-in full of hostile
// strings, and compares what it understood.
func TestSystemdReadsWhatWasRendered(t *testing.T) {
	c := connect(t)
	hostile := []string{
		"plain", "", "a b", " lead and trail ", "tab\there", "it's", `say "hi"`, `back\slash`, `end\`, `\x41\n`,
		"100%", "%n %i %%", "$HOME", "${HOME}", "$$", "$", ";", "; x", "#x", "a;b", "a:b", "a,,b=c", "-x", "+x", "@x",
		"/grüße/日本/🙂", "'", `"`, `\`, `\\`, `"'"`, "a\tb c", "-a b", "[Service]", "ExecStart=/bin/sh", "\x01\x1b\x7f",
	}
	argv := append([]string{"/usr/bin/true"}, hostile...)
	plan := &hypervisor.Plan{Argv: argv}
	var paths []string
	for i, s := range hostile {
		// A path has no empty part, and ends in none.
		p := fmt.Sprintf("/srv/%d%s", i, strings.ReplaceAll(s, "/", "_"))
		paths = append(paths, p)
		plan.Files = append(plan.Files, hypervisor.File{Path: p, Write: true}, hypervisor.File{Path: "/dev" + p})
	}
	vm := config.VM{Name: "hostile", File: "/srv/100% a.toml", Machine: &config.Machine{
		Name: "hostile", Description: `50% "off" $x \`, Lifecycle: config.Lifecycle{Restart: "no", Ready: "started"},
	}}
	env := units.Env{Paths: config.SystemPaths("")}
	env.Paths.State = `/srv/st:a\te x`
	files, problems := units.Render(vm, plan, "0123456789abcdef", env)
	if problems != nil {
		t.Fatal(problems)
	}
	place(t, c, map[string]string{files[0].Name: files[0].Text})

	all, err := c.systemd.GetAllPropertiesContext(t.Context(), config.Unit("hostile"))
	if err != nil {
		t.Fatal(err)
	}
	if got := property[string](all, "Description"); got != vm.Machine.Description {
		t.Errorf("Description = %q, want %q", got, vm.Machine.Description)
	}
	if got := property[string](all, "SourcePath"); got != vm.File {
		t.Errorf("SourcePath = %q, want %q", got, vm.File)
	}

	start := property[[][]any](all, "ExecStart")
	if len(start) != 1 {
		t.Fatalf("ExecStart = %v", start)
	}
	got, _ := start[0][1].([]string)
	want := append([]string{"/usr/libexec/vmctl/vmctl-unit", "run", "hostile", "--"}, argv...)
	// systemd tells "$$" as it was written; it is undone at execution.
	for i := range want {
		want[i] = strings.ReplaceAll(want[i], "$", "$$")
	}
	if !slices.Equal(got, want) {
		t.Errorf("ExecStart:\ngot  %q\nwant %q", got, want)
	}

	var binds []string
	for _, b := range property[[][]any](all, "BindPaths") {
		if b[0] != b[1] {
			t.Errorf("bind of %q to %q", b[0], b[1])
		}
		binds = append(binds, b[0].(string))
	}
	binds = append(binds, property[[]string](all, "ReadWritePaths")...)
	for _, p := range append(paths, env.Paths.StateDir("hostile")) {
		if !slices.Contains(binds, p) && !slices.Contains(binds, "-"+p) {
			t.Errorf("BindPaths and ReadWritePaths lack %q", p)
		}
	}
	var devices []string
	for _, d := range property[[][]any](all, "DeviceAllow") {
		devices = append(devices, d[0].(string))
	}
	for _, p := range paths {
		if !slices.Contains(devices, "/dev"+p) {
			t.Errorf("DeviceAllow lacks %q", "/dev"+p)
		}
	}
	var hidden []string
	for _, f := range property[[][]any](all, "TemporaryFileSystem") {
		hidden = append(hidden, f[0].(string))
	}
	if !slices.Contains(hidden, env.Paths.State) {
		t.Errorf("TemporaryFileSystem = %q, lacks %q", hidden, env.Paths.State)
	}
	if t.Failed() {
		t.Logf("%q", bytes.TrimSpace([]byte(files[0].Text)))
	}
}

// TestSandboxShowsTheFiles has a process look, from within the sandbox, for
// files whose names are hostile, in places that the sandbox hides and others.
func TestSandboxShowsTheFiles(t *testing.T) {
	c := connect(t)
	names := []string{
		"plain", "a b", "it's", "a'b'c", `say "hi"`, `a"b`, `back\slash`, `two\\`, `end\`, "a:b", "100%", "%i", "$HOME", "a\tb",
		"a,b", "grün/日本", "#x", ";x", `\'`, "\x01",
	}
	plan := &hypervisor.Plan{Argv: []string{"/bin/sh", "-c",
		`status=0; for file; do [ -w "$file" ] || { echo "not writable: $file"; status=1; }; done; exit $status`, "sh"}}
	for _, dir := range []string{
		"/home/vmctl-test/", "/home/vmctl-test ", "/tmp/vmctl-test/", "/tmp/vmctl-test ",
		"/srv/vmctl-test/", "/srv/vmctl-test ", "/var/lib/vmctl/images/vmctl-test/",
	} {
		for _, name := range names {
			file := dir + name
			t.Cleanup(func() { os.RemoveAll(file) })
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, nil, 0o666); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(file, 0o666); err != nil {
				t.Fatal(err)
			}
			plan.Argv = append(plan.Argv, file)
			plan.Files = append(plan.Files, hypervisor.File{Path: file, Write: true})
		}
	}
	vm := config.VM{Name: "sandboxed", Machine: &config.Machine{
		Name: "sandboxed", Lifecycle: config.Lifecycle{StartTimeout: config.Infinity, Restart: "no", Ready: "started"},
	}}
	files, problems := units.Render(vm, plan, "0123456789abcdef", units.Env{Paths: config.SystemPaths("")})
	if problems != nil {
		t.Fatal(problems)
	}
	// The command itself, in place of vmctl-unit, which would become it.
	text := strings.Replace(files[0].Text, "/usr/libexec/vmctl/vmctl-unit run sandboxed -- \\\n", "\\\n", 1)
	text += "Type=oneshot\nExecStartPre=\nExecStartPost=\nExecStop=\nExecStopPost=\n"
	place(t, c, map[string]string{files[0].Name: text})
	t.Cleanup(func() { _ = c.ResetFailed(context.Background(), config.Unit("sandboxed")) })
	if err := c.Start(t.Context(), config.Unit("sandboxed")); err != nil {
		out, _ := exec.Command("journalctl", "--no-pager", "-o", "cat", "-n", "100", "-u", config.Unit("sandboxed")).Output()
		t.Errorf("%v\n%s", err, out)
	}
}

// What comes after a transient unit's command may take longer than its time, as
// long as it says so.
func TestTransientExtends(t *testing.T) {
	c := connect(t)
	done := filepath.Join(t.TempDir(), "done")
	err := c.RunTransient(t.Context(), Transient{
		Unit:        "vmctl-test-transient.service",
		Argv:        []string{"/bin/true"},
		StopPost:    []string{"/bin/sh", "-c", "systemd-notify EXTEND_TIMEOUT_USEC=60000000; sleep 6; touch " + done},
		TimeoutStop: 2_000_000,
	})
	if err != nil {
		t.Log(err) // systemd 252 calls one that ends at once not started
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, err := os.Stat(done); err == nil {
			return
		}
	}
	t.Error("it was killed")
}

// What a transient unit says of errors is in the journal, and not among what it
// reports.
func TestTransientOutput(t *testing.T) {
	c := connect(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const unit = "vmctl-test-output.service"
	err = c.RunTransient(t.Context(), Transient{Unit: unit, Argv: []string{"/bin/sh", "-c", "echo said; echo complained >&2; sleep 1"}, Stdout: w, TimeoutStop: 2_000_000})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(r); err != nil || string(out) != "said\n" {
		t.Errorf("got %q, %v", out, err)
	}
	exec.Command("journalctl", "--sync").Run()
	if out, err := exec.Command("journalctl", "-o", "cat", "-u", unit).Output(); err != nil || !strings.Contains(string(out), "complained\n") {
		t.Errorf("the journal has %q, %v", out, err)
	}
}

package units

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden renders each testdata/*.txtar: vm.json, machine.json and
// plan.json (or no plan: RenderError) above, every file or problem below.
func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { golden(t, file) })
	}
}

// TestPluggedSidecar: what serves a share that was plugged in is told of as of one that
// the machine was started with, but for where that comes from.
func TestPluggedSidecar(t *testing.T) {
	env := Env{Paths: config.SystemPaths("")}
	m := &config.Machine{Name: "web", Template: "base"}
	for _, s := range []hypervisor.Sidecar{
		{Unit: "vm-virtiofsd@web:src.service", Key: "share.src", Argv: []string{"/usr/libexec/virtiofsd", "--fd={socket}"}, Share: "/srv/a b", Write: true},
		{Unit: "vm-virtiofsd@web:src.service", Key: "share.src", Argv: []string{"/usr/libexec/virtiofsd"}, Share: "/srv", User: "ann", Reconnects: true},
	} {
		file, problems := PluggedSidecar(m, s, env)
		defined, more := sidecar(config.VM{Name: "web", Machine: &config.Machine{Name: "web"}}, s, env)
		if len(problems)+len(more) > 0 || file.Name != defined.Name {
			t.Fatalf("%v, %v; %s and %s", problems, more, file.Name, defined.Name)
		}
		head, body, _ := strings.Cut(file.Text, "\n[Unit]\n")
		_, want, _ := strings.Cut(defined.Text, "\n[Unit]\n")
		if body != want || !strings.Contains(head, "plugged into the running machine") || strings.Contains(head, "generator") {
			t.Errorf("got:\n%s\nwant:\n%s", file.Text, defined.Text)
		}
	}
	if _, problems := PluggedSidecar(m, hypervisor.Sidecar{Unit: "u.service", Key: "share.x", Share: "/srv/a'b"}, env); len(problems) != 1 || problems[0].Key != "share.x.path" {
		t.Errorf("a directory with a quote: %v", problems)
	}
}

// host is the part of a case that stands for the machine it is rendered on.
type host struct {
	User    bool   `json:"user"`
	State   string `json:"state"`
	Systemd int    `json:"systemd"`
}

// TestGoldenNetworks renders each testdata/networks/*.txtar: network.json above,
// every file below.
func TestGoldenNetworks(t *testing.T) {
	cases, err := filepath.Glob("testdata/networks/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var n config.NetworkFile
			if err := json.Unmarshal(archive.Files[0].Data, &n); err != nil {
				t.Fatal(err)
			}
			env := Env{Paths: config.SystemPaths("")}
			files := RenderNetwork(n, env)
			want := string(txtar.Format(archive))
			archive.Files = append(archive.Files[:1:1], listing(files, nil)...)
			got := string(txtar.Format(archive))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			verify(t, false, config.NetworkUnit(n.Name), files)
		})
	}
}

func golden(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var (
		h      host
		vm     config.VM
		plan   *hypervisor.Plan
		inputs = map[string]any{"host.json": &h, "vm.json": &vm, "machine.json": &vm.Machine, "plan.json": &plan}
		rest   []txtar.File
	)
	for _, f := range archive.Files {
		in, ok := inputs[f.Name]
		if !ok {
			continue
		}
		rest = append(rest, f)
		if err := json.Unmarshal(f.Data, in); err != nil {
			t.Fatalf("%s: %s: %v", file, f.Name, err)
		}
	}
	env := Env{Paths: config.SystemPaths(""), Systemd: h.Systemd}
	if h.User {
		env.Paths = config.UserPaths("/home/ann/.config", "/home/ann/.local/share", "/run/user/1000")
	}
	if h.State != "" {
		env.Paths.State = h.State
	}
	if vm.Machine != nil {
		vm.Machine.Name = vm.Name
	}

	render := func() ([]File, []config.Problem) {
		if plan == nil {
			return RenderError(vm, env), nil
		}
		return Render(vm, plan, "0123456789abcdef", env)
	}
	files, problems := render()
	got := listing(files, problems)
	if again, p := render(); string(txtar.Format(&txtar.Archive{Files: listing(again, p)})) != string(txtar.Format(&txtar.Archive{Files: got})) {
		t.Error("rendered twice, and got something else the second time")
	}

	want := *archive
	archive.Files = append(rest, got...)
	if *update {
		if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got, want := string(txtar.Format(archive)), string(txtar.Format(&want)); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if systemd := hypervisor.Probe("/").Systemd; h.Systemd <= systemd {
		verify(t, h.User, config.Unit(vm.Name), files)
		for _, f := range files {
			if unit, _, ok := strings.Cut(f.Name, ".d/"); ok && unit != config.Unit(vm.Name) {
				verify(t, h.User, unit, files)
			}
		}
	}
}

// listing shows files as the archive's, links and problems too.
func listing(files []File, problems []config.Problem) []txtar.File {
	var list []txtar.File
	for _, f := range files {
		if f.Link != "" {
			f.Text = "-> " + f.Link + "\n"
		}
		list = append(list, txtar.File{Name: f.Name, Data: []byte(f.Text)})
	}
	if problems != nil {
		var b strings.Builder
		for _, p := range problems {
			b.WriteString(p.Error() + "\n")
		}
		list = append(list, txtar.File{Name: "problems", Data: []byte(b.String())})
	}
	return list
}

// verify has systemd read the drop-in with the packaged template, where it is
// installed, and be content. Programs that are not there are stood in for.
func verify(t *testing.T, user bool, unit string, files []File) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil || len(files) == 0 {
		return
	}
	dir := t.TempDir()
	standIn := strings.NewReplacer(
		"/usr/libexec/vmctl/vmctl-unit", "/usr/bin/true",
		"/usr/bin/nsenter", "/usr/bin/true",
		"ExecStart=dnsmasq", "ExecStart=true",
		"Documentation=man:vmctl(1)\n", "",
		"Documentation=man:vmctl.toml(5)\n", "",
	)
	scope, source := "--system", "../packaging/systemd/"
	if user {
		scope, source = "--user", "../packaging/systemd/user/"
	}
	names := []string{"vm@.service", "vms.target", "vm-virtiofsd@.service", "vm-tpm@.service"}
	if !user {
		names = append(names, "vm-network@.service")
	}
	for _, name := range names {
		text, err := os.ReadFile(source + name)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, File{Name: name, Text: string(text)})
	}
	for i, f := range files {
		files[i].Text = standIn.Replace(f.Text)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := Write(root, files); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(analyze, scope, "verify", "--man=no", unit)
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":", "XDG_RUNTIME_DIR="+dir)
	// Content, it says nothing of our unit; of others on this host it may.
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "vm@") || strings.Contains(line, "vm-") || strings.Contains(line, dir) {
			t.Errorf("systemd-analyze verify: %s", line)
		}
	}
	if err != nil {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

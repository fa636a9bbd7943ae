package config

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReadDraft(t *testing.T) {
	dir := t.TempDir()
	var files []string
	for name, text := range map[string]string{
		"0.toml": "cpus = 2\n[disk.z]\nsize = \"1G\"\n",
		"1.toml": "template = \"base\"\nuuid = \"8c2a7d2e-7b0a-4b0e-9a53-6f0a3f0f7a11\"\nautostart = true\n[vsock]\ncid = 7\n[disk.a]\npath = \"/srv/a.img\"\n[nic.lan]\nnetwork = \"default\"\nmac = \"52:54:00:00:00:01\"\naddress = \"192.168.100.10\"\n[nic.wan]\nuser = true\n",
		"2.toml": "cpus = 4\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"0.toml", "1.toml", "2.toml"} {
		files = append(files, filepath.Join(dir, name))
	}
	d, problems := ReadDraft("web", files)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	d.Rename()
	d.Remove("disk.a.path")
	if err := d.Set("disk.a.size", "5M"); err != nil {
		t.Fatal(err)
	}
	want := `cpus = 4

[disk.z]
size = "1G"

[disk.a]
size = "5M"

[nic.lan]
network = "default"

[nic.wan]
user = true

[vsock]
`
	if got := d.Text(); got != want {
		t.Errorf("got\n%s", got)
	}
	if _, problems := ReadDraft("web", []string{filepath.Join(dir, "none.toml")}); len(problems) != 1 {
		t.Errorf("of a file that is not there: %v", problems)
	}
}

// TestReadDraftOfTemplate: nothing is left of parameters, and ${name} is the
// machine's.
func TestReadDraftOfTemplate(t *testing.T) {
	p := hostPaths(t)
	write(t, filepath.Join(p.TemplateDirs[1], "base.toml"), "cpus = \"${cpus}\"\ndescription = \"of ${name}: ${size}\"\n[parameters]\ncpus = 2\n[parameters.size]\n[disk.root]\nsize = \"${size}\"\n[cloud_init]\nhostname = \"${name}\"\n")
	write(t, filepath.Join(p.VMDirs[1], "web.toml"), "template = \"base\"\n[parameters]\nsize = \"5M\"\n[credentials]\nshell = \"$${HOME}\"\n")
	vm, err := LoadVM(p, "web")
	if err != nil || vm.Machine == nil {
		t.Fatal(err, vm.Problems)
	}
	d, problems := ReadDraft("other", vm.Files)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	want := `description = "of other: 5M"
cpus = 2

[disk.root]
size = "5M"

[cloud_init]
hostname = "other"

[credentials]
shell = "${HOME}"
`
	if got := d.Text(); got != want {
		t.Errorf("got\n%s", got)
	}
}

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
	d, problems := ReadDraft(files)
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
	if _, problems := ReadDraft([]string{filepath.Join(dir, "none.toml")}); len(problems) != 1 {
		t.Errorf("of a file that is not there: %v", problems)
	}
}

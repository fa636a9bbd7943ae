package config

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Tables of several directories and drop-ins are merged key by key; what is
// wrong is left out, and costs the others nothing.
func TestLoadImages(t *testing.T) {
	p := hostPaths(t)
	at := func(dir int, file string) string { return filepath.Join(p.ImageTableDirs[dir], file) }
	sum := "sha256:" + strings.Repeat("0", 64)
	write(t, at(2, "images.toml"), `
[debian-13]
url = "https://example.org/debian.qcow2"
checksums = "https://example.org/SHA512SUMS"
["ubuntu-24.04"]
url = "https://example.org/ubuntu.img"
`)
	write(t, at(1, "images.toml"), `
[debian-13]
url = "http://mirror.local/debian.qcow2"
[no-url]
checksum = "`+sum+`"
[bad]
url = "/etc/shadow"
checksum = "sha256:12"
colour = "red"
["a/b"]
url = "https://example.org/x"
["a+b"]
url = "https://example.org/x"
loose = 1
[signed]
url = "https://example.org/x"
key = "/usr/share/keyrings/x.gpg"
`)
	write(t, at(0, "images.toml.d/50-mine.toml"), "[mine]\nurl = \"https://example.org/mine.img\"\nchecksum = \""+sum+"\"\n")
	images, problems := LoadImages(p)
	want := []ImageSource{
		{Name: "debian-13", URL: "http://mirror.local/debian.qcow2", Checksums: "https://example.org/SHA512SUMS"},
		{Name: "mine", URL: "https://example.org/mine.img", Checksum: sum},
		{Name: "ubuntu-24.04", URL: "https://example.org/ubuntu.img"},
	}
	if !slices.Equal(images, want) {
		t.Errorf("got  %+v\nwant %+v", images, want)
	}
	var got []string
	for _, problem := range problems {
		got = append(got, strings.TrimPrefix(problem.Error(), at(1, "images.toml")))
	}
	wantProblems := []string{
		`:4: no-url: want url, got none`,
		`:7: bad.url: want an http or https URL, got "/etc/shadow"`,
		`:8: bad.checksum: want a checksum such as "sha256:…" with 64 or "sha512:…" with 128 hexadecimal digits, got "sha256:12"`,
		`:9: bad.colour: unknown key`,
		`:10: "a/b": want the name of a stored image (letters, digits and ._:+-), got "a/b"`,
		`:12: "a+b": want a name without "+", which that of a unit cannot have, got "a+b"`,
		`:17: signed.key: want checksums or signature with it, got neither`,
	}
	if !slices.Equal(got, wantProblems) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(wantProblems, "\n"))
	}
}

// The table that is shipped is sound, and each image in it can be checked.
func TestShippedImages(t *testing.T) {
	p := Paths{ImageTableDirs: []string{"../packaging"}}
	images, problems := LoadImages(p)
	for _, problem := range problems {
		t.Error(problem)
	}
	var names []string
	for _, i := range images {
		names = append(names, i.Name)
		for _, url := range []string{i.URL, i.Checksums} {
			if !strings.HasPrefix(url, "https://") {
				t.Errorf("%s: %q is not https", i.Name, url)
			}
		}
		if i.Description == "" {
			t.Errorf("%s has no description", i.Name)
		}
	}
	for _, want := range []string{"debian-12", "debian-13", "ubuntu-24.04", "fedora-42", "alpine-3.22"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s in %v", want, names)
		}
	}
}

package config

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// ImageSource is where a publisher has an image that machines call by a short
// name: one table of images.toml, named so. The tags are those of [Machine].
type ImageSource struct {
	Name string `toml:"-" json:"name"`

	URL         string `toml:"url" json:"url" form:"url" doc:"http or https URL of the image; may be compressed by xz, gzip or zstd"`
	Checksums   string `toml:"checksums" json:"checksums,omitempty" form:"url" doc:"URL of the publisher's list of checksums (SHA256SUMS, SHA512SUMS and the like)"`
	Checksum    string `toml:"checksum" json:"checksum,omitempty" form:"checksum" doc:"checksum of what is at the URL, such as \"sha256:…\"; goes before checksums"`
	Signature   string `toml:"signature" json:"signature,omitempty" form:"url" doc:"URL of a detached OpenPGP signature of the list of checksums, or without a list of the image; default: that which the list has around it"`
	Key         Text   `toml:"key" json:"key,omitempty" doc:"absolute path of a file with OpenPGP public keys, or their text; the signature is checked where it is given, and has to be by one of them"`
	Description string `toml:"description" json:"description,omitempty" doc:"one line for people"`
}

// imageTable is the base name of the files with image sources.
const imageTable = "images"

// LoadImages reads where images can be had by short names: images.toml in each
// directory, each extending and overriding, key by key, those of a lower
// precedence, then the drop-ins. They are sorted by name; one with a problem is
// left out.
func LoadImages(p Paths) ([]ImageSource, []Problem) {
	var sources []*source
	for _, dir := range slices.Backward(p.ImageTableDirs) {
		if at := p.find([]string{dir}, imageTable); at.file != "" {
			sources = append(sources, p.source(at.file, false))
		}
	}
	sources = append(sources, p.dropIns(p.find(p.ImageTableDirs, imageTable).dropIns)...)
	files := layered(sources)
	schema := schemaOf(reflect.TypeFor[ImageSource]())
	images := []ImageSource{}
	d := decoder{}
	for i, name := range files.tree.keys {
		before := len(d.wrong)
		image := ImageSource{Name: name}
		d.enter(name)
		d.image(schema, files.tree.nodes[i], &image)
		d.leave()
		if len(d.wrong) == before {
			images = append(images, image)
		}
	}
	slices.SortFunc(images, func(a, b ImageSource) int { return strings.Compare(a.Name, b.Name) })
	problems := slices.Concat(files.problems, d.problems(files.origin))
	SortProblems(problems)
	return images, problems
}

// image decodes one table.
func (d *decoder) image(schema *table, node any, image *ImageSource) {
	t, ok := node.(*tree)
	want := wantImage(image.Name)
	switch {
	case !ok:
		d.want("a table with the name of an image, such as [debian-13]", node)
	case want != "":
		d.want(want, image.Name)
	case strings.Contains(image.Name, "+"):
		d.want("a name without \"+\", which that of a unit cannot have", image.Name)
	default:
		d.table(schema, t, reflect.ValueOf(image).Elem())
		if image.URL == "" && !d.bad[strings.Join(append(slices.Clone(d.path), "url"), ".")] {
			d.mistake("", "want url, got none")
		}
		if image.Key != "" && image.Checksums == "" && image.Signature == "" {
			d.enter("key")
			d.mistake("", "want checksums or signature with it, got neither")
			d.leave()
		}
	}
}

// ImageTables are the files that LoadImages looks for, for messages.
func ImageTables(p Paths) []string {
	var files []string
	for _, dir := range p.ImageTableDirs {
		files = append(files, filepath.Join(dir, imageTable+suffix))
	}
	return files
}

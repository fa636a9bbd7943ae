package config

import (
	"reflect"
	"slices"
)

// Settings are the host's own (vmctl.toml, and vmctl.toml.d beside it). The
// tags are those of [Machine].
type Settings struct {
	Hypervisor string `toml:"hypervisor" json:"hypervisor" enum:"qemu|cloud-hypervisor" default:"\"qemu\"" doc:"what runs machines whose definition does not say"`
	Network    string `toml:"network" json:"network,omitempty" form:"name" doc:"what network cards are plugged into whose definition does not say"`
}

// loadSettings reads the host's settings. Where something is wrong with them
// the rest holds: a typing error there must not keep every machine from
// starting.
func loadSettings(p Paths) (Settings, []Problem) {
	at := p.find(p.SettingsDirs, "vmctl")
	var sources []*source
	if at.file != "" {
		sources = append(sources, p.source(at.file, false))
	}
	files := layered(slices.Concat(sources, p.dropIns(at.dropIns)))
	schema := schemaOf(reflect.TypeFor[Settings]())
	s := schema.zero.Interface().(Settings)
	d := decoder{}
	d.table(schema, files.tree, reflect.ValueOf(&s).Elem())
	return s, slices.Concat(files.problems, d.problems(files.origin))
}

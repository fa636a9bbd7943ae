package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// SecurityGroup is a set of rules that several cards share: NAME.toml in the
// directories of security groups, with its drop-ins. The tags are those of
// [Machine].
type SecurityGroup struct {
	Name   string  `toml:"-" json:"name"`
	origin *origin // where each key was written

	Description string `toml:"description" json:"description,omitempty" doc:"one line for people"`

	AllowIn  []Rule `toml:"allow_in" json:"allow_in,omitempty" form:"rule_in" doc:"as the cards' own; all that is in one of the lists that a card has by itself or by its groups is let through"`
	AllowOut []Rule `toml:"allow_out" json:"allow_out,omitempty" form:"rule_out" doc:"the same for what guests send"`
	DenyIn   []Rule `toml:"deny_in" json:"deny_in,omitempty" form:"rule_in" doc:"as the cards' own: dropped, whatever is allowed"`
	DenyOut  []Rule `toml:"deny_out" json:"deny_out,omitempty" form:"rule_out" doc:"the same for what guests send"`
}

// SecurityGroupFile is one security group as it was found.
type SecurityGroupFile struct {
	Name     string
	File     string
	Group    *SecurityGroup // nil where there are problems
	Problems []Problem
}

// LoadSecurityGroups reads every security group, by name.
func LoadSecurityGroups(p Paths) ([]SecurityGroupFile, []Problem) {
	found, problems := p.search(p.SecurityGroupDirs)
	var all []SecurityGroupFile
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if g := loadSecurityGroup(p, name, found[name]); g != nil {
			all = append(all, *g)
		}
	}
	return all, problems
}

// LoadSecurityGroup reads one security group. The error is fs.ErrNotExist where
// none is defined by that name.
func LoadSecurityGroup(p Paths, name string) (SecurityGroupFile, error) {
	at := p.find(p.SecurityGroupDirs, name)
	if CheckName(name) == nil && at.file != "" {
		if g := loadSecurityGroup(p, name, at); g != nil {
			return *g, nil
		}
	}
	return SecurityGroupFile{}, fmt.Errorf("security group %s: %w in %s", show(name), fs.ErrNotExist, strings.Join(p.SecurityGroupDirs, ", "))
}

// SecurityGroupsOf reads the groups that a card is in. Where one is not there, or
// has problems, the error says which, at the card's key.
func SecurityGroupsOf(p Paths, m *Machine, n NIC) ([]*SecurityGroup, error) {
	var groups []*SecurityGroup
	for i, name := range n.SecurityGroups {
		file, err := LoadSecurityGroup(p, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if text := file.missing(err != nil, name); text != "" {
			return nil, m.Problem(index(n.Key()+".security_groups", i), "%s", text)
		}
		groups = append(groups, file.Group)
	}
	return groups, nil
}

// missing says why the group cannot be had, "" where it can.
func (f SecurityGroupFile) missing(absent bool, name string) string {
	switch {
	case absent:
		return "want a security group that is defined, got " + show(name)
	case len(f.Problems) > 0:
		return "want a security group without problems, got " + show(name) + ": " + f.Problems[0].Error()
	}
	return ""
}

// loadSecurityGroup reads one security group; nil where it is masked.
func loadSecurityGroup(p Paths, name string, at entry) *SecurityGroupFile {
	main := p.source(at.file, false)
	if main.masked {
		return nil
	}
	out := SecurityGroupFile{Name: name, File: main.file}
	files := layered(slices.Concat([]*source{main}, p.dropIns(at.dropIns)))
	if out.Problems = files.problems; len(out.Problems) > 0 {
		SortProblems(out.Problems)
		return &out
	}
	g := SecurityGroup{Name: name, origin: &files.origin}
	d := decoder{}
	d.table(schemaOf(reflect.TypeFor[SecurityGroup]()), files.tree, reflect.ValueOf(&g).Elem())
	c := checker{decoder: &d, tree: files.tree}
	c.checkLists("", Lists{g.AllowIn, g.AllowOut, g.DenyIn, g.DenyOut})
	out.Problems = d.problems(files.origin)
	if len(out.Problems) == 0 && len(g.AllowIn)+len(g.AllowOut)+len(g.DenyIn)+len(g.DenyOut) == 0 {
		out.Problems = []Problem{{File: main.file, Text: "want at least one of allow_in, allow_out, deny_in, deny_out, got none"}}
	}
	SortProblems(out.Problems)
	if len(out.Problems) == 0 {
		out.Group = &g
	}
	return &out
}

// listKeys are the keys of a card's or group's lists.
var listKeys = []string{"allow_in", "allow_out", "deny_in", "deny_out"}

// checkLists refuses lists that are there and have nothing in them: whether that
// means everything or nothing, each reader would guess differently.
func (c *checker) checkLists(table string, l Lists) {
	for i, rules := range [][]Rule{l.AllowIn, l.AllowOut, l.DenyIn, l.DenyOut} {
		key := join(table, listKeys[i])
		if len(rules) == 0 && c.given(strings.Split(key, ".")...) && c.good(key) {
			direction := "in"
			if strings.HasSuffix(key, "out") {
				direction = "out"
			}
			c.bad(key, "want at least one rule; deny_%[1]s = [\"any\"] lets nothing through, allow_%[1]s = [\"any\"] everything", direction)
		}
	}
}

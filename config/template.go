package config

import (
	"fmt"
	"io/fs"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Template is one template as it was found, with those below it.
type Template struct {
	Name        string
	File        string
	Description string      // what it gives to machines that have none of their own
	Parameters  []Parameter // without those that have problems
	Problems    []Problem   // as far as they can be told without a machine
}

// LoadTemplates reads every template, by name.
func LoadTemplates(p Paths) ([]Template, []Problem) {
	found, problems := p.search(p.TemplateDirs)
	l := newLoader(p)
	var all []Template
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if t := l.loadTemplate(name, found[name].file); t != nil {
			all = append(all, *t)
		}
	}
	return all, problems
}

// LoadTemplate reads one template. The error is fs.ErrNotExist where there is
// none by that name.
func LoadTemplate(p Paths, name string) (Template, error) {
	if at := p.find(p.TemplateDirs, name); CheckName(name) == nil && at.file != "" {
		if t := newLoader(p).loadTemplate(name, at.file); t != nil {
			return *t, nil
		}
	}
	return Template{}, fmt.Errorf("template %s: %w in %s", show(name), fs.ErrNotExist, strings.Join(p.TemplateDirs, ", "))
}

// loadTemplate reads one template; nil where it is masked.
func (l *loader) loadTemplate(name, file string) *Template {
	files := l.template(name, nil)
	if files == nil {
		return nil
	}
	t := &Template{Name: name, File: file, Problems: files.problems}
	t.Description, _ = files.tree.node("description").(string)
	if len(t.Problems) > 0 {
		return t
	}
	var d decoder
	t.Parameters = decodeParameters(&d, parametersOf(files.sources))
	if t.Problems = d.problems(files.origin); len(t.Problems) > 0 {
		SortProblems(t.Problems)
		t.Parameters = nil
		return t
	}
	t.Problems = l.tryTemplate(*files, t.Parameters)
	return t
}

// tryTemplate finds what is wrong with a template whatever the parameters without
// a default are going to be.
func (l *loader) tryTemplate(files layers, parameters []Parameter) []Problem {
	values := map[string]any{machineName: "name"}
	for _, p := range parameters {
		values[p.Name] = p.Default.of
		if p.Default.IsZero() {
			values[p.Name] = map[string]any{"string": "", "integer": int64(0), "boolean": false, "list": []any{}}[p.Type]
		}
	}
	files = files.filledWith(values)
	if len(files.problems) > 0 {
		return files.problems
	}
	var d decoder
	v := reflect.New(reflect.TypeFor[Machine]()).Elem()
	v.Set(l.schema.zero)
	d.table(l.schema, files.tree, v)
	d.wrong = slices.DeleteFunc(d.wrong, func(m mistake) bool { return len(files.filled[m.key]) > 0 })
	problems := d.problems(files.origin)
	SortProblems(problems)
	return problems
}

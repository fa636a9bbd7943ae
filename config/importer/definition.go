package importer

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/vmctl/vmctl/config"
)

// Result is what a file becomes.
type Result struct {
	Definitions []*Definition
	NotCarried  []NotCarried // of no definition
}

// Definition is a file of vmctl's that a machine, network or template of another
// manager becomes.
type Definition struct {
	Kind       config.Kind
	Name       string // here
	Called     string // there
	Line       int    // where it begins
	Draft      *config.Draft
	NotCarried []NotCarried
}

// NotCarried is one thing that a definition does not say, though the original did.
type NotCarried struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`
	Key     string `json:"key"`
	Value   string `json:"value,omitempty"`
	Why     string `json:"why"`
	Instead string `json:"instead,omitempty"` // what to do
}

// String is a line for people.
func (n NotCarried) String() string {
	return config.Problem{File: n.File, Line: n.Line, Text: n.Text()}.Error()
}

// Text is the line without the place.
func (n NotCarried) Text() string {
	s := n.Key
	if n.Value != "" {
		s += fmt.Sprintf(" (%s)", n.Value)
	}
	s += " is not carried over: " + n.Why
	if n.Instead != "" {
		s += "; " + n.Instead
	}
	return s
}

// Builder writes one definition.
type Builder struct {
	Definition
	file string
}

// NewBuilder begins the definition of what n describes. name is where its name
// stands; one that is none here is changed, which is told. The error is of one of
// which nothing is left: a [config.Problem].
func NewBuilder(file string, kind config.Kind, n, name *Node) (*Builder, error) {
	here := name.Text()
	if config.CheckName(here) != nil {
		here = config.PlainName(here, 63)
	}
	if here == "" {
		return nil, config.Problem{File: file, Line: n.Line, Text: fmt.Sprintf("want a name with letters or digits for a %s, got %q", kind, name.Text())}
	}
	b := NewNamedBuilder(file, kind, n, name.Text(), here)
	if b.Name == b.Called {
		return b, nil
	}
	b.Leave(name, "want a name of a-z, 0-9 and hyphens", "it is called "+b.Name)
	return b, nil
}

// NewNamedBuilder is [NewBuilder] for what is called so there, and has this name
// here, of which nobody is told.
func NewNamedBuilder(file string, kind config.Kind, n *Node, called, name string) *Builder {
	b := &Builder{Definition{Kind: kind, Name: name, Called: called, Line: n.Line, Draft: config.NewDraft()}, file}
	if kind == config.KindNetwork {
		b.Draft = config.NewNetworkDraft()
	}
	return b
}

// Set sets a key of the definition by what n says. A value that the schema refuses
// is not carried over.
func (b *Builder) Set(n *Node, key, value string) bool {
	if err := b.Draft.Set(key, value); err != nil {
		b.Leave(n, fmt.Sprintf("%s: %v", key, err), "")
		return false
	}
	return true
}

// Default sets a key of which the original says nothing, because it has another
// default there. The value is one that the schema has.
func (b *Builder) Default(key, value string) {
	if err := b.Draft.Set(key, value); err != nil {
		panic(fmt.Sprintf("%s = %s: %v", key, value, err))
	}
}

// Leave tells that n is not carried over, why, and what to do instead.
func (b *Builder) Leave(n *Node, why, instead string) {
	if n == nil {
		return
	}
	n.Drop()
	b.Tell(n, "", n.Show(), why, instead)
}

// Left is something of a file that no definition says.
func Left(file string, n *Node, why, instead string) NotCarried {
	return NotCarried{file, n.Line, n.Path(), n.Show(), why, instead}
}

// Tell is Leave for what n does not say itself, or not as a whole: below is its path
// from there.
func (b *Builder) Tell(n *Node, below, value, why, instead string) {
	b.NotCarried = append(b.NotCarried, NotCarried{b.file, n.Line, n.Path() + below, value, why, instead})
}

// Finish tells of all below n that nobody has looked at, and ends the definition.
// reason says why, and what to do instead; both may be "".
func (b *Builder) Finish(n *Node, reason func(*Node) (why, instead string)) *Definition {
	for _, left := range n.left() {
		why, instead := reason(left)
		b.Leave(left, cmp.Or(why, "vmctl has nothing like it"), instead)
	}
	slices.SortStableFunc(b.NotCarried, func(x, y NotCarried) int { return cmp.Compare(x.Line, y.Line) })
	return &b.Definition
}

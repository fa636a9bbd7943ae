package importer

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Node is a part of a document: an element or attribute of XML, a key or an
// element of a list of YAML. It remembers whether it has been looked at. All
// methods work on nil, which is a part that is not there.
type Node struct {
	Name     string // of an attribute "@NAME"; "" for an element of a list
	Line     int    // from 1
	Children []*Node

	text   string
	seen   bool // somebody has asked for it
	read   bool // and for its text
	parent *Node
	xml    bool
	yaml   *yaml.Node // of YAML
}

func (n *Node) add(child *Node) {
	child.parent, child.xml = n, n.xml
	n.Children = append(n.Children, child)
}

// At is the first part below n by a path of names, nil where there is none.
func (n *Node) At(path ...string) *Node {
	for _, name := range path {
		if n == nil {
			return nil
		}
		i := slices.IndexFunc(n.Children, func(c *Node) bool { return c.Name == name })
		if i < 0 {
			return nil
		}
		n = n.Children[i]
		n.seen = true
	}
	return n
}

// All are the parts of n of a name.
func (n *Node) All(name string) []*Node {
	var all []*Node
	if n == nil {
		return nil
	}
	for _, c := range n.Children {
		if c.Name == name {
			c.seen = true
			all = append(all, c)
		}
	}
	return all
}

// Items are the elements of a list.
func (n *Node) Items() []*Node { return n.All("") }

// Parts are all parts of n, of which none is looked at by that.
func (n *Node) Parts() []*Node {
	if n == nil {
		return nil
	}
	return n.Children
}

// Text is what n says, "" where it is not there.
func (n *Node) Text() string {
	if n == nil {
		return ""
	}
	n.seen, n.read = true, true
	return n.text
}

// Attribute is the attribute of an element.
func (n *Node) Attribute(name string) *Node { return n.At("@" + name) }

// Attr is the text of an attribute.
func (n *Node) Attr(name string) string { return n.Attribute(name).Text() }

// Drop says that nothing of n is of any use here, so that nobody is told of it.
func (n *Node) Drop() {
	if n == nil {
		return
	}
	n.seen, n.read = true, true
	for _, c := range n.Children {
		c.Drop()
	}
}

// DropAll drops the first part of each name.
func (n *Node) DropAll(names ...string) {
	for _, name := range names {
		for _, c := range n.All(name) {
			c.Drop()
		}
	}
}

// left are the parts that nobody has looked at, without those in them.
func (n *Node) left() []*Node {
	if !n.seen {
		return []*Node{n}
	}
	var all []*Node
	if !n.read && n.text != "" {
		all = append(all, n)
	}
	for _, c := range n.Children {
		all = append(all, c.left()...)
	}
	return all
}

// Path says where n is: in XPath for XML, else as "vms[0].drives[1].interface".
func (n *Node) Path() string {
	if n == nil {
		return ""
	}
	if n.xml {
		return n.parent.Path() + "/" + n.Name + n.position()
	}
	if n.parent == nil {
		return ""
	}
	if n.Name == "" {
		return fmt.Sprintf("%s[%d]", n.parent.Path(), slices.Index(n.parent.Children, n))
	}
	if above := n.parent.Path(); above != "" {
		return above + "." + n.Name
	}
	return n.Name
}

// position tells an element from others of its name.
func (n *Node) position() string {
	if n.parent == nil {
		return ""
	}
	same, at := 0, 0
	for _, c := range n.parent.Children {
		if c.Name == n.Name {
			same++
		}
		if c == n {
			at = same
		}
	}
	if same < 2 {
		return ""
	}
	return fmt.Sprintf("[%d]", at)
}

// maxShown is how much of a value is shown, in bytes.
const maxShown = 100

// Show is what n says, in one line: its text, or what its parts say.
func (n *Node) Show() string {
	if n == nil {
		return ""
	}
	s := strings.Join(strings.Fields(n.show(true)), " ")
	if len(s) > maxShown {
		s = strings.ToValidUTF8(s[:maxShown], "") + "…"
	}
	return s
}

// secrets are what is not shown, by name.
var secrets = []string{"@passwd", "@password", "password", "passwd", "secret", "user_data", "userData"}

func (n *Node) show(top bool) string {
	var parts []string
	if slices.Contains(secrets, n.Name) {
		parts = append(parts, "(not shown)")
	} else if n.text != "" {
		parts = append(parts, n.text)
	}
	if len(n.Children) > 0 && parts == nil {
		for _, c := range n.Children {
			parts = append(parts, c.show(false))
		}
	}
	inside := strings.Join(parts, " ")
	name := strings.TrimPrefix(n.Name, "@")
	switch {
	case top || name == "":
		return inside
	case inside == "":
		return name
	case name != n.Name:
		return fmt.Sprintf("%s=%s", name, inside)
	}
	return fmt.Sprintf("%s(%s)", name, inside)
}

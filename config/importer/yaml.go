package importer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"

	"github.com/vmctl/vmctl/config"
)

// maxParts is how many parts a document may have once what aliases stand for is put
// in their places.
const maxParts = 100_000

// yamlLine is where yaml says that something is wrong.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// ParseYAML reads a text that is one document, a mapping. Aliases and merge keys are
// put in, within limits. The error is a [config.Problem].
func ParseYAML(file string, data []byte) (*Node, error) {
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, config.Problem{File: file, Text: "want YAML, got " + describe(data)}
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	err := d.Decode(&doc)
	switch {
	case err == io.EOF:
		return nil, config.Problem{File: file, Text: "want YAML, got an empty file"}
	case err == nil && d.Decode(&more) != io.EOF:
		return nil, config.Problem{File: file, Line: more.Line, Text: "want one document, got several"}
	case err != nil:
		at := yamlLine.FindStringSubmatch(err.Error())
		if at == nil {
			return nil, config.Problem{File: file, Text: fmt.Sprintf("want YAML: %v", err)}
		}
		line, _ := strconv.Atoi(at[1]) // none is 0
		return nil, config.Problem{File: file, Line: line, Text: "want YAML: " + err.Error()[len(at[0]):]}
	}
	r := yamlReader{file: file}
	plain, err := r.plain(doc.Content[0], 0)
	if err != nil {
		return nil, err
	}
	if plain.Kind != yaml.MappingNode {
		return nil, config.Problem{File: file, Line: plain.Line, Text: "want a mapping at the top, got " + describe(data)}
	}
	return node(plain), nil
}

type yamlReader struct {
	file  string
	parts int
}

// plain is n with what aliases and merge keys stand for in their places.
func (r *yamlReader) plain(n *yaml.Node, depth int) (*yaml.Node, error) {
	if r.parts++; r.parts > maxParts || depth > maxDepth {
		return nil, config.Problem{File: r.file, Line: n.Line, Text: fmt.Sprintf("want at most %d parts, at most %d deep in one another, once aliases are put in", maxParts, maxDepth)}
	}
	if n.Kind == yaml.AliasNode {
		return r.plain(n.Alias, depth+1)
	}
	out := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Value: n.Value, Style: n.Style, Line: n.Line}
	if n.Kind != yaml.MappingNode {
		for _, c := range n.Content {
			p, err := r.plain(c, depth+1)
			if err != nil {
				return nil, err
			}
			out.Content = append(out.Content, p)
		}
		return out, nil
	}
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		value, err := r.plain(n.Content[i+1], depth+1)
		key := n.Content[i]
		switch {
		case err != nil:
			return nil, err
		case key.Kind != yaml.ScalarNode:
			return nil, config.Problem{File: r.file, Line: key.Line, Text: "want a text as a key"}
		case key.Value == "<<" && value.Kind == yaml.SequenceNode:
			merged = append(merged, value.Content...)
		case key.Value == "<<":
			merged = append(merged, value)
		case mapped(out, key.Value) != nil:
			return nil, config.Problem{File: r.file, Line: key.Line, Key: key.Value, Text: "stands twice in one mapping"}
		default:
			set(out, key, value)
		}
	}
	for _, m := range merged { // where the mapping has no such key itself
		if m.Kind != yaml.MappingNode {
			return nil, config.Problem{File: r.file, Line: m.Line, Key: "<<", Text: "want a mapping"}
		}
		for i := 0; i+1 < len(m.Content); i += 2 {
			if mapped(out, m.Content[i].Value) == nil {
				set(out, m.Content[i], m.Content[i+1])
			}
		}
	}
	return out, nil
}

func set(mapping, key, value *yaml.Node) {
	mapping.Content = append(mapping.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: key.Tag, Value: key.Value, Style: key.Style, Line: key.Line}, value)
}

// mapped is the value of a key, nil where there is none.
func mapped(mapping *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

// node makes a Node of YAML.
func node(y *yaml.Node) *Node {
	n := &Node{Line: y.Line, yaml: y, seen: true}
	switch y.Kind {
	case yaml.ScalarNode:
		if y.Tag != "!!null" {
			n.text = y.Value
		}
	case yaml.SequenceNode:
		for _, c := range y.Content {
			item := node(c)
			item.seen = false
			n.add(item)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(y.Content); i += 2 {
			value := node(y.Content[i+1])
			value.Name, value.Line, value.seen = y.Content[i].Value, y.Content[i].Line, false
			n.add(value)
		}
	}
	return n
}

// IsTrue says whether a value of YAML is true, in its older notation too.
func (n *Node) IsTrue() bool {
	return slices.Contains([]string{"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"}, n.Text())
}

// YAML is what n says as a document of its own.
func (n *Node) YAML() (string, error) {
	n.Drop()
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(n.yaml), e.Close()); err != nil {
		return "", err
	}
	return b.String(), nil
}

// IsMapping says whether n is a mapping of YAML, and not a text.
func (n *Node) IsMapping() bool { return n != nil && n.yaml != nil && n.yaml.Kind == yaml.MappingNode }

// AppendTexts adds texts to the list of a key in a mapping of YAML, and makes it
// where it is not there.
func (n *Node) AppendTexts(key string, texts []string) {
	list := mapped(n.yaml, key)
	if list == nil || list.Kind != yaml.SequenceNode {
		list = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		set(n.yaml, &yaml.Node{Tag: "!!str", Value: key}, list)
	}
	for _, text := range texts {
		list.Content = append(list.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text})
	}
}

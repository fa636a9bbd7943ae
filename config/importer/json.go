package importer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/vmctl/vmctl/config"
)

// ParseJSON reads one value of JSON. The error is a [config.Problem].
func ParseJSON(file string, data []byte) (*Node, error) {
	r := jsonReader{file: file, data: data, decoder: json.NewDecoder(bytes.NewReader(data))}
	r.decoder.UseNumber()
	n, err := r.value(0)
	if err == nil {
		if _, err = r.decoder.Token(); err == io.EOF {
			n.seen = true
			return n, nil
		}
		err = errors.New("more than one value")
	}
	if p, ok := errors.AsType[config.Problem](err); ok {
		return nil, p
	}
	if len(bytes.TrimSpace(data)) == 0 {
		err = errors.New("got an empty file")
	}
	return nil, config.Problem{File: file, Line: r.line(), Text: fmt.Sprintf("want JSON: %v", err)}
}

type jsonReader struct {
	file    string
	data    []byte
	decoder *json.Decoder

	// Lines are counted once: up to read there are lines of them.
	read  int64
	lines int
}

func (r *jsonReader) line() int {
	at := min(r.decoder.InputOffset(), int64(len(r.data)))
	r.lines += bytes.Count(r.data[r.read:at], []byte("\n"))
	r.read = at
	return r.lines + 1
}

func (r *jsonReader) value(depth int) (*Node, error) {
	if depth > maxDepth {
		return nil, config.Problem{File: r.file, Line: r.line(), Text: fmt.Sprintf("want values at most %d deep in one another", maxDepth)}
	}
	token, err := r.decoder.Token()
	if err != nil {
		return nil, err
	}
	n := &Node{Line: r.line()}
	switch token := token.(type) {
	case json.Delim:
		for r.decoder.More() {
			name := ""
			if token == '{' {
				key, err := r.decoder.Token()
				if err != nil {
					return nil, err
				}
				name = key.(string) // of an object, keys are
			}
			child, err := r.value(depth + 1)
			if err != nil {
				return nil, err
			}
			child.Name = name
			n.add(child)
		}
		if _, err := r.decoder.Token(); err != nil { // which closes it
			return nil, err
		}
	case nil:
	default:
		n.text = fmt.Sprint(token)
	}
	return n, nil
}

// Inside parses a text that n says as JSON of its own, which is where n is.
func (n *Node) Inside(file string) (*Node, error) {
	inside, err := ParseJSON(file, []byte(n.Text()))
	if p, ok := errors.AsType[config.Problem](err); ok {
		p.Line, p.Key = n.Line, n.Path()
		return nil, p
	}
	if err != nil {
		return nil, err
	}
	inside.Name, inside.parent = n.Name, n.parent
	inside.moveTo(n.Line)
	return inside, nil
}

func (n *Node) moveTo(line int) {
	n.Line = line
	for _, c := range n.Children {
		c.moveTo(line)
	}
}

package importer

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"

	"github.com/vmctl/vmctl/config"
)

// maxDepth is how deep the parts of a document may be in one another.
const maxDepth = 64

// ParseXML reads the elements at the top of a text: there may be several, as where
// several documents were put after one another. namespaces are the prefixes of
// those whose elements keep one, by URL. A document type is refused, and with it
// all entities but those of XML itself. The error is a [config.Problem].
func ParseXML(file string, data []byte, namespaces map[string]string) ([]*Node, error) {
	d := xml.NewDecoder(bytes.NewReader(data))
	top := &Node{}
	at := top
	texts := [][]byte{nil} // of the elements that are open
	for {
		line, _ := d.InputPos()
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if syntax, ok := errors.AsType[*xml.SyntaxError](err); ok {
			return nil, config.Problem{File: file, Line: syntax.Line, Text: "want XML: " + syntax.Msg}
		}
		if err != nil {
			return nil, config.Problem{File: file, Line: line, Text: fmt.Sprintf("want XML: %v", err)}
		}
		switch token := token.(type) {
		case xml.Directive:
			return nil, config.Problem{File: file, Line: line, Text: "want XML without a document type (<!DOCTYPE>), which nothing here has"}
		case xml.StartElement:
			if texts = append(texts, nil); len(texts) > maxDepth {
				return nil, config.Problem{File: file, Line: line, Text: fmt.Sprintf("want elements at most %d deep in one another", maxDepth)}
			}
			n := &Node{Name: namespaces[token.Name.Space] + token.Name.Local, Line: line, xml: true}
			at.add(n)
			n.xml = true
			for _, a := range token.Attr {
				if a.Name.Space != "xmlns" && a.Name.Local != "xmlns" {
					n.add(&Node{Name: "@" + a.Name.Local, Line: line, text: a.Value})
				}
			}
			at = n
		case xml.EndElement:
			last := len(texts) - 1
			at.text = string(bytes.TrimSpace(texts[last]))
			at, texts = at.parent, texts[:last]
		case xml.CharData:
			texts[len(texts)-1] = append(texts[len(texts)-1], token...)
		}
	}
	if len(bytes.TrimSpace(texts[0])) > 0 || len(top.Children) == 0 {
		return nil, config.Problem{File: file, Line: 1, Text: "want XML, got " + describe(data)}
	}
	for _, n := range top.Children {
		n.parent, n.seen = nil, true
	}
	return top.Children, nil
}

// describe says what a text is that is not what was wanted.
func describe(data []byte) string {
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return "an empty file"
	case bytes.HasPrefix(data, []byte("SQLite format 3\x00")):
		return "an SQLite database"
	case bytes.IndexByte(data, 0) >= 0:
		return "a binary file"
	}
	return "other text"
}

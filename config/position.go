package config

import (
	"strconv"
	"strings"
)

// place is where a key was written.
type place struct {
	line  int
	table bool
}

// places finds the line of each key of a document that the TOML library has
// accepted (it does not export its own, BurntSushi/toml#462). Keys are dotted;
// the elements of a list are "key[0]", "key[1]" and so on. It is only done
// where there is a problem to report.
func places(doc string) map[string]place {
	s := scanner{doc: doc, line: 1, found: map[string]place{}}
	table := ""
	for s.space(); s.at < len(s.doc); s.space() {
		if !s.eat("[") {
			s.pair(table)
			continue
		}
		list := s.eat("[")
		line := s.line
		table = s.key("", ']')
		s.eat("]")
		if list {
			s.eat("]")
		}
		if _, there := s.found[table]; !there || !list {
			s.found[table] = place{line, true}
		}
	}
	return s.found
}

// scanner goes through a document. What it finds is right where that is valid;
// it comes to the end of any.
type scanner struct {
	doc   string
	at    int
	line  int
	found map[string]place
}

func (s *scanner) next() byte {
	if s.at >= len(s.doc) {
		return 0
	}
	return s.doc[s.at]
}

// skip goes n bytes on.
func (s *scanner) skip(n int) {
	end := min(s.at+n, len(s.doc))
	s.line += strings.Count(s.doc[s.at:end], "\n")
	s.at = end
}

func (s *scanner) eat(token string) bool {
	if !strings.HasPrefix(s.doc[s.at:], token) {
		return false
	}
	s.skip(len(token))
	return true
}

// space skips white space, line ends and comments.
func (s *scanner) space() {
	for s.at < len(s.doc) {
		switch s.next() {
		case ' ', '\t', '\n', '\r':
			s.skip(1)
		case '#':
			s.until("\n")
		default:
			return
		}
	}
}

// until goes to the next of the bytes in stop.
func (s *scanner) until(stop string) {
	n := strings.IndexAny(s.doc[s.at:], stop)
	if n < 0 {
		n = len(s.doc) - s.at
	}
	s.skip(n)
}

// pair reads a key and its value.
func (s *scanner) pair(table string) {
	line := s.line
	key := s.key(table, '=')
	s.eat("=")
	s.space()
	s.found[key] = place{line, s.next() == '{'}
	s.value(key)
}

// key reads a key with all its parts up to the byte end, and notes the tables
// that it implies.
func (s *scanner) key(table string, end byte) string {
	key, line := table, s.line
	for s.space(); s.at < len(s.doc) && s.next() != end; s.space() {
		if s.eat(".") {
			continue
		}
		if key != table {
			if _, there := s.found[key]; !there {
				s.found[key] = place{line, true}
			}
		}
		key = join(key, s.part(end))
	}
	return key
}

// part reads one part of a key.
func (s *scanner) part(end byte) string {
	start := s.at
	if quote := s.next(); quote == '"' || quote == '\'' {
		s.text()
		if text, err := strconv.Unquote(s.doc[start:s.at]); err == nil && quote == '"' {
			return text
		}
		return s.doc[start+1 : max(start+1, s.at-1)]
	}
	s.until(" \t.\r\n" + string(end))
	if s.at == start {
		s.skip(1)
	}
	return s.doc[start:s.at]
}

// text skips a string.
func (s *scanner) text() {
	quote := s.doc[s.at : s.at+1]
	if long := strings.Repeat(quote, 3); s.eat(long) {
		for s.at < len(s.doc) && !strings.HasPrefix(s.doc[s.at:], long) {
			s.char(quote)
		}
		// Up to two quotes may stand before the three that end it.
		for s.at < len(s.doc) && s.doc[s.at:s.at+1] == quote {
			s.skip(1)
		}
		return
	}
	s.skip(1)
	for s.at < len(s.doc) && s.doc[s.at:s.at+1] != quote && s.next() != '\n' {
		s.char(quote)
	}
	s.eat(quote)
}

// char skips one character of a string, which in basic strings can be escaped.
func (s *scanner) char(quote string) {
	if quote == `"` && s.next() == '\\' {
		s.skip(1)
	}
	s.skip(1)
}

// value skips a value, noting the keys and elements in it.
func (s *scanner) value(key string) {
	switch s.next() {
	case '"', '\'':
		s.text()
	case '[':
		s.skip(1)
		s.list(key)
	case '{':
		s.skip(1)
		for s.space(); s.at < len(s.doc) && !s.eat("}"); s.space() {
			if !s.eat(",") {
				s.pair(key)
			}
		}
	default:
		start := s.at
		s.until(",]}#\r\n")
		if s.at == start {
			s.skip(1)
		}
	}
}

func (s *scanner) list(key string) {
	n := 0
	for s.space(); s.at < len(s.doc) && !s.eat("]"); s.space() {
		if s.eat(",") {
			continue
		}
		element := index(key, n)
		s.found[element] = place{line: s.line}
		s.value(element)
		n++
	}
}

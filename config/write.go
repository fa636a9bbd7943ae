package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Text writes the draft as TOML: keys in the order of the schema, devices in the
// order in which they were set. Loaded, it is what was set.
func (d *Draft) Text() string {
	var b strings.Builder
	writeTable(&b, d.schema, d.tree, "")
	return strings.TrimPrefix(b.String(), "\n")
}

// writeTable writes the keys of a table, then the tables in it. header is its
// own name.
func writeTable(b *strings.Builder, s *table, t *tree, header string) {
	tables := slices.ContainsFunc(t.nodes, func(node any) bool { _, is := node.(*tree); return is })
	if header != "" && (len(t.keys) == 0 || !tables || hasValues(t)) {
		fmt.Fprintf(b, "\n[%s]\n", header)
	}
	for _, key := range s.order(t) {
		if _, table := t.node(key).(*tree); !table {
			fmt.Fprintf(b, "%s = %s\n", quoteKey(key), quoteValue(t.node(key)))
		}
	}
	for _, key := range s.order(t) {
		sub, ok := t.node(key).(*tree)
		if !ok {
			continue
		}
		name := join(header, quoteKey(key))
		if f := s.byKey[key]; f != nil && f.named && !hasValues(sub) { // values are a mistake, which is told elsewhere
			for i, device := range sub.keys {
				writeTable(b, f.sub, sub.nodes[i].(*tree), join(name, quoteKey(device)))
			}
		} else if f != nil && f.sub != nil {
			writeTable(b, f.sub, sub, name)
		} else {
			writeTable(b, &table{}, sub, name)
		}
	}
}

// hasValues says whether a table has keys that are no tables.
func hasValues(t *tree) bool {
	return slices.ContainsFunc(t.nodes, func(node any) bool { _, is := node.(*tree); return !is })
}

// order is the keys of t: those that the schema knows in its order, then the
// others in their own.
func (s *table) order(t *tree) []string {
	var keys []string
	for _, f := range s.fields {
		if t.index(f.key) >= 0 {
			keys = append(keys, f.key)
		}
	}
	for _, key := range t.keys {
		if s.byKey[key] == nil {
			keys = append(keys, key)
		}
	}
	return keys
}

func quoteKey(key string) string {
	if key != "" && strings.Trim(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == "" {
		return key
	}
	return quoteLine(key)
}

// quoteValue writes a string, boolean, integer or list of them.
func quoteValue(v any) string {
	switch v := v.(type) {
	case string:
		if strings.Contains(strings.TrimSuffix(v, "\n"), "\n") {
			return quoteLines(v)
		}
		return quoteLine(v)
	case []any:
		parts := make([]string, len(v))
		for i, element := range v {
			parts[i] = quoteValue(element)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	return fmt.Sprint(v)
}

// quoteLine writes a basic string.
func quoteLine(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		if r == '\n' {
			b.WriteString(`\n`)
		} else if r == '"' {
			b.WriteString(`\"`)
		} else {
			escapeRune(&b, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// quoteLines writes a basic string of several lines. Its first newline, which
// TOML leaves out, is added.
func quoteLines(s string) string {
	var b strings.Builder
	b.WriteString("\"\"\"\n")
	for i, r := range s {
		// Three quotes would end it, and so would one before the last three.
		if r == '"' && (strings.HasPrefix(s[i:], `"""`) || strings.HasSuffix(s[:i], `"`) || i == len(s)-1) {
			b.WriteString(`\"`)
		} else if r == '"' || r == '\n' {
			b.WriteRune(r)
		} else {
			escapeRune(&b, r)
		}
	}
	return b.String() + `"""`
}

// escapeRune writes one character of a basic string; quotes and newlines are the
// caller's.
func escapeRune(b *strings.Builder, r rune) {
	switch {
	case r == '\\':
		b.WriteString(`\\`)
	case r == '\t':
		b.WriteString(`\t`)
	case r < ' ' || r == 0x7f:
		fmt.Fprintf(b, `\u%04X`, r)
	case !strconv.IsPrint(r): // would not be seen, or change what is seen
		fmt.Fprintf(b, `\U%08X`, r)
	default:
		b.WriteRune(r)
	}
}

package units

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// The quoting of unit files (systemd.syntax(7), and the parsers of 252 and
// 257). Every foreign string passes one of the functions below at the point
// where it is written; what cannot be written is refused.

// writable returns an error where s cannot stand in a unit file in any form:
// its lines end at CR and LF, and systemd ignores a line with NUL or with what
// it does not take for UTF-8, which includes the noncharacters of Unicode.
func writable(s string) error {
	if !utf8.ValidString(s) {
		return errors.New("is not valid UTF-8")
	}
	for _, r := range s {
		switch {
		case r == 0:
			return errors.New("contains a NUL character")
		case r == '\n' || r == '\r':
			return errors.New("contains a line break")
		case r >= 0xfdd0 && r <= 0xfdef, r&0xfffe == 0xfffe:
			return fmt.Errorf("contains %U, which is not a character", r)
		}
	}
	return nil
}

// quote puts s in double quotes where it would otherwise not be one word, and
// doubles "%", which starts a specifier, and the bytes of double. special are
// bytes that need the quotes beside white space, quotes and comments.
func quote(s, double, special string) (string, error) {
	if isPlain(s) {
		return s, nil
	}
	if err := writable(s); err != nil {
		return "", err
	}
	if s != "" && !strings.ContainsAny(s, " \t\v\f'\"\\;#%"+double+special) {
		return s, nil
	}
	b := make([]byte, 0, len(s)+16)
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\')
		case c == '%' || strings.IndexByte(double, c) >= 0:
			b = append(b, c)
		}
		b = append(b, s[i])
	}
	return string(append(b, '"')), nil
}

// isPlain says whether s means itself to every parser: most words do, and
// looking closer is most of the cost of quoting.
func isPlain(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= '+' && c <= '9' || c >= 'A' && c <= 'Z' || c == '=' || c == '_') {
			return false
		}
	}
	return s != ""
}

// argument quotes s as one argument of a command line (ExecStart= and the
// like), where "$" starts a variable.
func argument(s string) (string, error) { return quote(s, "$", "") }

// path quotes s as one path of a list (BindPaths=, DeviceAllow=), in which a
// colon ends it.
func path(s string) (string, error) { return quote(s, "", ":") }

// text writes s as the whole value of a setting in which nothing but
// specifiers is special (Description=, SourcePath=).
func text(s string) (string, error) { return raw(strings.ReplaceAll(s, "%", "%%")) }

// raw writes s as it is: its author knows the syntax of the setting. A
// backslash at the end would pull in the next line; with a space behind it,
// which systemd cuts off, it does not.
func raw(s string) (string, error) {
	if strings.HasSuffix(s, `\`) {
		s += " "
	}
	return s, writable(s)
}

// legible returns s in a form that can be written, and at most limit bytes
// long: for messages, which must get through whatever they say.
func legible(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || writable(string(r)) != nil {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, " "))
	if len(s) <= limit {
		return s
	}
	cut := limit - len("…")
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

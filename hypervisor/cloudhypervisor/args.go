package cloudhypervisor

import (
	"fmt"
	"slices"
	"strings"
)

// Everything that is quoted for cloud-hypervisor is quoted here. It has one
// syntax: "key=value,…", where double quotes take a comma or bracket their
// meaning, and one of their own is written twice (before v51, which is later than
// some versions in use, a quote cannot be written at all, and brackets count within
// quotes; see [fit]). Options that take a plain file name (--kernel, --initramfs,
// --firmware) or plain text (--cmdline) are parsed by nobody and passed as they
// are.

// options joins parts, each "key=value", to one argument. Empty parts are left
// out, so that a part can be given under a condition.
func options(parts ...string) string {
	var kept []string
	for _, p := range parts {
		if p != "" {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, ",")
}

// text is an option whose value may be any text.
func text(key, value string) string {
	if value != strings.TrimSpace(value) || strings.ContainsAny(value, `",[]`) {
		value = `"` + strings.ReplaceAll(value, `"`, `""`) + `"`
	}
	return key + "=" + value
}

// list is a value of several.
func list(values []string) string { return "[" + strings.Join(values, ",") + "]" }

// size is an option whose value is a number of bytes.
func size(key string, bytes int64) string {
	if bytes%mebibyte == 0 {
		return fmt.Sprintf("%s=%dM", key, bytes/mebibyte)
	}
	return fmt.Sprintf("%s=%d", key, bytes)
}

// split takes an argument apart at its commas; quotes stay.
func split(arg string) (parts []string) {
	depth, quoted, from := 0, false, 0
	for i, c := range arg {
		switch {
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[':
			depth++
		case c == ']':
			depth--
		case c == ',' && depth == 0:
			parts = append(parts, arg[from:i])
			from = i + 1
		}
	}
	return append(parts, arg[from:])
}

// option is the value of a key in an argument as it is after the quotes, and
// whether it is there.
func option(arg, key string) (value string, ok bool) {
	for _, part := range split(arg) {
		if v, found := strings.CutPrefix(part, key+"="); found {
			return unquote(v), true
		}
	}
	return "", false
}

func unquote(value string) string {
	if !strings.HasPrefix(value, `"`) {
		return value
	}
	return strings.ReplaceAll(strings.TrimSuffix(value[1:], `"`), `""`, `"`)
}

// without is arg without some of its keys.
func without(arg string, keys ...string) string {
	return strings.Join(slices.DeleteFunc(split(arg), func(part string) bool {
		key, _, _ := strings.Cut(part, "=")
		return slices.Contains(keys, key)
	}), ",")
}

// mapValues is argv with each value of an option changed by f.
func mapValues(argv []string, name string, f func(string) string) []string {
	out := slices.Clone(argv)
	within := false
	for i, arg := range out {
		switch {
		case strings.HasPrefix(arg, "-"):
			within = arg == name
		case within:
			out[i] = f(arg)
		}
	}
	return out
}

// values are those of an option.
func values(argv []string, name string) (all []string) {
	mapValues(argv, name, func(v string) string { all = append(all, v); return v })
	return all
}

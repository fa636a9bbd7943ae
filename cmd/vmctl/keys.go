package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/all"
)

// chord are keys that are pressed together, by the hypervisor's names.
type chord []string

// keyNames are what people call keys, beside their names.
var keyNames = map[string]string{
	"control": "ctrl", "ctl": "ctrl", "lctrl": "ctrl", "rctrl": "ctrl_r", "altgr": "alt_r",
	"super": "meta_l", "win": "meta_l", "windows": "meta_l", "meta": "meta_l", "cmd": "meta_l",
	"enter": "ret", "return": "ret", "escape": "esc", "space": "spc",
	"del": "delete", "ins": "insert", "pageup": "pgup", "pagedown": "pgdn", "bksp": "backspace",
	"capslock": "caps_lock", "numlock": "num_lock", "scrolllock": "scroll_lock", "printscreen": "print", "prtsc": "print",
}

// parseChord reads "ctrl-alt-delete"; known are the names of keys.
func parseChord(text string, known []string) (chord, error) {
	var keys chord
	for word := range strings.SplitSeq(text, "-") {
		name := strings.ToLower(word)
		if real, ok := keyNames[name]; ok {
			name = real
		}
		if !slices.Contains(known, name) {
			err := usageError{fmt.Errorf("no key is named %q", word)}
			if near := nearest(name, slices.Concat(known, keysOf(keyNames))); near != "" {
				return nil, withHint(err, didYouMean(near))
			}
			return nil, withHint(err, "a key is named as on a US keyboard, e.g. a, 7, f1, ret, minus; --text types a text")
		}
		if slices.Contains(keys, name) {
			return nil, usageError{fmt.Errorf("want each key once in %q, got %s twice", text, name)}
		}
		keys = append(keys, name)
	}
	return keys, nil
}

// knownKeys are those of every hypervisor.
func knownKeys() []string {
	var known []string
	for _, h := range all.Table() {
		if k, ok := h.(hypervisor.Keyboard); ok {
			known = append(known, k.Keys()...)
		}
	}
	return known
}

func keysOf(m map[string]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// usKeys are the characters of a US keyboard that no letter or digit key has:
// the key, and what it gives without and with Shift.
var usKeys = []struct{ key, plain, shifted string }{
	{"grave_accent", "`", "~"}, {"1", "1", "!"}, {"2", "2", "@"}, {"3", "3", "#"}, {"4", "4", "$"}, {"5", "5", "%"},
	{"6", "6", "^"}, {"7", "7", "&"}, {"8", "8", "*"}, {"9", "9", "("}, {"0", "0", ")"},
	{"minus", "-", "_"}, {"equal", "=", "+"}, {"bracket_left", "[", "{"}, {"bracket_right", "]", "}"},
	{"backslash", `\`, "|"}, {"semicolon", ";", ":"}, {"apostrophe", "'", `"`},
	{"comma", ",", "<"}, {"dot", ".", ">"}, {"slash", "/", "?"},
	{"spc", " ", ""}, {"ret", "\n", ""}, {"tab", "\t", ""},
}

// typeText is how a text is typed on a US keyboard.
func typeText(text string) ([]chord, error) {
	var chords []chord
	for _, r := range text {
		c := usChord(r)
		if c == nil {
			return nil, usageError{fmt.Errorf("--text: %q is not on a US keyboard", r)}
		}
		chords = append(chords, c)
	}
	return chords, nil
}

// usChord is how a character is typed; nil where it is on no key.
func usChord(r rune) chord {
	switch {
	case 'a' <= r && r <= 'z':
		return chord{string(r)}
	case 'A' <= r && r <= 'Z':
		return chord{"shift", strings.ToLower(string(r))}
	}
	for _, k := range usKeys {
		switch string(r) {
		case k.plain:
			return chord{k.key}
		case k.shifted:
			return chord{"shift", k.key}
		}
	}
	return nil
}

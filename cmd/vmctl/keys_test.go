package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestParseChord(t *testing.T) {
	for text, want := range map[string]string{
		"ctrl-alt-delete": "[ctrl alt delete]", "Ctrl-Alt-Del": "[ctrl alt delete]", "A": "[a]", "7": "[7]", "enter": "[ret]",
		"win-r": "[meta_l r]", "kp_5": "[kp_5]", "altgr-q": "[alt_r q]", "f12": "[f12]", "minus": "[minus]",
	} {
		if got, err := parseChord(text, knownKeys()); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: got %v, %v, want %s", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"": `no key is named ""`, "-": `no key is named ""`, "ctrl--": `no key is named ""`, "delte": `did you mean "delete"?`,
		"ctlr-c": `did you mean "ctrl"?`, "ctrl-ctrl": "got ctrl twice", "control-ctrl": "got ctrl twice", "hello world": "--text types a text", "f13": "did you mean",
	} {
		_, err := parseChord(text, knownKeys())
		if err == nil || !strings.Contains(err.Error()+"\n"+hintOf(err), want) || exitStatus(err) != exitUsage {
			t.Errorf("%q: got %v (%s), want %q", text, err, hintOf(err), want)
		}
	}
}

// Each character of a US keyboard is typed by keys that there are, and no two by
// the same.
func TestTypeText(t *testing.T) {
	var text strings.Builder
	for c := ' '; c <= '~'; c++ {
		text.WriteRune(c)
	}
	text.WriteString("\n\t")
	chords, err := typeText(text.String())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for i, c := range chords {
		if s := fmt.Sprint(c); seen[s] {
			t.Errorf("%q: %s is another's", text.String()[i], s)
		} else {
			seen[s] = true
		}
		for _, key := range c {
			if !slices.Contains(knownKeys(), key) {
				t.Errorf("%q: no key %s", text.String()[i], key)
			}
		}
	}
	if got, _ := typeText("aA1!"); fmt.Sprint(got) != "[[a] [shift a] [1] [shift 1]]" {
		t.Errorf("got %v", got)
	}
	for _, bad := range []string{"ü", "€", "\r", "\x00", "\xff"} {
		if got, err := typeText(bad); err == nil {
			t.Errorf("%q: got %v", bad, got)
		}
	}
}

package roff

import "testing"

func TestEscape(t *testing.T) {
	for s, want := range map[string]string{
		"plain":        "plain",
		".so x":        `\&.so x`,
		"'quoted":      `\&'quoted`,
		`a\fBb-c`:      `a\efBb\-c`,
		"it's ~ ^ `":   `it\(aqs \(ti \(ha \(ga`,
		"1 × 2 …":      `1 \[u00D7] 2 \[u2026]`,
		`"q" and . ' `: `"q" and . \(aq `,
	} {
		if got := Escape(s); got != want {
			t.Errorf("%s: got %s, want %s", s, got, want)
		}
	}
}

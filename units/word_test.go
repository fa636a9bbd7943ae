package units

import (
	"strings"
	"testing"
)

// hostile is every byte and form that means something to some parser on the
// way, and must come out as it went in. That systemd reads them so is shown
// by the test of units/bus under a real one.
var hostile = map[string]struct{ argument, path string }{
	"plain":            {"plain", "plain"},
	"":                 {`""`, `""`},
	"a b":              {`"a b"`, `"a b"`},
	" lead and trail ": {`" lead and trail "`, `" lead and trail "`},
	"tab\there":        {"\"tab\there\"", "\"tab\there\""},
	`it's`:             {`"it's"`, `"it's"`},
	`say "hi"`:         {`"say \"hi\""`, `"say \"hi\""`},
	`back\slash`:       {`"back\\slash"`, `"back\\slash"`},
	`end\`:             {`"end\\"`, `"end\\"`},
	"100%":             {`"100%%"`, `"100%%"`},
	"%n %i":            {`"%%n %%i"`, `"%%n %%i"`},
	"$HOME":            {`"$$HOME"`, "$HOME"},
	"${HOME}":          {`"$${HOME}"`, "${HOME}"},
	"$$":               {`"$$$$"`, "$$"},
	";":                {`";"`, `";"`},
	"#x":               {`"#x"`, `"#x"`},
	"a:b":              {"a:b", `"a:b"`},
	"a,,b=c":           {"a,,b=c", "a,,b=c"},
	"/grüße/日本/🙂":      {"/grüße/日本/🙂", "/grüße/日本/🙂"},
	"@-+!:":            {"@-+!:", `"@-+!:"`},
}

func TestHostileStringsAreQuoted(t *testing.T) {
	for in, want := range hostile {
		if got, err := argument(in); got != want.argument || err != nil {
			t.Errorf("argument(%q) = %s, %v, want %s", in, got, err, want.argument)
		}
		if got, err := path(in); got != want.path || err != nil {
			t.Errorf("path(%q) = %s, %v, want %s", in, got, err, want.path)
		}
	}
}

func TestWhatCannotBeQuotedIsRefused(t *testing.T) {
	quoters := map[string]func(string) (string, error){"argument": argument, "path": path, "text": text, "raw": raw}
	for _, in := range []string{"a\x00b", "a\nb", "a\rb", "\n", "a\xffb", "\ufdd0", "\uffff", "\U0001fffe"} {
		for name, quote := range quoters {
			if got, err := quote(in); err == nil {
				t.Errorf("%s(%q) = %s, want an error", name, in, got)
			}
		}
	}
}

func TestTextDoublesSpecifiersOnly(t *testing.T) {
	for in, want := range map[string]string{
		`50% "off" $x`: `50%% "off" $x`,
		`C:\`:          `C:\ `,
		`\\srv\x`:      `\\srv\x`,
	} {
		if got, err := text(in); got != want || err != nil {
			t.Errorf("text(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestLegibleCanAlwaysBeWritten(t *testing.T) {
	for in, want := range map[string]string{
		"a\nb\x00c\xff": "a b c ",
		"short":         "short",
		"0123456789ab":  "0123456…",
		"012345äöü":     "012345…",
	} {
		got := legible(in, 10)
		if got != want || writable(got) != nil {
			t.Errorf("legible(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzQuoting(f *testing.F) {
	for in := range hostile {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in string) {
		for name, quote := range map[string]func(string) (string, error){"argument": argument, "path": path, "text": text} {
			got, err := quote(in)
			if err != nil {
				continue
			}
			if strings.ContainsAny(got, "\n\r\x00") {
				t.Errorf("%s(%q) = %q: more than one line", name, in, got)
			}
			if strings.HasSuffix(got, `\`) {
				t.Errorf("%s(%q) = %q: continues on the next line", name, in, got)
			}
			if strings.Contains(strings.ReplaceAll(got, "%%", ""), "%") {
				t.Errorf("%s(%q) = %q: has a specifier", name, in, got)
			}
		}
		if got := legible(in, 20); writable(got) != nil || len(got) > 20 {
			t.Errorf("legible(%q) = %q", in, got)
		}
	})
}

package qemu

import (
	"encoding/json"
	"testing"
	"unicode/utf8"
)

func TestOptions(t *testing.T) {
	for want, parts := range map[string][]string{
		"":                        {},
		"a,id=b":                  {"a", "", "id=b", ""},
		"path=/a,,b,,,,c,id=x":    {"path=/a,b,,c", "id=x"},
		`path= "=\%n $x;',,`:      {`path= "=\%n $x;',`},
		"socket,id=x,fd=3,path=ü": {"socket", "id=x", "fd=3", "path=ü"},
	} {
		if got := options(parts...); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestShort(t *testing.T) {
	for name, want := range map[string]string{
		"root":                    "root",
		"exactly-twenty-one-by":   "exactly-twenty-one-by",
		"one-byte-more-than-that": "one-byte-mor.4b4658b0",
	} {
		if got := short(name, 21); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if short("a-name-with-the-same-beginning-1", 21) == short("a-name-with-the-same-beginning-2", 21) {
		t.Error("two names became one")
	}
}

// FuzzFilename: whatever a file is called, QEMU reads that name out of the JSON.
func FuzzFilename(f *testing.F) {
	f.Add(`/a,"b" 'c' %n \ <&>` + "\t\u2028")
	f.Fuzz(func(t *testing.T, name string) {
		if !utf8.ValidString(name) {
			return // a definition is UTF-8
		}
		var got struct{ Driver, Filename string }
		if err := json.Unmarshal([]byte(jsonArg(blockNode{Driver: "file", Filename: name})), &got); err != nil {
			t.Fatal(err)
		}
		if got.Filename != name || got.Driver != "file" {
			t.Errorf("got %q, want %q", got.Filename, name)
		}
	})
}

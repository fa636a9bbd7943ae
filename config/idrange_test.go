package config

import (
	"slices"
	"testing"
)

func TestParseIDRange(t *testing.T) {
	for text, want := range map[string]IDRange{"0:100000:65536": {0, 100000, 65536}, "0:0:4294967295": {0, 0, IDs}, "4294967294:1:1": {4294967294, 1, 1}} {
		if got, ok := ParseIDRange(text); !ok || got != want {
			t.Errorf("%s: got %v %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "0", "0:1", "0:1:0", "0:1:2:3", "-1:0:1", "0:+1:1", "0:01:1", "0:0:4294967296", "1:0:4294967295", "4294967295:0:1", "0: 1:1", "a:b:c"} {
		if got, ok := ParseIDRange(text); ok {
			t.Errorf("%q: got %v", text, got)
		}
	}
}

func TestIDGaps(t *testing.T) {
	if got, want := IDGaps([]IDSpan{{1000, 1}, {0, 10}, {10, 5}}), []IDSpan{{15, 985}, {1001, IDs - 1001}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := IDGaps([]IDSpan{{0, IDs}}); got != nil {
		t.Errorf("got %v", got)
	}
}

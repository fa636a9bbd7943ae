package main

import "testing"

func TestNearest(t *testing.T) {
	candidates := []string{"db", "web", "web-frontend", "mail"}
	tests := []struct{ name, want string }{
		{"wbe", "web"},                   // swapped
		{"wed", "web"},                   // replaced
		{"we", "web"},                    // left out
		{"wweb", "web"},                  // doubled
		{"new", ""},                      // another word
		{"x", ""},                        // anything
		{"web-fronted", "web-frontend"},  // a long name
		{"web-forntned", "web-frontend"}, // two slips in a long name
		{"something-else", ""},
	}
	for _, tt := range tests {
		if got := nearest(tt.name, candidates); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	if got := nearest("web", nil); got != "" {
		t.Errorf("of none: got %q", got)
	}
}

package main

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/net/publicsuffix"
)

// TestTopLevelDomains: the domains that no network takes are the Internet's by now.
func TestTopLevelDomains(t *testing.T) {
	list, err := os.ReadFile("../../config/topleveldomains.txt")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for domain := range strings.Lines(string(list)) {
		domain = strings.TrimSpace(domain)
		if strings.HasPrefix(domain, "#") {
			continue
		}
		if suffix, delegated := publicsuffix.PublicSuffix(domain); !delegated || suffix != domain {
			t.Errorf("%s is none by golang.org/x/net", domain)
		}
		n++
	}
	if n < 1000 {
		t.Errorf("%d domains, want all", n)
	}
}

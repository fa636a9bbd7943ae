package main

import (
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
)

func TestCheckDomain(t *testing.T) {
	for domain, want := range map[string]bool{
		"com": true, "dev": true, "App": true, "co.uk": true, "arpa": true,
		"lan": false, "internal": false, "home.arpa": false, "local": false, "default": false,
		"example.com": false, "dev.internal": false, "vms.dev": false, "github.io": false, // whose owner may well do so
	} {
		n := &config.Network{Name: "x", Domain: domain, DHCP: true}
		problems := checkDomain(n)
		if (len(problems) > 0) != want {
			t.Errorf("%s: got %v, want a problem: %v", domain, problems, want)
		}
		for _, p := range problems {
			if p.Key != "domain" || !strings.Contains(p.Text, `"x.internal", got "`+domain+`"`) {
				t.Errorf("%s: %s: %s", domain, p.Key, p.Text)
			}
		}
		// Which answer for no names.
		for _, other := range []*config.Network{{Domain: domain}, {Domain: domain, DHCP: true, Bridge: "br0"}} {
			if problems := checkDomain(other); problems != nil {
				t.Errorf("%s of a network without a service: %v", domain, problems)
			}
		}
	}
}

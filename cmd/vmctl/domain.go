package main

import (
	"strings"

	"golang.org/x/net/publicsuffix"

	"github.com/vmctl/vmctl/config"
)

// checkDomain says that a network would take a domain from its guests and the host
// that is others' on the Internet, such as dev or co.uk: its service answers for all
// in it. The answer is nil where not. It is for people who define networks: what brings
// them up has no part in the Internet, and does not link the list of its domains.
func checkDomain(n *config.Network) []config.Problem {
	if n.Bridge != "" || !n.DHCP {
		return nil
	}
	domain := strings.ToLower(n.Domain)
	// For homes, by RFC 8375, and delegated to nobody.
	if suffix, delegated := publicsuffix.PublicSuffix(domain); !delegated || suffix != domain || domain == "home.arpa" {
		return nil
	}
	return []config.Problem{n.Problem("domain", "want a domain of the guests' own, such as \"%s.internal\", got %q, which is one of the Internet's: neither guests nor host would find any other name in it", n.Name, n.Domain)}
}

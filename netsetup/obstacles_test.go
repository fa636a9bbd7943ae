package netsetup

import (
	"os/exec"
	"strings"
	"testing"
)

// TestObstacles: filters of others that would drop what networks need are told,
// with a command that mends it; those that let the bridge pass are not.
func TestObstacles(t *testing.T) {
	inNamespace(t)
	for _, tt := range []struct{ what, rules, want string }{
		{"nothing", "", ""},
		{"ours", "table inet vmctl_x { chain forward { type filter hook forward priority 0; policy drop; }; }", ""},
		{"harmless", "table inet f { chain forward { type filter hook forward priority 0; policy accept; }\n chain output { type filter hook output priority 0; policy drop; }; }", ""},
		{"forward", "table inet f { chain f { type filter hook forward priority 0; policy drop; }; }",
			"nft insert rule inet f f iifname vmbr-lan accept; nft insert rule inet f f oifname vmbr-lan accept"},
		{"input", "table ip f { chain in { type filter hook input priority 0; policy drop; }; }", "nft insert rule ip f in iifname vmbr-lan accept"},
		{"Docker", "table ip filter { chain DOCKER-USER { }\n chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }; }",
			"iptables -I DOCKER-USER -i vmbr-lan -j ACCEPT; iptables -I DOCKER-USER -o vmbr-lan -j ACCEPT"},
		{"ufw", "table ip filter { chain ufw-before-forward { }\n chain FORWARD { type filter hook forward priority 0; policy drop; }\n chain INPUT { type filter hook input priority 0; policy drop; }; }",
			"ufw allow in on vmbr-lan && ufw route allow in on vmbr-lan && ufw route allow out on vmbr-lan"},
		{"firewalld", "table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; policy accept; reject; }; }",
			"firewall-cmd --permanent --zone=trusted --add-interface=vmbr-lan && firewall-cmd --reload"},
	} {
		if err := apply("flush ruleset\n" + tt.rules + "\n"); err != nil {
			t.Fatal(tt.what, err)
		}
		found, err := Obstacles("vmbr-lan")
		if err != nil {
			t.Fatal(tt.what, err)
		}
		var remedies []string
		for _, o := range found {
			remedies = append(remedies, o.Remedy)
		}
		// Of the host's older rules, which are not of this namespace, none is here.
		if got := strings.Join(remedies, "\n"); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.what, got, tt.want)
		}
		if !strings.HasPrefix(tt.want, "nft ") {
			continue
		}
		// What it says helps, and it is not told again.
		if out, err := exec.Command("sh", "-c", tt.want).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", tt.what, err, out)
		}
		if found, err := Obstacles("vmbr-lan"); err != nil || len(found) > 0 {
			t.Errorf("%s, mended: %v, %v", tt.what, found, err)
		}
	}
}

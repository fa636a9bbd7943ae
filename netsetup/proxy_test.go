package netsetup

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// What the kernel forwards from no loopback address of IPv6 somebody listens for, who
// connects to the guest; no rule takes it from there.
func TestProxies(t *testing.T) {
	network, machine := load(t, txtar.Parse([]byte(lan+`forward = ["8082:80", "[::1]:8080:80", "[0:0:0:0:0:0:0:1]:8081:81/tcp", "127.0.0.1:8081:81"]`)))
	both := Lease{IP4: netip.MustParseAddr("192.168.100.7"), IP6: netip.MustParseAddr("fd00::7")}
	for _, c := range []struct {
		lease Lease
		want  string
	}{
		{both, "[{[::1]:8080 192.168.100.7:80} {[::1]:8081 192.168.100.7:81}]"},
		{Lease{IP6: both.IP6}, "[{[::1]:8080 [fd00::7]:80} {[::1]:8081 [fd00::7]:81}]"},
		{Lease{}, "[]"},
	} {
		card := Card("web", machine.NICs[0], network, c.lease, HostBridge{})
		if got := fmt.Sprint(card.Proxies); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
		if strings.Contains(card.Forwards, "ip6 daddr ::1 ") {
			t.Errorf("rules take it, too:\n%s", card.Forwards)
		}
	}
	// Those of user-mode networking are its own.
	if card := Card("web", machine.NICs[0], nil, both, HostBridge{}); len(card.Proxies) > 0 {
		t.Errorf("in no network there are %v", card.Proxies)
	}
}

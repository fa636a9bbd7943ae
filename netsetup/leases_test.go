package netsetup

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestParseLeases(t *testing.T) {
	const file = `1700000000 52:54:00:AA:bb:01 192.168.100.10 web 01:52:54:00:aa:bb:01
0 52:54:00:aa:bb:02 192.168.100.11 * *
nonsense

1700000000 x y
-1 52:54:00:aa:bb:03 192.168.100.12 * *
duid 00:01:00:01:2c:e0:6d:5c:52:54:00:aa:bb:ff
1700000000 11160065 fd00::10 web 00:02:00:00:ab:11
1700000000 T1 fd00::zz web 00
`
	var got []string
	for _, l := range ParseLeases(strings.NewReader(file)) {
		got = append(got, fmt.Sprint(l.Address, " ", l.MAC, " ", l.Hostname, " ", l.Expires.UTC().Format("2006")))
	}
	want := []string{"192.168.100.10 52:54:00:aa:bb:01 web 2023", "192.168.100.11 52:54:00:aa:bb:02  0001", "fd00::10  web 2023"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

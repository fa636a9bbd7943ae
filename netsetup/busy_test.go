package netsetup

import (
	"net"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

func TestBusy(t *testing.T) {
	network, _ := load(t, txtar.Parse([]byte(lan)))
	inNamespace(t)
	if err := Busy(network); err != nil {
		t.Errorf("where nobody listens: %v", err)
	}
	for _, tt := range []struct{ network, address, want string }{
		{"udp4", "0.0.0.0:53", "need the port 192.168.100.1:53 (udp), but netsetup.test (process "},
		{"tcp4", "0.0.0.0:53", "need the port 192.168.100.1:53 (tcp), but netsetup.test (process "},
		{"tcp6", "[::]:53", "]:53 (tcp), but netsetup.test (process "},
		{"udp4", "127.0.0.1:67", "need the port 0.0.0.0:67 (udp), but netsetup.test (process "},
		{"udp4", "127.0.0.1:53", ""},
	} {
		close := func() error { return nil }
		if strings.HasPrefix(tt.network, "udp") {
			c, err := net.ListenPacket(tt.network, tt.address)
			if err != nil {
				t.Fatal(err)
			}
			close = c.Close
		} else {
			l, err := net.Listen(tt.network, tt.address)
			if err != nil {
				t.Fatal(err)
			}
			close = l.Close
		}
		err := Busy(network)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s %s: %v, want %s", tt.network, tt.address, err, tt.want)
		}
		if err := close(); err != nil {
			t.Error(err)
		}
	}
}

package netsetup

import (
	"bufio"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// GivenOut is one address that the DHCP service has lent.
type GivenOut struct {
	Address  netip.Addr
	MAC      string    // of the card, lower case; "" for DHCPv6, which has another id
	Hostname string    // that it has, or said of itself; "" for none
	Expires  time.Time // zero: never
}

// ParseLeases reads dnsmasq's file of leases (dnsmasq(8), --dhcp-leasefile): a
// line for each, "expiry MAC address name client-id", and for DHCPv6, after the
// line "duid …", "expiry IAID address name client-id". What is no such line is
// left out: guests have a say in it.
func ParseLeases(r io.Reader) []GivenOut {
	var all []GivenOut
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 4 {
			continue
		}
		seconds, err := strconv.ParseInt(f[0], 10, 64)
		address, addressErr := netip.ParseAddr(f[2])
		if err != nil || addressErr != nil || seconds < 0 {
			continue
		}
		l := GivenOut{Address: address}
		if address.Is4() {
			l.MAC = strings.ToLower(f[1])
		}
		if f[3] != "*" {
			l.Hostname = f[3]
		}
		if seconds > 0 {
			l.Expires = time.Unix(seconds, 0)
		}
		all = append(all, l)
	}
	return all
}

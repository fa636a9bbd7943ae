package guestagent

import (
	"context"
	"net"
	"net/netip"
)

// maxInterfaces and maxAddresses bound what is kept of the guest's interfaces.
const maxInterfaces, maxAddresses = 64, 64

// Interface is a network interface as the guest tells of it.
type Interface struct {
	MAC       string // lower case
	Addresses []netip.Addr
}

// Interfaces are those of the guest that have a hardware address. What is no
// address is left out.
func (a *Agent) Interfaces(ctx context.Context) ([]Interface, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var answer []struct {
		MAC       string `json:"hardware-address"`
		Addresses []struct {
			Address string `json:"ip-address"`
		} `json:"ip-addresses"`
	}
	if err := a.call(ctx, "guest-network-get-interfaces", nil, &answer); err != nil {
		return nil, err
	}
	var all []Interface
	for _, told := range answer[:min(len(answer), maxInterfaces)] {
		mac, err := net.ParseMAC(told.MAC)
		if err != nil || len(mac) != 6 {
			continue
		}
		i := Interface{MAC: mac.String()}
		for _, t := range told.Addresses[:min(len(told.Addresses), maxAddresses)] {
			if ip, err := netip.ParseAddr(t.Address); err == nil {
				i.Addresses = append(i.Addresses, ip.WithZone("").Unmap())
			}
		}
		all = append(all, i)
	}
	return all, nil
}

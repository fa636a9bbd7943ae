package main

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/guestagent"
	"github.com/vmctl/vmctl/netsetup"
	"github.com/vmctl/vmctl/units/bus"
)

// A lease counts once the guest has asked for it, since its start; what the agent
// says counts for the card of the same address.
func TestAddressesOfCard(t *testing.T) {
	const mac = "52:54:00:00:00:01"
	four, six := netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")
	start := time.Date(2026, 1, 1, 12, 0, 0, 500, time.UTC)
	network := seenNetwork{
		Network:  &config.Network{Name: "lan", Interface: "vmbr-lan", LeaseTime: config.Duration(time.Hour)},
		reserved: map[string]netsetup.Reserved{"web/lan": {Lease: netsetup.Lease{IP4: four, IP6: six}}},
	}
	nic := config.NIC{Name: "lan", Network: "lan", MAC: mac}
	running := look{
		vm: config.VM{Name: "web"}, unit: bus.UnitStatus{Active: "active"}, state: running,
		record: &hypervisor.Record{Machine: &config.Machine{Name: "web", NICs: []config.NIC{nic}}, Started: start},
	}
	loaded, stopped := running, running
	loaded.record = &hypervisor.Record{Machine: running.record.Machine, Started: start, Incoming: new(hypervisor.Incoming)}
	stopped.unit.Active = "inactive"
	lease := func(ip netip.Addr, mac string, given time.Time) netsetup.GivenOut {
		return netsetup.GivenOut{Address: ip, MAC: mac, Expires: given.Add(time.Hour)}
	}
	agent := []guestagent.Interface{
		{MAC: mac, Addresses: []netip.Addr{netip.MustParseAddr("fe80::1"), six, four, netip.MustParseAddr("10.0.0.8")}},
		{MAC: "52:54:00:00:00:02", Addresses: []netip.Addr{netip.MustParseAddr("172.17.0.1")}},
	}
	for _, tt := range []struct {
		what string
		look look
		lent []netsetup.GivenOut
		told []guestagent.Interface
		want string
	}{
		{"nothing asked for yet", running, nil, nil, "[]"},
		{"both", running, []netsetup.GivenOut{lease(six, "", start.Add(time.Second)), lease(four, mac, start)}, nil, "[{10.0.0.7 lease} {fd00::7 lease}]"},
		{"of the run before", running, []netsetup.GivenOut{lease(four, mac, start.Add(-time.Second))}, nil, "[]"},
		{"of the run that goes on", loaded, []netsetup.GivenOut{lease(four, mac, start.Add(-time.Second))}, nil, "[{10.0.0.7 lease}]"},
		{"for ever", running, []netsetup.GivenOut{{Address: four, MAC: mac}}, nil, "[{10.0.0.7 lease}]"},
		{"another card's", running, []netsetup.GivenOut{lease(four, "52:54:00:00:00:02", start)}, nil, "[]"},
		{"the agent's too", running, []netsetup.GivenOut{lease(four, mac, start)}, agent, "[{10.0.0.7 lease} {10.0.0.8 agent} {fd00::7 agent}]"},
		{"stopped", stopped, []netsetup.GivenOut{lease(four, mac, start)}, agent, "[]"},
	} {
		network.lent = tt.lent
		s := seen{networks: map[string]seenNetwork{"lan": network}}
		if got := fmt.Sprint(s.addresses(tt.look, nic, tt.told)); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.what, got, tt.want)
		}
	}
}

func TestNICLines(t *testing.T) {
	n := shownNIC{
		Addresses: []foundAddress{{"10.0.0.7", fromLease}, {"fd00::7", fromNeighbour}},
		Traffic:   &netsetup.Traffic{RxBytes: 2048, RxPackets: 1, TxBytes: 5, TxPackets: 2, TxDropped: 3, TxErrors: 1},
	}
	const want = "[10.0.0.7 (lease), fd00::7 (neighbour) received 2K in 1 packet; sent 5B in 2 packets, 3 dropped, 1 error]"
	if got := fmt.Sprint(nicLines(n)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := nicLines(shownNIC{}); len(got) != 0 {
		t.Errorf("of a card of which nothing is known: %v", got)
	}
}

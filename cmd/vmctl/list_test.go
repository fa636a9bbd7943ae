package main

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/guestagent"
	"github.com/vmctl/vmctl/units/bus"
)

// Agents are asked for what the host does not know, all at once, and those that
// hang cost no more than one.
func TestAskAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mac = "52:54:00:00:00:01"
		machine := func(name string) look {
			m := &config.Machine{Name: name, NICs: []config.NIC{{Name: "lan", User: true, MAC: mac}}, GuestAgent: config.GuestAgent{Enabled: true}}
			return look{
				vm: config.VM{Name: name}, unit: bus.UnitStatus{Active: "active"}, state: running, status: hypervisor.StatusRunning,
				record: &hypervisor.Record{Machine: m},
			}
		}
		known, answers, hangs, hangs2 := machine("known"), machine("answers"), machine("hangs"), machine("hangs2")
		none, still, mute, cardless, stop := machine("none"), machine("still"), machine("mute"), machine("cardless"), machine("stopped")
		none.record.Machine.GuestAgent.Enabled = false
		still.state = paused
		mute.status = ""
		cardless.record.Machine.NICs = nil
		stop.state, stop.unit.Active, stop.record = stopped, "inactive", nil
		looks := []look{hangs, known, none, hangs2, still, mute, cardless, stop, answers}
		rows := make([]row, len(looks))
		for i, l := range looks {
			rows[i] = newRow(l, false)
		}
		rows[1].setAddresses([]shownNIC{{Addresses: []foundAddress{{"10.0.0.7", fromLease}}}})

		var asked []string
		var mu sync.Mutex
		start := time.Now()
		askAgents(t.Context(), seen{}, looks, rows, func(ctx context.Context, l look) []guestagent.Interface {
			mu.Lock()
			asked = append(asked, l.vm.Name)
			mu.Unlock()
			if l.vm.Name != "answers" {
				<-ctx.Done()
				return nil
			}
			return []guestagent.Interface{{MAC: mac, Addresses: []netip.Addr{netip.MustParseAddr("10.0.2.15")}}}
		})
		if took := time.Since(start); took != agentsTime {
			t.Errorf("took %v, want %v", took, agentsTime)
		}
		slices.Sort(asked)
		if want := []string{"answers", "hangs", "hangs2"}; !slices.Equal(asked, want) {
			t.Errorf("asked %v, want %v", asked, want)
		}
		want := map[string]map[string]string{"known": {"10.0.0.7": fromLease}, "answers": {"10.0.2.15": fromAgent}}
		for _, r := range rows {
			if !maps.Equal(r.AddressSources, want[r.Name]) || r.AddressSources == nil || r.Addresses == nil || !slices.Equal(r.Addresses, slices.Collect(maps.Keys(want[r.Name]))) {
				t.Errorf("%s: got %v, %v, want %v", r.Name, r.Addresses, r.AddressSources, want[r.Name])
			}
		}
	})
}

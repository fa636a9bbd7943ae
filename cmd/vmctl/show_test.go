package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/guestagent"
)

// A share whose start limit was reached comes again by hand alone, which is said.
func TestShareGivenUp(t *testing.T) {
	s := shownShare{Share: config.Share{Path: "/srv", Tag: "data"}, State: lost, Unit: "vm-virtiofsd@web.data.service"}
	if got := shareText(s); got != "/srv, tag data, lost" {
		t.Errorf("got %q", got)
	}
	s.GivenUp = true
	for _, want := range []string{"systemctl reset-failed " + s.Unit, "systemctl start " + s.Unit} {
		if got := shareText(s); !strings.Contains(got, want) {
			t.Errorf("got %q, want %q in it", got, want)
		}
	}
}

// Who is logged in to a guest has a row each.
func TestGuestRowsOfUsers(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	rows := guestRows(guestagent.Guest{AgentVersion: "10.0.2", Users: []guestagent.LoggedIn{{Name: "alice", Since: since.UTC()}, {Name: "bob", Since: since.UTC()}}})
	at := since.Format("2006-01-02 15:04:05 MST")
	want := [][2]string{{"Agent", "qemu-guest-agent 10.0.2"}, {"Logged in", "alice, since " + at}, {"Logged in", "bob, since " + at}}
	if !slices.Equal(rows, want) {
		t.Errorf("got %q, want %q", rows, want)
	}
}

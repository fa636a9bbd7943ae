package hypervisor

import (
	"slices"
	"testing"

	"github.com/vmctl/vmctl/config"
)

func TestChangesOfNICs(t *testing.T) {
	m := &config.Machine{NICs: []config.NIC{{Name: "a"}, {Name: "b"}, {Name: "c"}}}
	var c Changes
	names := func() (names []string) {
		for _, n := range c.Apply(m).NICs {
			names = append(names, n.Name+n.Link)
		}
		return names
	}
	want := func(text string, cards ...string) {
		t.Helper()
		if got := names(); !slices.Equal(got, cards) || c.String() != text || c.None() != (text == "") {
			t.Errorf("got %v, %q, %v; want %v, %q", got, c, c.None(), cards, text)
		}
	}
	want("", "a", "b", "c")
	c.AttachedNIC(config.NIC{Name: "x"})
	c.SetNIC(config.NIC{Name: "x", Link: "down"}, m, "")
	want("nic.x was attached", "a", "b", "c", "xdown")
	c.SetNIC(config.NIC{Name: "b", Link: "down"}, m, "link up")
	want("nic.x was attached, nic.b was set otherwise", "a", "bdown", "c", "xdown")
	c.DetachedNIC("b", true)
	c.DetachedNIC("x", false)
	want("nic.b was detached", "a", "c")
	c.AttachedNIC(config.NIC{Name: "b"})
	want("nic.b was attached", "a", "b", "c")
}

// Of a disk that is gone nothing is noted any more, its limits among it.
func TestChangesForgetADisk(t *testing.T) {
	m := &config.Machine{Disks: []config.Disk{{Name: "root"}}}
	c := Changes{
		Leaving: []string{"extra"}, Empty: []string{"extra"},
		Live: &config.LiveSettings{Disks: map[string]config.DiskLimits{"root": {IOPS: 5}, "extra": {IOPS: 7}}},
	}
	c.Attached(config.Disk{Name: "extra"}, []Layer{{Path: "/base"}})
	if _, has := c.Live.Disks["extra"]; has || len(c.Leaving)+len(c.Empty) > 0 || len(c.Backing["extra"]) != 1 {
		t.Errorf("attached anew: %+v", c)
	}
	c.Live.Disks["extra"] = config.DiskLimits{IOPS: 7}
	if d, has := c.Plugged(m, "extra"); !has || d.IOPS != 0 {
		t.Errorf("plugged in is %+v, %v", d, has)
	}
	c.Detached("extra", false)
	if _, has := c.Live.Disks["extra"]; has || len(c.Live.Disks) != 1 || len(c.Disks)+len(c.Backing)+len(c.Gone) > 0 {
		t.Errorf("detached: %+v, %+v", c, c.Live)
	}
	if _, has := c.Plugged(m, "extra"); has {
		t.Error("it is there still")
	}
}

// TestChangesOfShares: what is noted of shares is what the machine has, and who serves
// them; those that the guest is asked to let go of need nobody any more.
func TestChangesOfShares(t *testing.T) {
	unit := func(share string) string { return config.ShareUnit("web", share) }
	m := &config.Machine{Shares: []config.Share{{Name: "a"}, {Name: "b"}}}
	plan := &Plan{Sidecars: []Sidecar{{Unit: unit("a"), Key: "share.a"}, {Unit: unit("b"), Key: "share.b"}}}
	var c Changes
	want := func(text string, shares ...string) {
		t.Helper()
		var names []string
		for _, s := range c.Apply(m).Shares {
			names = append(names, s.Name+s.Tag)
		}
		if !slices.Equal(names, shares) || c.String() != text || c.None() != (text == "") {
			t.Errorf("got %v, %q, %v; want %v, %q", names, c, c.None(), shares, text)
		}
	}
	served := func(shares ...string) {
		t.Helper()
		var names []string
		for _, name := range []string{"a", "b", "x", "other"} {
			if s, expected := c.Sidecar(plan, unit(name)); expected && s.Unit == unit(name) {
				names = append(names, name)
			}
		}
		if !slices.Equal(names, shares) {
			t.Errorf("served are %v, want %v", names, shares)
		}
	}
	want("", "a", "b")
	served("a", "b")
	c.AttachedShare(config.Share{Name: "x", Tag: "1"}, Sidecar{Unit: unit("x"), Key: "share.x"})
	want("share.x was attached", "a", "b", "x1")
	served("a", "b", "x")
	c.LeavingShare("x")
	c.LeavingShare("x")
	c.LeavingShare("a")
	want("share.x was attached, share.x is being detached, share.a is being detached", "a", "b", "x1")
	served("b")
	c.StayingShare("x")
	c.DetachedShare("a", true)
	want("share.x was attached, share.a was detached", "b", "x1")
	served("b", "x")
	c.DetachedShare("x", false)
	c.AttachedShare(config.Share{Name: "a", Tag: "2"}, Sidecar{Unit: unit("a"), Key: "share.a"})
	want("share.a was attached", "a2", "b")
	served("a", "b")
}

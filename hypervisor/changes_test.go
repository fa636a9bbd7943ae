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

package config

import "testing"

// A card that runs on a bridge keeps what it may get while the definition has
// another by its name that cannot have any of it.
func TestWithReloadedOf(t *testing.T) {
	ssh, web := []Rule{{Protocol: TCP, First: 22, Last: 22}}, []Rule{{Protocol: TCP, First: 80, Last: 80}}
	runs := &Machine{NICs: []NIC{{Name: "lan", Network: "lan", AllowIn: ssh}}}
	for _, c := range []struct {
		now  NIC
		want int
	}{
		{NIC{Name: "lan", Network: "lan", AllowIn: web}, 80},
		{NIC{Name: "lan", Bridge: "br0", AllowIn: web}, 80},
		{NIC{Name: "lan", Macvtap: "eth0"}, 22},
		{NIC{Name: "lan", User: true}, 22},
		{NIC{Name: "other", Network: "lan"}, 22},
	} {
		got := runs.WithReloadedOf(&Machine{NICs: []NIC{c.now}}).NICs[0].AllowIn
		if len(got) != 1 || got[0].First != c.want {
			t.Errorf("%+v: may get %v, want port %d", c.now, got, c.want)
		}
	}
}

// A machine that goes on has the console's group of its definition, also where that has
// none any more.
func TestReloadedConsole(t *testing.T) {
	runs := &Machine{Console: Console{Group: "adm", Journal: true}}
	for _, group := range []string{"staff", ""} {
		if got := runs.WithReloadedOf(&Machine{Console: Console{Group: group}}).Console; got != (Console{Group: group, Journal: true}) {
			t.Errorf("got %+v", got)
		}
	}
	if runs.Console.Group != "adm" || runs.WithoutReloaded().Console.Group != "" {
		t.Error("not left as it was, or not left out")
	}
}

package bus

import (
	"context"
	"errors"
	"net/netip"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// LinkNames is what systemd-resolved is to ask by one interface.
type LinkNames struct {
	Index   int          // of the interface
	Servers []netip.Addr // that it asks
	Domain  string       // for names in this one, and no others
}

const resolved = "org.freedesktop.resolve1"

// linkDomain and linkServer are arguments of calls to resolved
// (org.freedesktop.resolve1(5)).
type linkDomain struct {
	Domain      string
	RoutingOnly bool
}

type linkServer struct {
	Family  int32
	Address []byte
}

// SetLinkNames tells systemd-resolved, which forgets it when the interface goes,
// but not when it is itself started again. Whoever is behind the interface is
// asked nothing else: by LLMNR or mDNS it could answer for any name.
func (c *Conn) SetLinkNames(ctx context.Context, l LinkNames) error {
	if c.direct {
		return errors.New("systemd-resolved is only reached over D-Bus, which does not run")
	}
	var servers []linkServer
	for _, s := range l.Servers {
		family := int32(unix.AF_INET6)
		if s.Is4() {
			family = unix.AF_INET
		}
		servers = append(servers, linkServer{family, s.AsSlice()})
	}
	object := c.calls.Object(resolved, "/org/freedesktop/resolve1")
	for _, call := range []struct {
		method string
		value  any
	}{
		{"SetLinkDNS", servers},
		{"SetLinkDomains", []linkDomain{{l.Domain, true}}},
		{"SetLinkDefaultRoute", false},
		{"SetLinkLLMNR", "no"},
		{"SetLinkMulticastDNS", "no"},
		{"SetLinkDNSOverTLS", "no"},
		{"SetLinkDNSSEC", "no"},
	} {
		// Nobody has it started who did not.
		err := object.CallWithContext(ctx, resolved+".Manager."+call.method, godbus.FlagNoAutoStart, int32(l.Index), call.value).Err
		if err != nil {
			return named("systemd-resolved: "+call.method, err)
		}
	}
	return nil
}

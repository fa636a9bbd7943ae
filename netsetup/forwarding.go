package netsetup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor/access"
)

// Forwarding lets packets through between networks and the rest of the host's
// interfaces, and no others: where the host was no router before it is none for
// anybody else. What it has switched is put back when the last network is gone.
//
// For IPv4 every interface by which packets come in has its own switch
// (ip-sysctl.rst of the kernel), so those that are there are switched on one by
// one, and what later ones begin with; ip_forward, by which others see whether the
// host is a router, stays as it is. For IPv6 there is one switch for all before Linux 6.17; the interfaces'
// own only say whether they behave as those of a host, which learn addresses and
// routes from routers, and are put back at once.
//
// A table of filters drops what would pass between interfaces that are not ours.
// Others that make a router of the host on purpose, later, are not kept from that
// for long: what comes from bridges that were not there, such as those of
// containers, is not dropped; and when somebody else has switched forwarding on as
// a whole, the table goes with the next change of networks or start of a machine.
type Forwarding struct {
	File string // what has been switched, in a directory of root's
	Lock string // locked while that changes, and nobody else's to open
}

// switched is the content of the file.
type switched struct {
	IPv4    []string `json:"ipv4,omitempty"`    // interfaces of others that we have switched on; nil for none of them
	IPv6    []string `json:"ipv6,omitempty"`    // those that were there when all was, by us
	Had4    []string `json:"had4,omitempty"`    // those that forwarded before
	Bridges []string `json:"bridges,omitempty"` // of ours
	// Before are values of sysctls that are to be put back, where putting them back
	// was not finished.
	Before map[string]string `json:"before,omitempty"`
}

const (
	sysctl4  = "/proc/sys/net/ipv4/conf"
	sysctl6  = "/proc/sys/net/ipv6/conf"
	forward4 = "/proc/sys/net/ipv4/ip_forward"
	forward6 = "/proc/sys/net/ipv6/conf/all/forwarding"
	default4 = "/proc/sys/net/ipv4/conf/default/forwarding"
	default6 = "/proc/sys/net/ipv6/conf/default/forwarding"
	// guardTable drops what we have not switched forwarding on for.
	guardTable = "vmctl_forwarding"
)

// On switches forwarding on where it is not, for the protocols that are wanted,
// and holds it to the bridges that are ours.
func (f Forwarding) On(v4, v6 bool, bridges []string) error {
	return f.change(func(s *switched) error {
		s.Bridges = names(bridges)
		s.forgetOthers()
		if v4 && read(forward4) == "0" {
			if s.IPv4 == nil {
				s.Had4 = forwarding(sysctl4, bridges)
			}
			s.IPv4 = names(without(interfaces(sysctl4, bridges), s.Had4))
		}
		wanted6 := v6 && s.IPv6 == nil && read(forward6) == "0"
		if wanted6 {
			s.Before = behaviour(bridges)
		}
		if wanted6 || s.IPv6 != nil && read(forward4) == "0" {
			s.IPv6 = names(interfaces(sysctl6, bridges))
		}
		// The guard first: nothing passes before it. And the note before that.
		if err := errors.Join(f.write(*s), apply(guard(*s))); err != nil {
			return err
		}
		if v4 {
			for _, name := range slices.Concat(s.IPv4, bridges) {
				if err := set(filepath.Join(sysctl4, name, "forwarding"), "1"); err != nil {
					return err
				}
			}
		}
		if v4 && s.IPv4 != nil {
			if err := set(default4, "1"); err != nil {
				return err
			}
		}
		if wanted6 {
			if err := s.all6("1"); err != nil {
				return err
			}
		}
		return s.routers(v6)
	})
}

// forgetOthers forgets what we have switched of what somebody else wants by now.
func (s *switched) forgetOthers() {
	if s.IPv4 != nil && read(forward4) == "1" {
		s.IPv4, s.Had4 = nil, nil
	}
	if s.IPv6 != nil && read(default6) == "1" {
		s.IPv6 = nil
	}
}

// routers makes our bridges behave as a router's, which learns nothing from
// guests.
func (s *switched) routers(v6 bool) error {
	for _, name := range s.Bridges {
		if err := set(filepath.Join(sysctl6, name, "accept_ra"), "0"); err != nil {
			return err
		}
		if v6 {
			if err := set(filepath.Join(sysctl6, name, "forwarding"), "1"); err != nil {
				return err
			}
		}
	}
	return nil
}

// Off puts back what [Forwarding.On] has switched, but for what somebody else
// has switched since.
func (f Forwarding) Off() error {
	return f.change(func(s *switched) error {
		s.forgetOthers()
		if s.IPv4 != nil {
			// Those that came later began with what we had set for them.
			for _, name := range append(without(interfaces(sysctl4, nil), s.Had4), "default") {
				if err := set(filepath.Join(sysctl4, name, "forwarding"), "0"); err != nil {
					return err
				}
			}
		}
		if s.IPv6 != nil && read(forward6) == "1" {
			s.Before = behaviour(nil)
			if err := f.write(*s); err != nil {
				return err
			}
			if err := s.all6("0"); err != nil {
				return err
			}
		}
		*s = switched{}
		return apply(removeTable("inet", guardTable))
	})
}

// change does something with what is noted, one at a time, after what was not
// finished.
func (f Forwarding) change(do func(*switched) error) error {
	unlock, err := access.LockFile(f.Lock, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	var s switched
	b, err := os.ReadFile(f.File)
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", f.File, err)
	}
	if err := s.putBack(); err != nil {
		return err
	}
	if err := do(&s); err != nil {
		return fmt.Errorf("forward packets: %w", err)
	}
	return f.write(s)
}

func (f Forwarding) write(s switched) error {
	if s.IPv4 == nil && s.IPv6 == nil && s.Before == nil {
		if err := os.Remove(f.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(f.File), 0o755); err != nil {
		return err
	}
	return access.WriteFile(f.File, b, 0o644, false)
}

// all6 switches IPv6 as a whole, and puts the interfaces' own behaviour back. In
// between they behave as a router's, and would forget the routes that they have
// learned but for accept_ra = 2.
func (s *switched) all6(value string) error {
	for file, was := range s.Before {
		if filepath.Base(file) == "accept_ra" && was == "1" {
			if err := set(file, "2"); err != nil {
				return err
			}
		}
	}
	if err := set(forward6, value); err != nil {
		return err
	}
	return s.putBack()
}

// putBack puts values back: whether an interface forwards before whether it
// learns.
func (s *switched) putBack() error {
	for _, key := range []string{"forwarding", "accept_ra"} {
		for file, was := range s.Before {
			if filepath.Base(file) != key || read(file) == was {
				continue
			}
			if err := set(file, was); err != nil {
				return err
			}
		}
	}
	s.Before = nil
	return nil
}

// behaviour is what switching IPv6 as a whole changes of interfaces, by file.
func behaviour(except []string) map[string]string {
	values := map[string]string{default6: read(default6)}
	for _, name := range append(interfaces(sysctl6, except), "lo") {
		for _, key := range []string{"forwarding", "accept_ra"} {
			file := filepath.Join(sysctl6, name, key)
			if value := read(file); value != "" {
				values[file] = value
			}
		}
	}
	return values
}

// interfaces are those that have settings, but for lo, cards of machines, which
// are on bridges and have no part in it, and some others.
func interfaces(dir string, except []string) []string {
	entries, _ := os.ReadDir(dir) // none for a kernel without the protocol
	all := []string{}
	for _, e := range entries {
		if name := e.Name(); !slices.Contains(append([]string{"all", "default", "lo"}, except...), name) && !strings.HasPrefix(name, TapPrefix) {
			all = append(all, name)
		}
	}
	return all
}

// forwarding are the interfaces that forward.
func forwarding(dir string, except []string) []string {
	return slices.DeleteFunc(interfaces(dir, except), func(name string) bool { return read(filepath.Join(dir, name, "forwarding")) != "1" })
}

func without(all, some []string) []string {
	return slices.DeleteFunc(all, func(name string) bool { return slices.Contains(some, name) })
}

// names are names, each once. The answer is never nil.
func names(all []string) []string {
	slices.Sort(all)
	return slices.Compact(append([]string{}, all...))
}

// guard is a transaction after which nothing is forwarded between interfaces of
// others by what was switched on, or without a table where nothing was.
func guard(s switched) string {
	if s.IPv4 == nil && s.IPv6 == nil || len(s.Bridges) == 0 {
		return removeTable("inet", guardTable)
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, "\t\t"+format+"\n", args...) }
	b.WriteString("\tchain forward {\n")
	line("type filter hook forward priority filter; policy accept;")
	line("iifname { %s } accept", quoted(s.Bridges))
	line("oifname { %s } accept", quoted(s.Bridges))
	line("ct state established,related accept")
	line("ct status dnat accept")
	// What stays on a bridge of the host comes by here, too, where the kernel is
	// told so (br_netfilter).
	var same []string
	for _, name := range names(slices.Concat(s.IPv4, s.IPv6)) {
		same = append(same, fmt.Sprintf("%q . %q", name, name))
	}
	if len(same) > 0 {
		line("iifname . oifname { %s } accept", strings.Join(same, ", "))
	}
	if len(s.Had4) > 0 {
		line("meta nfproto ipv4 iifname { %s } accept", quoted(s.Had4))
	}
	for _, p := range []struct {
		name string
		on   []string
	}{{"ipv4", s.IPv4}, {"ipv6", s.IPv6}} {
		if p.on == nil {
			continue
		}
		if len(p.on) > 0 {
			line("meta nfproto %s iifname { %s } counter drop", p.name, quoted(p.on))
		}
		line(`meta nfproto %s meta iifkind "bridge" accept`, p.name)
		line("meta nfproto %s counter drop", p.name)
	}
	b.WriteString("\t}\n")
	return replaceTable("inet", guardTable, b.String())
}

func quoted(names []string) string {
	var all []string
	for _, n := range names {
		all = append(all, fmt.Sprintf("%q", n))
	}
	return strings.Join(all, ", ")
}

// hostless keeps the host's own IPv6 from a card's interface, which is the
// bridge's alone: an address on it is nobody's, and what a guest says of routes
// there is not for the host. That comes beside [linkRules], which do in a container
// that may not set it.
func hostless(tap string) error {
	for _, s := range []struct{ key, value string }{{"accept_ra", "0"}, {"disable_ipv6", "1"}} {
		if err := set(filepath.Join(sysctl6, tap, s.key), s.value); err != nil && !errors.Is(err, unix.EROFS) {
			return err
		}
	}
	return nil
}

// localnet lets packets with a loopback address out and in by a bridge, as
// forwards on 127.0.0.1 need (route_localnet, ip-sysctl.rst). The network's
// filter keeps guests from using it.
//
// Each card's own interface, to which it means nothing there, has the same switch
// on, so that the last one that goes takes the bridge's with it.
func localnet(bridge, tap string) error {
	for _, name := range []string{tap, bridge} {
		if err := set(localnetOf(name), "1"); err != nil {
			return err
		}
	}
	return nil
}

func localnetOf(name string) string { return filepath.Join(sysctl4, name, "route_localnet") }

// noLocalnet has cards need it no more, and puts the switches of our bridges back that
// no other needs: of those of which nothing is noted any more, too.
func noLocalnet(taps ...string) error {
	for _, tap := range taps {
		if err := set(localnetOf(tap), "0"); err != nil {
			return err
		}
	}
	links, err := whole("interfaces", netlink.LinkList)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		if name := l.Attrs().Name; isOurs(l) && l.Type() == "bridge" && read(localnetOf(name)) == "1" {
			errs = append(errs, settleLocalnet(name))
		}
	}
	return errors.Join(errs...)
}

func settleLocalnet(bridge string) error {
	if needsLocalnet(bridge) {
		return nil
	}
	if err := set(localnetOf(bridge), read(localnetOf("default"))); err != nil {
		return err
	}
	// One that was plugged in meanwhile.
	if needsLocalnet(bridge) {
		return set(localnetOf(bridge), "1")
	}
	return nil
}

// needsLocalnet says whether a card on a bridge, or on none yet, needs it.
func needsLocalnet(bridge string) bool {
	entries, _ := os.ReadDir(sysctl4) // none for a kernel without the protocol
	index, err := Index(bridge)
	if err != nil {
		return false // and its switch is gone with it
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), TapPrefix) || read(localnetOf(e.Name())) != "1" {
			continue
		}
		if link, err := netlink.LinkByName(e.Name()); err == nil && (link.Attrs().MasterIndex == 0 || link.Attrs().MasterIndex == index) {
			return true
		}
	}
	return false
}

// read is the value of a sysctl, "" where there is none.
func read(file string) string {
	b, _ := os.ReadFile(file)
	return strings.TrimSpace(string(b))
}

// set gives a sysctl a value that it has not got yet. One that is not there, for
// lack of the interface or the protocol, is no error.
func set(file, value string) error {
	if is := read(file); is == "" || is == value {
		return nil
	}
	err := os.WriteFile(file, []byte(value), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set %s to %s: %w", file, value, err)
	}
	return nil
}

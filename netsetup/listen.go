package netsetup

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vmctl/vmctl/config"
)

// Listener is a socket of the host that waits for what comes in.
type Listener struct {
	Protocol string
	Address  netip.AddrPort
	root     string // of the host
	inode    string
}

// The states of sockets that wait (include/net/tcp_states.h of the kernel); those
// for UDP have no other.
const (
	tcpListens = "0A"
	udpWaits   = "07"
)

// Listeners are all such sockets of the host whose files are below root, which is
// "" for this one (proc_net(5)).
func Listeners(root string) ([]Listener, error) {
	var all []Listener
	for _, table := range []struct {
		file     string
		protocol string
		state    string
	}{{"tcp", config.TCP, tcpListens}, {"tcp6", config.TCP, tcpListens}, {"udp", config.UDP, udpWaits}, {"udp6", config.UDP, udpWaits}} {
		// Of /proc/net, the thread that the process began with has the say.
		b, err := os.ReadFile(root + "/proc/thread-self/net/" + table.file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without the protocol
		}
		if err != nil {
			return nil, fmt.Errorf("look for sockets that listen: %w", err)
		}
		for line := range strings.Lines(string(b)) {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != table.state {
				continue
			}
			if at, ok := socketAddress(f[1]); ok {
				all = append(all, Listener{table.protocol, at, root, f[9]})
			}
		}
	}
	return all, nil
}

// socketAddress reads "0100007F:0016": the address in words of 32 bits as they
// lie in memory, and the port as a number.
func socketAddress(s string) (netip.AddrPort, bool) {
	address, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(address)
	number, portErr := strconv.ParseUint(port, 16, 16)
	if err != nil || portErr != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	ip, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(ip, uint16(number)), ok
}

// Takes says whether a forward of a card would take from the socket what comes in
// for it, or could not be had beside it.
// both says that one without an address is had on IPv4 and IPv6, as passt does, and
// networks do but for [::1].
func (l Listener) Takes(nic config.NIC, f config.Forward, both bool) bool {
	if l.Protocol != f.Protocol || int(l.Address.Port()) != f.HostPort {
		return false
	}
	at := l.Address.Addr().Unmap()
	if f.Address != "" {
		host, err := netip.ParseAddr(f.Address)
		switch {
		case err != nil:
			return false
		case at == netip.IPv6Unspecified(): // which commonly means IPv4 too
			return true
		case host.Is4() != at.Is4():
			return false
		}
		return host == at || host.IsUnspecified() || at.IsUnspecified()
	}
	switch {
	case at.IsUnspecified() || at.Is4():
		return true
	case nic.User:
		return both // slirp has IPv4 alone
	}
	return at != netip.IPv6Loopback() // which is forwarded to no network
}

// String is where the socket listens, and whose it is as far as that can be seen:
// "sshd (process 123, ssh.service) listens on 0.0.0.0:22".
func (l Listener) String() string {
	on := "listens on " + l.Address.String()
	links, _ := filepath.Glob(l.root + "/proc/[0-9]*/fd/*")
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || to != "socket:["+l.inode+"]" {
			continue
		}
		process := filepath.Dir(filepath.Dir(link))
		name, _ := os.ReadFile(process + "/comm")
		who := strings.TrimSpace(string(name)) + " (process " + filepath.Base(process)
		if unit := unitOf(process); unit != "" {
			who += ", " + unit
		}
		return who + ") " + on
	}
	return "a process " + on
}

// unitOf is the unit that a process belongs to, "" where that cannot be seen.
func unitOf(process string) string {
	b, _ := os.ReadFile(process + "/cgroup")
	for line := range strings.Lines(string(b)) {
		if group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok && strings.Contains(path.Base(group), ".") {
			return path.Base(group)
		}
	}
	return ""
}

// TakenPorts are the forwards of a machine whose ports of the host somebody
// listens on. both says of a card with user = true whether it has its ports on IPv6,
// too.
func TakenPorts(m *config.Machine, listeners []Listener, both func(config.NIC) bool) []config.Problem {
	var problems []config.Problem
	for _, n := range m.NICs {
		for i, f := range n.Forward {
			for _, l := range listeners {
				if l.Takes(n, f, both(n)) {
					problems = append(problems, m.Problem(fmt.Sprintf("%s.forward[%d]", n.Key(), i), "want a port of the host that is free, got %q: %s", f, l))
					break
				}
			}
		}
	}
	return problems
}

// LowPorts are the forwards of a machine whose ports of the host may not be had
// without privileges: of cards with user = true, but for those that may all the
// same. What the kernel gives to anybody is read below root, which is "" for this
// host.
func LowPorts(m *config.Machine, root string, may func(config.NIC) bool) []config.Problem {
	lowest := 1024
	if b, err := os.ReadFile(root + "/proc/sys/net/ipv4/ip_unprivileged_port_start"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			lowest = n
		}
	}
	var problems []config.Problem
	for _, n := range m.NICs {
		for i, f := range n.Forward {
			if n.User && f.HostPort < lowest && !may(n) {
				problems = append(problems, m.Problem(fmt.Sprintf("%s.forward[%d]", n.Key(), i),
					"want a port of the host from %d on, which needs no privileges (net.ipv4.ip_unprivileged_port_start), got %q", lowest, f))
			}
		}
	}
	return problems
}

package config

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes. In TOML it is a string of a number and a unit:
// K, M, G, T (or KiB, MiB, …: the same, powers of 1024), or B.
type Size int64

// Duration is a span of time in systemd's notation: "90s", "3min", "1h 30min",
// "infinity" (which is [Infinity]); a plain number is seconds.
type Duration time.Duration

// Infinity is the Duration written "infinity".
const Infinity Duration = 1<<63 - 1

// MAC is an Ethernet address, in lower case with colons.
type MAC string

// UUID is a universally unique identifier in lower case with hyphens.
type UUID string

// Hugepages is the size of huge pages in bytes; 0: none; -1: the host's
// default size (written true).
type Hugepages int64

// Text is a text given in the definition, or the content of a file named by
// its absolute path: a value of one line that begins with "/" is a path.
type Text string

// Secret is a text that must not be shown: it prints as "***". Use string(s)
// where the value itself is wanted, and [Machine.Redacted] before a machine is
// marshalled for anybody but root.
type Secret string

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// Path returns the file that t names, and whether it names one.
func (t Text) Path() (string, bool) {
	return string(t), strings.HasPrefix(string(t), "/") && !strings.Contains(string(t), "\n")
}

// Protocol of a [Forward].
const (
	TCP = "tcp"
	UDP = "udp"
)

// Forward is one port of the host given to the guest, written
// [ADDRESS:]HOSTPORT:GUESTPORT[/PROTOCOL].
type Forward struct {
	Address   string `json:"address,omitempty"` // of the host; empty: every address
	HostPort  int    `json:"host_port"`
	GuestPort int    `json:"guest_port"`
	Protocol  string `json:"protocol"` // TCP or UDP
}

// IsProxied says whether a port of the host reaches a card in a network by somebody
// who listens there and connects to the guest, and not by a rule of the kernel's.
func (f Forward) IsProxied() bool { return f.Protocol == TCP && f.onLoopback6() }

func (f Forward) onLoopback6() bool {
	a, err := netip.ParseAddr(f.Address)
	return err == nil && a == netip.IPv6Loopback()
}

// parse reads an Ethernet address from a TOML value.
func (m *MAC) parse(v any) string {
	s, _ := v.(string)
	hw, err := net.ParseMAC(s)
	switch {
	case err != nil || len(hw) != 6 || strings.Contains(s, "."):
		return `an Ethernet address such as "52:54:00:12:34:56"`
	case hw[0]&1 != 0:
		return "an address of one card, not of a group (first byte even)"
	case [6]byte(hw) == [6]byte{}:
		return "an address that is not zero"
	}
	*m = MAC(hw.String())
	return ""
}

// parse reads a UUID from a TOML value.
func (u *UUID) parse(v any) string {
	s, _ := v.(string)
	s = strings.ToLower(s)
	if len(s) != 36 || strings.Trim(s, "0-") == "" {
		return wantUUID
	}
	for i := range len(s) {
		switch i {
		case 8, 13, 18, 23:
			if s[i] != '-' {
				return wantUUID
			}
		default:
			if !hexDigits(s[i:i+1], 1) {
				return wantUUID
			}
		}
	}
	*u = UUID(s)
	return ""
}

// CheckUUID says what is wrong with a UUID, nil where it is one.
func CheckUUID(text string) error {
	var u UUID
	if want := u.parse(text); want != "" {
		return fmt.Errorf("want %s, got %s", want, show(text))
	}
	return nil
}

const wantUUID = `a UUID such as "8c5a2f0e-1f4b-4c3d-9a6e-0b1c2d3e4f50" that is not zero`

// hexDigits says whether s is n hexadecimal digits in lower case.
func hexDigits(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}

// parse reads a text, or the path of a file, from a TOML value.
func (t *Text) parse(v any) string {
	s, ok := v.(string)
	if !ok || strings.Contains(s, "\x00") {
		return "a text, or the absolute path of a file"
	}
	if path, is := Text(s).Path(); is {
		if wantPath(path) != "" {
			// What wantPath says would show the text, which can be secret.
			return "the absolute path of a file without \"..\", doubled or trailing slashes"
		}
	}
	*t = Text(s)
	return ""
}

// parse reads a secret of one line from a TOML value.
func (s *Secret) parse(v any) string {
	text, ok := v.(string)
	if !ok || hasControl(text) {
		return "a string of one line"
	}
	*s = Secret(text)
	return ""
}

const wantForward = `[ADDRESS:]HOSTPORT:GUESTPORT[/PROTOCOL] such as "2222:22/tcp" or "127.0.0.1:8080:80"`

// parseForward reads a forward; the string says what was wanted, "" where it
// is good.
func parseForward(s string) (Forward, string) {
	ports, protocol, given := strings.Cut(s, "/")
	if !given {
		protocol = TCP
	}
	if protocol != TCP && protocol != UDP {
		return Forward{}, "protocol tcp or udp"
	}
	f := Forward{Protocol: protocol}
	rest, guest, ok := cutLast(ports, ":")
	if !ok {
		return Forward{}, wantForward
	}
	address, host, given := cutLast(rest, ":")
	if !given {
		address, host = "", rest
	}
	if f.HostPort, ok = port(host); !ok {
		return Forward{}, "ports from 1 to 65535"
	}
	if f.GuestPort, ok = port(guest); !ok {
		return Forward{}, "ports from 1 to 65535"
	}
	if !given {
		return f, ""
	}
	bare, bracketed := strings.CutPrefix(address, "[")
	bare, closed := strings.CutSuffix(bare, "]")
	ip, err := netip.ParseAddr(bare)
	if err != nil || bracketed != closed || bracketed != ip.Is6() || ip.Zone() != "" {
		return Forward{}, `an IP address before the ports, IPv6 in brackets, such as "[::1]:8080:80"`
	}
	f.Address = ip.String()
	return f, ""
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func port(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return int(n), err == nil && n > 0 && digits(s)
}

// overlaps says whether f and g cannot both be had of one host.
func (f Forward) overlaps(g Forward) bool {
	if f.HostPort != g.HostPort || f.Protocol != g.Protocol {
		return false
	}
	switch {
	case f.Address == "" || g.Address == "":
		return true
	case strings.Contains(f.Address, ":") != strings.Contains(g.Address, ":"):
		return false // IPv4 and IPv6
	}
	return f.Address == g.Address || f.every() || g.every()
}

// every says whether f is a port of every address of the host, of one protocol or
// of both.
func (f Forward) every() bool { return f.Address == "" || f.Address == "0.0.0.0" || f.Address == "::" }

// String writes f as it is read.
func (f Forward) String() string {
	s := fmt.Sprintf("%d:%d/%s", f.HostPort, f.GuestPort, f.Protocol)
	switch {
	case f.Address == "":
		return s
	case strings.Contains(f.Address, ":"):
		return "[" + f.Address + "]:" + s
	}
	return f.Address + ":" + s
}

// derive returns n bytes that depend on nothing but its arguments. The host's
// machine-id is one of them, so that two hosts derive different addresses for
// machines of the same name.
func derive(n int, parts ...string) []byte {
	sum := sha256.Sum256([]byte("vmctl\x00" + strings.Join(parts, "\x00")))
	return sum[:n]
}

// DeriveMAC returns the address that a card has when its definition gives
// none: locally administered, unicast, 46 bits of a hash.
func DeriveMAC(machineID, vm, nic string) MAC {
	b := derive(6, "mac", machineID, vm, nic)
	b[0] = b[0]&0xfc | 0x02
	return MAC(fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5]))
}

// DeriveUUID returns the UUID (RFC 9562, version 8) that a machine has when
// its definition gives none.
func DeriveUUID(machineID, vm string) UUID {
	b := derive(16, "uuid", machineID, vm)
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	return UUID(fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16]))
}

// DeriveCID returns the vsock address (at least 3) that a machine has when its
// definition gives none.
func DeriveCID(machineID, vm string) uint32 {
	b := derive(4, "cid", machineID, vm)
	cid := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	// 0-2 and 2^32-1 are reserved (vsock(7)); low numbers are left to people.
	return 1<<20 + cid%(1<<31)
}

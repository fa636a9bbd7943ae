package config

import (
	"crypto/sha256"
	"fmt"
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

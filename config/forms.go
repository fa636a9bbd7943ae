package config

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// wants says what the form of a string (the tag of that name) wants instead of
// s, "" where s is good.
func wants(form, s string) string {
	switch form {
	case "name":
		return wantName(s)
	case "path":
		return wantPath(s)
	case "socket":
		return wantSocket(s)
	case "interface":
		return wantInterface(s)
	case "image":
		return wantImage(s)
	case "url":
		return wantURL(s)
	case "checksum":
		return wantChecksum(s)
	case "firmware":
		if s == "bios" || s == "uefi" || s == "none" {
			return ""
		}
		if want := wantPath(s); want != "" {
			return `"bios", "uefi", "none" or ` + want
		}
		return ""
	}
	if good, want := matches(form, s); !good {
		return want
	}
	return ""
}

// matches says whether s has the form, and what the form is in words.
func matches(form, s string) (good bool, want string) {
	const lower = "abcdefghijklmnopqrstuvwxyz0123456789"
	const word = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ._-"
	only := func(s, set string) bool { return s != "" && strings.Trim(s, set) == "" }
	switch form {
	case "word":
		return only(s, word+"+"), "letters, digits and ._-+"
	case "id":
		return only(s, word+":") && len(s) <= 128, "at most 128 letters, digits and ._-:"
	case "line":
		return len(s) <= 255 && strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) < 0, "one line of at most 255 bytes"
	case "feature":
		return len(s) > 1 && (s[0] == '+' || s[0] == '-') && only(s[1:], word), `a flag with + or - before it, such as "+x2apic"`
	case "cpus":
		return cpuList(s) > 0, `a list of CPUs such as "0" or "2-3,6"`
	case "pci":
		_, ok := pciAddress(s)
		return ok, `a PCI address such as "0000:01:00.0"`
	case "hex4":
		return hexDigits(s, 4), `four hexadecimal digits such as "046d"`
	case "usbport":
		return only(s, "0123456789.") && digits(strings.ReplaceAll(s, ".", "")) && strings.Trim(s, ".") == s && !strings.Contains(s, ".."), `a port such as "1.4"`
	case "idrange":
		_, ok := ParseIDRange(s)
		return ok, `a range such as "0:100000:65536": the first of the guest, the first of the host, how many`
	case "hostname":
		return hostname(s), "a host name of at most 64 characters"
	case "user", "group":
		return only(s, lower+"_-") && len(s) <= 32 && !strings.ContainsAny(s[:1], "-0123456789"), "the name of a " + form
	case "prefix4":
		p, err := netip.ParsePrefix(s)
		if err != nil || !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 30 {
			return false, `an IPv4 network such as "192.168.100.0/24"`
		}
		return p == p.Masked(), fmt.Sprintf("a network without bits of a host, %q", p.Masked())
	case "prefix6":
		p, err := netip.ParsePrefix(s)
		if s == "auto" || s == "none" {
			return true, ""
		}
		if err != nil || !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() != 64 {
			return false, `an IPv6 network such as "fd00:1:2:3::/64", "auto" or "none"`
		}
		return p == p.Masked(), fmt.Sprintf("a network without bits of a host, %q", p.Masked())
	case "range4":
		first, last, _ := strings.Cut(s, "-")
		a, err1 := netip.ParseAddr(first)
		b, err2 := netip.ParseAddr(last)
		return err1 == nil && err2 == nil && a.Is4() && b.Is4(), `two IPv4 addresses such as "192.168.100.10-192.168.100.99"`
	case "calendar":
		return calendar(s), `a calendar event such as "daily" or "Mon..Fri 22:30", or "never"`
	case "hostport":
		host, p, err := net.SplitHostPort(s)
		_, ok := port(p)
		_, notIP := netip.ParseAddr(host)
		return err == nil && ok && (host == "" || notIP == nil && !strings.Contains(host, "%")), `an address such as "127.0.0.1:5900"`
	}
	return resource(form, s)
}

// resource checks what systemd would only warn of and then not apply, so that
// a machine would run without its limit (systemd.resource-control(5),
// systemd.exec(5)).
func resource(form, s string) (good bool, want string) {
	switch form {
	case "quota":
		n, ok := strings.CutSuffix(s, "%")
		return ok && between(n, 1, math.MaxInt32), `a percentage such as "150%"`
	case "weight":
		return s == "idle" || between(s, 1, 10000), `an integer from 1 to 10000, or "idle"`
	case "limit":
		return limit(s), `a size such as "4G", a percentage or "infinity"`
	case "tasks":
		return s == "infinity" || strings.HasSuffix(s, "%") && limit(s) || between(s, 1, math.MaxInt64), `an integer, a percentage or "infinity"`
	case "iolimit":
		path, n, _ := strings.Cut(s, " ")
		return wantPath(path) == "" && limit(n) && !strings.HasSuffix(n, "%"), `a path and a limit such as "/dev/sda 10M"`
	case "slice":
		name, ok := strings.CutSuffix(s, ".slice")
		return ok && name != "" && len(s) < 256 && !strings.ContainsAny(name, "/ %\t"), `the name of a slice such as "machine.slice"`
	case "nice":
		return between(s, -20, 19), "an integer from -20 to 19"
	case "oom":
		return between(s, -1000, 1000), "an integer from -1000 to 1000"
	}
	panic("no form " + form)
}

func between(s string, low, high int64) bool {
	n, err := strconv.ParseInt(s, 10, 64)
	return err == nil && n >= low && n <= high
}

// limit says whether s is what systemd takes for MemoryMax= and its like.
func limit(s string) bool {
	if s == "infinity" {
		return true
	}
	if n, ok := strings.CutSuffix(s, "%"); ok {
		return between(n, 0, 100)
	}
	_, ok := systemdSize(s)
	return ok
}

// systemdSize reads a size as systemd does: without a unit it is bytes.
func systemdSize(s string) (int64, bool) {
	unit := int64(1)
	number := strings.TrimRight(s, "BKMGT")
	if number != s {
		if unit = unitOf(s[len(number):]); unit == 0 {
			return 0, false
		}
	}
	n, ok := scaled(number, unit)
	return n, ok && n >= 0
}

// cpuList counts the CPUs in a list such as "0,2-3"; 0 where it is none.
func cpuList(s string) int {
	sum := 0
	for part := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == ',' || r == ' ' }) {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.ParseUint(first, 10, 13) // the kernel's most is 8192
		b, err2 := strconv.ParseUint(last, 10, 13)
		if err1 != nil || err2 != nil || b < a {
			return 0
		}
		sum += int(b-a) + 1
	}
	return sum
}

// pciAddress returns s with its domain, in lower case.
func pciAddress(s string) (string, bool) {
	s = strings.ToLower(s)
	if strings.Count(s, ":") == 1 {
		s = "0000:" + s
	}
	ok := len(s) == 12 && s[4] == ':' && s[7] == ':' && s[10] == '.' &&
		hexDigits(s[:4], 4) && hexDigits(s[5:7], 2) && s[8] <= '1' && hexDigits(s[8:10], 2) && s[11] >= '0' && s[11] <= '7'
	return s, ok
}

// calendar says whether s may be a calendar event of systemd.time(7): one of its
// words, or dates and times. All of its rules only systemd knows.
func calendar(s string) bool {
	words := []string{"never", "minutely", "hourly", "daily", "weekly", "monthly", "quarterly", "semiannually", "annually", "yearly"}
	if slices.Contains(words, s) {
		return true
	}
	allowed := strings.IndexFunc(s, func(r rune) bool {
		return r != ' ' && !strings.ContainsRune("*-:/,.~+_", r) && !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}) < 0
	days := []string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}
	day := len(s) >= 3 && slices.Contains(days, strings.ToLower(s[:3]))
	return allowed && len(s) < 256 && (day || strings.ContainsAny(s, "*:-") && strings.ContainsAny(s, "*0123456789"))
}

func hostname(s string) bool {
	if len(s) > 64 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if wantName(strings.ToLower(label)) != "" {
			return false
		}
	}
	return true
}

package config

import (
	"fmt"
	"path"
	"strings"
)

// maxName is the length of the longest name: with it every socket's path fits
// into the 107 bytes that the kernel allows.
const maxName = 63

// CheckName says what is wrong with the name of a machine, network, disk, card
// or share, nil where it is legal: [a-z0-9]([a-z0-9-]*[a-z0-9])?, at most 63
// characters. Legal names need no escaping anywhere.
func CheckName(name string) error {
	if want := wantName(name); want != "" {
		return fmt.Errorf("want %s, got %s", want, show(name))
	}
	return nil
}

// PlainName makes any text a legal name of at most n characters, "" where nothing
// of it is left.
func PlainName(text string, n int) string {
	var b strings.Builder
	for _, r := range strings.ToLower(text) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		} else if b.Len() > 0 && !strings.HasSuffix(b.String(), "-") {
			b.WriteByte('-')
		}
	}
	out := b.String()
	return strings.Trim(out[:min(n, len(out))], "-")
}

// The want… functions return what a message says was wanted, "" where the
// value is good.

func wantName(s string) string {
	switch {
	case len(s) > maxName:
		return "a name of at most 63 characters"
	case s == "" || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || s[0] == '-' || s[len(s)-1] == '-':
		return "a name of a-z, 0-9 and (not at its ends) hyphens"
	}
	return ""
}

func wantPath(s string) string {
	switch {
	case s == "" || s[0] != '/':
		return "an absolute path"
	case hasControl(s):
		return "a path without control characters"
	case len(s) > 4095:
		return "a path of at most 4095 bytes"
	case path.Clean(s) != s:
		return fmt.Sprintf("the path written %s", show(path.Clean(s)))
	}
	return ""
}

// wantSocket is wantPath for the path of a Unix socket.
func wantSocket(s string) string {
	if len(s) > 107 {
		return "a path of at most 107 bytes"
	}
	return wantPath(s)
}

// wantInterface follows dev_valid_name of the kernel, without what means more
// than itself to the kernel (%), nft or dnsmasq, which are told of interfaces.
func wantInterface(s string) string {
	switch {
	case s == "" || len(s) > 15 || s == "." || s == ".." || strings.ContainsAny(s, "/: ") || hasControl(s):
		return "the name of a network interface, at most 15 bytes"
	case strings.ContainsAny(s, "\t%*\"\\,"):
		return `the name of a network interface without any of %*"\,`
	}
	return ""
}

// CheckImageName says what is wrong with the name of a stored image, nil where
// it is legal.
func CheckImageName(name string) error {
	if want := wantImage(name); want != "" {
		return fmt.Errorf("want %s, got %s", want, show(name))
	}
	return nil
}

// ImageName is the name that a stored image gets from the file or URL that it comes
// from: without the endings of compression and format.
func ImageName(file string) string {
	file, _, _ = strings.Cut(file, "?")
	name := path.Base(file)
	for _, ending := range []string{".xz", ".gz", ".zst"} {
		name = strings.TrimSuffix(name, ending)
	}
	for _, ending := range []string{".qcow2", ".img", ".raw", ".vmdk", ".vdi", ".vhd", ".vpc", ".vhdx", ".iso"} {
		name = strings.TrimSuffix(name, ending)
	}
	return name
}

// wantImage allows what file names of images have, and nothing that leaves
// their directory.
func wantImage(s string) string {
	if s == "" || len(s) > 128 || s[0] == '.' || s[0] == '-' ||
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:+-") != "" {
		return "the name of a stored image (letters, digits and ._:+-)"
	}
	return ""
}

// wantURL looks at no more than what tells a URL from other things: this is
// linked into the generator, which has no use for package net/url.
func wantURL(s string) string {
	_, rest, _ := strings.Cut(s, "://")
	if !strings.HasPrefix(s, "https://") && !strings.HasPrefix(s, "http://") ||
		rest == "" || rest[0] == '/' || strings.ContainsAny(s, " \t\"<>\\") || hasControl(s) {
		return "an http or https URL"
	}
	return ""
}

func wantChecksum(s string) string {
	algorithm, hex, _ := strings.Cut(s, ":")
	digits := map[string]int{"sha256": 64, "sha512": 128}[algorithm]
	if digits == 0 || !hexDigits(hex, digits) {
		return `a checksum such as "sha256:…" with 64 or "sha512:…" with 128 hexadecimal digits`
	}
	return ""
}

// hasControl says whether s has a character that does not belong into a line:
// a control character other than the tabulator.
func hasControl(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

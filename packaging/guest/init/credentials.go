package main

import (
	"bytes"
	"encoding/base64"
	"os"
	"strings"
)

// showCredentials prints the systemd credentials that came with the machine's
// firmware tables (systemd.system-credentials(7)).
func (g *guest) showCredentials() {
	for _, file := range glob("/sys/firmware/dmi/entries/11-*/raw") {
		raw, err := os.ReadFile(file)
		if err != nil {
			g.say("reading %s: %v", file, err)
			continue
		}
		for _, text := range oemStrings(raw) {
			name, value, ok := credential(text)
			switch {
			case !ok:
			case g.option("guest.quiet"):
				g.say("credential %s (%d bytes)", name, len(value))
			default:
				g.say("credential %s = %q", name, value)
			}
		}
	}
}

// oemStrings returns the strings of a DMI table: they follow its fixed part,
// whose length is its second byte, and end with an empty one.
func oemStrings(raw []byte) []string {
	if len(raw) < 2 || len(raw) < int(raw[1]) {
		return nil
	}
	var texts []string
	for text := range bytes.SplitSeq(raw[raw[1]:], []byte{0}) {
		if len(text) == 0 {
			break
		}
		texts = append(texts, string(text))
	}
	return texts
}

func credential(text string) (name, value string, ok bool) {
	if rest, found := strings.CutPrefix(text, "io.systemd.credential.binary:"); found {
		name, encoded, _ := strings.Cut(rest, "=")
		value, err := base64.StdEncoding.DecodeString(encoded)
		return name, string(value), err == nil
	}
	if rest, found := strings.CutPrefix(text, "io.systemd.credential:"); found {
		return strings.Cut(rest, "=")
	}
	return "", "", false
}

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const seedDir = "/run/seed"

// applySeed finds the cloud-init seed, takes the host name from it and prints
// what is in it. A machine without one is as well.
func (g *guest) applySeed() {
	device := findSeed()
	if device == "" {
		g.say("no cloud-init seed")
		return
	}
	if err := mountSeed(device); err != nil {
		g.say("mounting the cloud-init seed %s: %v", device, err)
		return
	}
	g.say("cloud-init seed on %s", device)

	meta, err := os.ReadFile(seedDir + "/meta-data")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		g.say("reading meta-data: %v", err)
	}
	if name := hostname(meta); name != "" {
		if err := unix.Sethostname([]byte(name)); err != nil {
			g.say("setting the host name: %v", err)
		} else {
			g.say("hostname %s", name)
		}
	}
	if !g.option("guest.quiet") {
		g.printSeed()
	}
}

func (g *guest) printSeed() {
	for _, file := range glob(seedDir + "/*") {
		content, err := os.ReadFile(file)
		if err != nil {
			g.say("reading %s: %v", file, err)
			continue
		}
		g.print("--- %s\n%s\n", filepath.Base(file), bytes.TrimRight(content, "\n"))
	}
	g.print("---\n")
}

// findSeed returns the block device with an ISO 9660 volume of the name that
// cloud-init looks for, "" where there is none.
func findSeed() string {
	for _, dir := range glob("/sys/class/block/*") {
		if readLine(dir+"/size") == "0" {
			continue
		}
		device := "/dev/" + filepath.Base(dir)
		if strings.EqualFold(isoLabel(device), "cidata") {
			return device
		}
	}
	return ""
}

// isoLabel returns the volume name in the primary descriptor (ECMA-119, 8.4).
func isoLabel(device string) string {
	const descriptor, label, labelSize = 16 * 2048, 40, 32
	f, err := os.Open(device)
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, label+labelSize)
	if _, err := f.ReadAt(b, descriptor); err != nil || string(b[1:6]) != "CD001" {
		return ""
	}
	return strings.TrimRight(string(b[label:]), " \x00")
}

func mountSeed(device string) error {
	if err := os.MkdirAll(seedDir, 0o755); err != nil {
		return err
	}
	return unix.Mount(device, seedDir, "iso9660", unix.MS_RDONLY, "")
}

// hostname returns the host name that meta-data gives, written as JSON or in
// the plainest of YAML.
func hostname(meta []byte) string {
	var m struct {
		Local string `json:"local-hostname"`
		Name  string `json:"hostname"`
	}
	if json.Unmarshal(meta, &m) == nil {
		if m.Local != "" {
			return m.Local
		}
		return m.Name
	}
	for line := range strings.Lines(string(meta)) {
		key, value, _ := strings.Cut(line, ":")
		if key == "local-hostname" || key == "hostname" {
			return strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return ""
}

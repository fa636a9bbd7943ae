package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/hostdevice"
)

// checkHost warns of what the machine is to have of the host, and that is not
// there: it may be by the time that the machine starts.
func (a *app) checkHost(m *config.Machine, plan *hypervisor.Plan, host hypervisor.Host) []config.Problem {
	var warnings []config.Problem
	if plan.NeedsKVM && !host.Nodes[hypervisor.KVM] {
		warnings = append(warnings, hypervisor.NoKVM(m, "does not exist on this host"))
	}
	warn := func(key, text string) {
		if text != "" {
			warnings = append(warnings, m.Problem(key, "%s", text))
		}
	}
	for _, f := range plan.Files {
		if strings.HasSuffix(f.Key, ".image") {
			continue // of checkImages
		}
		if isAbsent(f.Path) {
			warn(f.Key, f.Path+" does not exist")
		}
	}
	for _, n := range plan.New {
		if p := disk.InOtherFormat(m, n); p != nil {
			warnings = append(warnings, *p)
		}
	}
	for _, s := range m.Shares {
		warn(s.Key()+".path", wantDirectory(s.Path))
	}
	for _, n := range m.NICs {
		switch {
		case n.Bridge != "":
			warn(n.Key()+".bridge", a.wantBridge(n.Bridge))
		case n.Tap != "":
			warn(n.Key()+".tap", a.wantInterface("TAP interface", n.Tap))
		case n.Macvtap != "":
			warn(n.Key()+".macvtap", a.wantInterface("interface", n.Macvtap))
		}
	}
	for _, r := range hostdevice.New(a.paths).Refusals(m.Name, plan) {
		warn(r.Key, r.Text)
	}
	return warnings
}

// checkNetworks finds what is wrong with networks, and warns of the bridges of the
// host that are not there. invalid is how many networks are no good.
func (a *app) checkNetworks(all []config.NetworkFile) (findings []finding, invalid int) {
	for _, n := range all {
		findings = append(findings, severity("error", n.Problems)...)
		findings = append(findings, severity("warning", n.Warnings)...)
		switch {
		case len(n.Problems) > 0:
			invalid++
		case n.Network.Bridge != "":
			if text := a.wantBridge(n.Network.Bridge); text != "" {
				findings = append(findings, finding{n.Network.Problem("bridge", "%s", text), "warning"})
			}
		}
	}
	return findings, invalid
}

// isAbsent is certain only: what may not be looked at may be there.
func isAbsent(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// The following say what is wrong with what is wanted of the host, "" for nothing.

func wantDirectory(path string) string {
	switch info, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return path + " does not exist"
	case err == nil && !info.IsDir():
		return fmt.Sprintf("want a directory, got %s, which is none", path)
	}
	return ""
}

func (a *app) wantInterface(kind, name string) string {
	if isAbsent(a.root + "/sys/class/net/" + name) {
		return fmt.Sprintf("want the %s %s, the host has no such interface", kind, name)
	}
	return ""
}

func (a *app) wantBridge(name string) string {
	if text := a.wantInterface("bridge", name); text != "" {
		return text
	}
	if isAbsent(a.root + "/sys/class/net/" + name + "/bridge") {
		return fmt.Sprintf("want the bridge %s, which is none", name)
	}
	return ""
}

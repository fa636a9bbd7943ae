package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/netsetup"
)

// hostNetwork is what networks find of the host.
type hostNetwork struct {
	programs  map[string]string // versions of nft and dnsmasq, by name; none where it is not installed
	modules   []string          // of the kernel, that are neither loaded nor there to be
	obstacles []netsetup.Obstacle
}

// kernelModules are what networks need of the kernel.
func kernelModules() []string { return []string{"bridge", "tun", "nf_tables", "vxlan"} }

func (a *app) gatherNetwork(ctx context.Context) hostNetwork {
	h := hostNetwork{programs: map[string]string{}}
	for name, prefix := range map[string]string{"nft": "nftables v", "dnsmasq": "Dnsmasq version "} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		out, _ := exec.CommandContext(ctx, path, "--version").Output()
		cancel()
		_, rest, _ := strings.Cut(string(out), prefix)
		version, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		h.programs[name] = version
	}
	for _, m := range kernelModules() {
		if !a.hasModule(m) {
			h.modules = append(h.modules, m)
		}
	}
	networks, _ := a.networks()
	for _, n := range networks {
		if n.Network == nil || n.Network.Bridge != "" || !a.isUp(n.Network) {
			continue
		}
		// Without privileges there is nothing to be told.
		found, _ := netsetup.Obstacles(n.Network.Device())
		h.obstacles = append(h.obstacles, found...)
	}
	return h
}

func (a *app) isUp(n *config.Network) bool {
	_, err := os.Stat(a.root + "/sys/class/net/" + n.Device())
	return err == nil
}

// hasModule says whether the kernel has a module, loaded, built in or on disk. One
// whose list of modules cannot be read is given the benefit of the doubt.
func (a *app) hasModule(name string) bool {
	if _, err := os.Stat(a.root + "/sys/module/" + name); err == nil {
		return true
	}
	release, err := os.ReadFile(a.root + "/proc/sys/kernel/osrelease")
	if err != nil {
		return true
	}
	dir := a.root + "/lib/modules/" + strings.TrimSpace(string(release))
	known := false
	for _, file := range []string{"modules.dep", "modules.builtin"} {
		list, err := os.ReadFile(dir + "/" + file)
		known = known || err == nil
		if bytes.Contains(list, []byte("/"+name+".ko")) {
			return true
		}
	}
	return !known
}

// warnOfObstacles tells of filters of others that drop what a network needs, to
// those who may know.
func (a *app) warnOfObstacles(n *config.Network) {
	if n == nil || n.Bridge != "" {
		return
	}
	found, _ := netsetup.Obstacles(n.Device())
	for _, o := range found {
		a.ui.warnf("%s: %s, so guests may reach nothing: %s", n.Name, o.Text, o.Remedy)
	}
}

func checkProgram(f facts, name, without, next string) check {
	version, there := f.network.programs[name]
	switch {
	case !there:
		return check{name, verdictWarn, "not installed, so " + without, next}
	case version == "":
		return check{name, verdictWarn, "does not tell its version", name + " --version tells why"}
	}
	return check{name, verdictOK, "version " + version, ""}
}

func checkModules(f facts) check {
	const name = "kernel"
	if m := f.network.modules; len(m) > 0 {
		return check{name, verdictWarn, "no module " + strings.Join(m, ", ") + ", which networks need", "modprobe " + m[0] + " tells why"}
	}
	return check{name, verdictOK, "has what networks need: " + strings.Join(kernelModules(), ", "), ""}
}

func checkFirewalls(f facts) check {
	const name = "firewall"
	if all := f.network.obstacles; len(all) > 0 {
		text := all[0].Text
		if len(all) > 1 {
			text += fmt.Sprintf(" (and %d more)", len(all)-1)
		}
		return check{name, verdictWarn, text + ", so guests of networks may reach nothing", all[0].Remedy}
	}
	return check{name, verdictOK, "no filter of others is known to drop what networks need", ""}
}

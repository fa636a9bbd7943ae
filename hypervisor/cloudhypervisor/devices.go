package cloudhypervisor

import (
	"fmt"

	"github.com/vmctl/vmctl/config"
)

// devices goes through every device of the machine. What it does not know is
// refused.
func (p *planner) devices() {
	p.always()
	for _, d := range p.m.Devices() {
		switch d := d.(type) {
		case config.Serial, config.RNG: // see console and always
		case config.Disk:
			p.disk(d)
		case config.NIC:
			p.nic(d)
		case config.Vsock:
			p.arg("--vsock", options(fmt.Sprintf("cid=%d", d.CID), text("socket", p.paths.VsockSocket(p.m.Name)), "id=vsock"))
		case config.Watchdog:
			p.watchdog(d)
		case config.Balloon:
			p.arg("--balloon", options("size=0", "deflate_on_oom="+onOff(d.DeflateOnOOM), "free_page_reporting="+onOff(d.FreePageReporting)))
		case config.Credential:
			// Nor by vm.create, of which the log that says how it ended (-v) has all.
			p.problem(d.Key(), "%s, which shows them on the host, on its command line or in its log: give them to the guest as files by cloud_init.user_data (write_files below /etc/credstore)", notSupported)
		case config.GuestAgent:
			p.problem("guest_agent.enabled", "%s, which has no such channel: want false, got true", notSupported)
		case config.Display:
			p.problem("display.type", "%s, which has no graphics: want \"none\", got %q", notSupported, d.Type)
		case config.USB:
			p.problem(d.Key(), "%s, which has no USB", notSupported)
		case config.Share:
			p.share(d)
		case config.TPM:
			p.tpm()
		case config.PCI:
			p.hostPCI(d)
		default:
			p.problem(d.Key(), notSupported+" yet")
		}
	}
	p.seed()
	if p.m.Snapshots.Scheduled() {
		p.problem("snapshots.schedule", "%s, which writes to raw disks alone, and those hold no snapshots: leave it out, got %q", notSupported, p.m.Snapshots.Schedule)
	}
	// Before v52 an option may be given but once, for all of its devices.
	for _, option := range []struct {
		name   string
		values []string
	}{{"--disk", p.disks}, {"--net", p.cards}, {"--fs", p.shares}, {"--device", p.hostDevices}} {
		if option.values != nil {
			p.arg(append([]string{option.name}, option.values...)...)
		}
	}
	p.countDevices()
}

// always is what every machine has.
func (p *planner) always() {
	if !p.m.RNG.Enabled {
		p.problem("rng.enabled", "%s, which always gives the guest one: want true, got false", notSupported)
	}
	p.arg("--rng", "src=/dev/urandom")
}

// watchdog is the only one that there is. It resets the guest.
func (p *planner) watchdog(w config.Watchdog) {
	p.want("watchdog.model", w.Model, "virtio")
	p.want("watchdog.action", w.Action, "reset")
	p.arg("--watchdog")
}

// seed is the cloud-init seed, after the disks, so that the first of them is the
// guest's first.
func (p *planner) seed() {
	if !p.m.CloudInit.Enabled {
		return
	}
	p.plan.Seed = true
	p.disks = append(p.disks, options(text("path", p.paths.Seed(p.m.Name)), "readonly=on", "image_type=raw", "serial=cloudinit", "id=seed"))
}

// countDevices holds the devices against the places of the PCI bus: 32, of which
// the board takes one, and the random numbers, a console, the panic, the vsock, the
// balloon, the watchdog and virtio-mem at most seven.
func (p *planner) countDevices() {
	const places = 32 - 1 - 7
	if n := len(p.disks) + len(p.cards) + len(p.shares) + len(p.hostDevices); n > places {
		p.problem("hypervisor", "cloud-hypervisor has room for %d disks, cards, shares and devices of the host, got %d", places, n)
	}
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

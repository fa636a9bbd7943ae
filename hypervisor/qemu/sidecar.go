package qemu

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// oldVirtiofsd is the directory of the virtiofsd that came with QEMU until 7.2,
// which has other options than the one of today.
const oldVirtiofsd = "/usr/lib/qemu"

// sidecar has s run beside QEMU, and is the character device with the connection
// to it.
func (p *planner) sidecar(id string, s hypervisor.Sidecar) {
	p.plan.Sidecars = append(p.plan.Sidecars, s)
	fd := p.inherit(hypervisor.Descriptor{Use: hypervisor.Connect, Unit: s.Unit})
	p.arg("-chardev", options("socket", "id="+id, "fd="+strconv.Itoa(fd)))
}

// share is a directory of the host. QEMU passes the guest's requests on, in the
// guest's memory.
func (p *planner) share(s config.Share) {
	if why := p.paths.Unshareable(s.Path); why != "" {
		p.problem(s.Key()+".path", "want a directory that a guest may have, got %q, which %s", s.Path, why)
		return
	}
	argv := p.virtiofsd(s)
	if argv == nil {
		return
	}
	id := "share-" + s.Name
	p.sidecar(id, hypervisor.Sidecar{Unit: config.ShareUnit(p.m.Name, s.Name), Key: s.Key(), Name: "virtiofsd",
		Argv: argv, Share: s.Path, Write: !s.Readonly, User: s.User})
	p.arg("-device", options(p.virtio("vhost-user-fs"), "id="+id, p.port(s.Key()), "chardev="+id, "tag="+s.Tag))
}

// virtiofsd is the command line of the host's virtiofsd, nil where none can do
// what the definition asks for. Its own sandbox is the unit's, which is closer:
// it takes privileges to make one.
func (p *planner) virtiofsd(s config.Share) []string {
	program := p.host.Programs["virtiofsd"]
	dir := hypervisor.SharedDir
	if p.paths.User {
		dir = s.Path
	}
	if p.paths.User && len(s.UIDMap)+len(s.GIDMap) > 0 {
		p.problem(s.Key(), "uid_map and gid_map are not supported for machines of a user, who is the only one there")
		return nil
	}
	switch {
	case program == "":
		p.problem(s.Key(), "virtiofsd, which serves directories, was not found on this host; install it (Debian: virtiofsd)")
		return nil
	case path.Dir(program) != oldVirtiofsd:
		argv := []string{program, "--fd=" + hypervisor.SocketArg, "--shared-dir=" + dir, "--cache=" + s.Cache,
			"--sandbox=none", "--modcaps=-mknod:-setfcap", "--rlimit-nofile=0", "--log-level=warn"}
		if s.User != "" || p.paths.User {
			// Who may be but one user cannot do anything as the others.
			argv = append(argv, "--translate-uid=squash-guest:0:"+hypervisor.UIDArg+":4294967295",
				"--translate-gid=squash-guest:0:"+hypervisor.GIDArg+":4294967295")
		}
		argv = append(argv, translations("--translate-uid", s.UIDMap)...)
		argv = append(argv, translations("--translate-gid", s.GIDMap)...)
		if p.paths.User && s.Readonly {
			argv = append(argv, "--readonly") // where it has no mounts of its own
		}
		return argv
	case len(s.UIDMap) > 0:
		p.problem(s.Key()+".uid_map", "not supported by the virtiofsd of this host, %s", program)
		return nil
	case len(s.GIDMap) > 0:
		p.problem(s.Key()+".gid_map", "not supported by the virtiofsd of this host, %s", program)
		return nil
	case p.paths.User:
		p.problem(s.Key(), "want a virtiofsd that runs without privileges: that of this host, %s, does not", program)
		return nil
	case s.User != "":
		p.problem(s.Key()+".user", "not supported by the virtiofsd of this host, %s", program)
		return nil
	}
	cache := s.Cache
	if cache == "never" {
		cache = "none"
	}
	return []string{program, "-f", "--fd=" + hypervisor.SocketArg, "-o", "source=" + dir, "-o", "cache=" + cache,
		"-o", "sandbox=chroot", "-o", "modcaps=-mknod:-setfcap", "--rlimit-nofile=0"}
}

// translations are virtiofsd's options for ranges of users or groups. Whoever is
// in none of them may own nothing there, or is nobody to the guest.
func translations(option string, ranges []string) []string {
	if len(ranges) == 0 {
		return nil
	}
	var all []string
	add := func(format string, args ...any) { all = append(all, option+"="+fmt.Sprintf(format, args...)) }
	var guest, host []config.IDSpan
	for _, text := range ranges {
		r, _ := config.ParseIDRange(text) // checked by config
		add("map:%d:%d:%d", r.Guest, r.Host, r.Count)
		guest = append(guest, config.IDSpan{First: r.Guest, Count: r.Count})
		host = append(host, config.IDSpan{First: r.Host, Count: r.Count})
	}
	for _, g := range config.IDGaps(guest) {
		add("forbid-guest:%d:%d", g.First, g.Count)
	}
	for _, g := range config.IDGaps(host) {
		add("squash-host:%d:%d:%d", g.First, hypervisor.Nobody, g.Count)
	}
	return all
}

// tpm is a TPM 2.0 with the interface that goes with the board.
func (p *planner) tpm() {
	device := "tpm-crb"
	switch {
	case p.microvm():
		p.problem("tpm.enabled", `not supported by qemu for machine = "microvm", which has no ACPI table for it`)
		return
	case p.host.Programs["swtpm"] == "":
		p.problem("tpm.enabled", "swtpm, which is the TPM, was not found on this host; install it (Debian: swtpm)")
		return
	case strings.ContainsRune(p.paths.State, ','):
		p.problem("tpm.enabled", "want a directory for the machines' state without commas, got %q", p.paths.State)
		return
	case !p.q35():
		device = "tpm-tis"
	}
	p.sidecar("tpm", hypervisor.Sidecar{Unit: config.TPMUnit(p.m.Name), Key: "tpm", Name: "swtpm",
		Argv: []string{p.host.Programs["swtpm"], "socket", "--tpm2", "--terminate",
			"--tpmstate", "dir=" + p.paths.TPM(p.m.Name) + ",mode=0600", "--ctrl", "type=unixio,fd=" + hypervisor.SocketArg},
		State: p.paths.TPMState(p.m.Name)})
	p.arg("-tpmdev", "emulator,id=tpm,chardev=tpm")
	p.arg("-device", options(device, "tpmdev=tpm"))
}

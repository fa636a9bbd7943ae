package hypervisor

import (
	"fmt"
	"path"
	"strings"

	"github.com/vmctl/vmctl/config"
)

// oldVirtiofsd is the directory of the virtiofsd that came with QEMU until 7.2,
// which has other options than the one of today.
const oldVirtiofsd = "/usr/lib/qemu"

// Virtiofsd is what serves a shared directory to a machine, or what is in its way.
func (h Host) Virtiofsd(m *config.Machine, s config.Share, paths config.Paths) (Sidecar, []config.Problem) {
	if why := paths.Unshareable(s.Path); why != "" {
		return Sidecar{}, []config.Problem{m.Problem(s.Key()+".path", "want a directory that a guest may have, got %q, which %s", s.Path, why)}
	}
	program := h.Programs["virtiofsd"]
	if key, why := beyondVirtiofsd(program, s, paths.User); why != "" {
		return Sidecar{}, []config.Problem{m.Problem(key, "%s", why)}
	}
	return Sidecar{
		Unit: config.ShareUnit(m.Name, s.Name), Key: s.Key(), Name: "virtiofsd",
		Argv: virtiofsdArgv(program, s, paths.User), Share: s.Path, Write: !s.Readonly, User: s.User,
	}, nil
}

// beyondVirtiofsd is what of a share the host's virtiofsd cannot do, by its key, ""
// for nothing.
func beyondVirtiofsd(program string, s config.Share, user bool) (key, why string) {
	old := path.Dir(program) == oldVirtiofsd
	mapped := len(s.UIDMap)+len(s.GIDMap) > 0
	switch {
	case user && mapped:
		return s.Key(), "uid_map and gid_map are not supported for machines of a user, who is the only one there"
	case program == "":
		return s.Key(), "virtiofsd, which serves directories, was not found on this host; install it (Debian: virtiofsd)"
	case old && len(s.UIDMap) > 0:
		return s.Key() + ".uid_map", "not supported by the virtiofsd of this host, " + program
	case old && len(s.GIDMap) > 0:
		return s.Key() + ".gid_map", "not supported by the virtiofsd of this host, " + program
	case old && user:
		return s.Key(), "want a virtiofsd that runs without privileges: that of this host, " + program + ", does not"
	case old && s.User != "":
		return s.Key() + ".user", "not supported by the virtiofsd of this host, " + program
	}
	return "", ""
}

// virtiofsdArgv is its command line. Its own sandbox is the unit's, which is closer:
// it takes privileges to make one.
func virtiofsdArgv(program string, s config.Share, user bool) []string {
	dir := SharedDir
	if user {
		dir = s.Path
	}
	if path.Dir(program) == oldVirtiofsd {
		cache := s.Cache
		if cache == "never" {
			cache = "none"
		}
		return []string{program, "-f", "--fd=" + SocketArg, "-o", "source=" + dir, "-o", "cache=" + cache,
			"-o", "sandbox=chroot", "-o", "modcaps=-mknod:-setfcap", "--rlimit-nofile=0"}
	}
	argv := []string{program, "--fd=" + SocketArg, "--shared-dir=" + dir, "--cache=" + s.Cache,
		"--sandbox=none", "--modcaps=-mknod:-setfcap", "--rlimit-nofile=0", "--log-level=warn"}
	if s.User != "" || user {
		// Who may be but one user cannot do anything as the others.
		argv = append(argv, "--translate-uid=squash-guest:0:"+UIDArg+":4294967295",
			"--translate-gid=squash-guest:0:"+GIDArg+":4294967295")
	}
	argv = append(argv, translations("--translate-uid", s.UIDMap)...)
	argv = append(argv, translations("--translate-gid", s.GIDMap)...)
	if user && s.Readonly {
		argv = append(argv, "--readonly") // where it has no mounts of its own
	}
	return argv
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
		add("squash-host:%d:%d:%d", g.First, Nobody, g.Count)
	}
	return all
}

// SWTPM is the TPM 2.0 of a machine, or what is in its way. options are those of
// swtpm that depend on the hypervisor.
func (h Host) SWTPM(m *config.Machine, paths config.Paths, options ...string) (Sidecar, []config.Problem) {
	problem := func(format string, args ...any) (Sidecar, []config.Problem) {
		return Sidecar{}, []config.Problem{m.Problem("tpm.enabled", format, args...)}
	}
	program := h.Programs["swtpm"]
	switch {
	case program == "":
		return problem("swtpm, which is the TPM, was not found on this host; install it (Debian: swtpm)")
	case strings.ContainsRune(paths.State, ','):
		return problem("want a directory for the machines' state without commas, got %q", paths.State)
	}
	argv := append([]string{program, "socket", "--tpm2"}, options...)
	argv = append(argv, "--tpmstate", "dir="+paths.TPM(m.Name)+",mode=0600", "--ctrl", "type=unixio,fd="+SocketArg)
	return Sidecar{Unit: config.TPMUnit(m.Name), Key: "tpm", Name: "swtpm", Argv: argv, State: paths.TPMState(m.Name)}, nil
}

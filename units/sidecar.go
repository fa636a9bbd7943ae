package units

import (
	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// sidecar is what systemd has to be told about a process beside the machine's
// hypervisor, beyond the packaged template, which holds its sandbox. The machine
// starts it (vmctl-unit prepare), and it goes when the machine does.
func sidecar(vm config.VM, s hypervisor.Sidecar, env Env) (File, []config.Problem) {
	return (&dropIn{vm: vm, env: env}).sidecar(s)
}

// PluggedSidecar is what systemd has to be told about a process beside the machine's
// hypervisor that was plugged into m while it runs, and that its definition need not
// have. The file is for a directory (config.Paths.DropInDir) that no reload empties. It
// is pure.
func PluggedSidecar(m *config.Machine, s hypervisor.Sidecar, env Env) (File, []config.Problem) {
	return (&dropIn{vm: config.VM{Name: m.Name, Machine: m}, env: env, plugged: true}).sidecar(s)
}

func (d *dropIn) sidecar(s hypervisor.Sidecar) (File, []config.Problem) {
	vm, env := d.vm, d.env
	what := "TPM"
	switch {
	case s.Share != "":
		what = "Directory " + s.Share
	case s.Card != "":
		what = "User-mode network of card " + s.Card
	}
	d.begin(legible(what+" of virtual machine "+vm.Name, maxTitle))
	if s.Card == "" && !s.Reconnects {
		d.put("BindsTo", config.Unit(vm.Name))
	} else {
		// It may be started again, which would start the machine with BindsTo=.
		d.put("PartOf", config.Unit(vm.Name))
	}
	d.put("Before", config.Unit(vm.Name)) // and so it ends after it

	if s.Share != "" {
		v, err := path(s.Share)
		d.set(s.Key+".path", "RequiresMountsFor", v, err)
	}
	if s.Reconnects {
		// A guest that reboots needs another each time; one that cannot be started is
		// given up.
		d.put("StartLimitIntervalSec", "3min")
		d.put("StartLimitBurst", "20")
	}
	d.section("Service")
	if (s.State != "" || s.Card != "") && !env.Paths.User {
		d.put("User", User(vm.Name))
	}
	if s.State != "" && !env.Paths.User {
		d.bind("", env.Paths.TPM(vm.Name), true)
	}
	begin := d.helper("serve") + " " + s.Unit
	if s.Card != "" {
		begin = d.helper("join") + " " + env.Paths.SidecarSocket(s.Unit)
	}
	if s.User != "" {
		begin += " --as " + s.User
	}
	if s.Card != "" {
		d.put("ExecCondition", "")
		d.put("ExecCondition", d.privileged("wanted")+" "+s.Unit)
	}
	if s.Reconnects {
		d.put("ExecCondition", d.privileged("wanted"))
		d.put("Restart", "always")
		d.put("RestartSec", "500ms")
	}
	d.command(begin+" --", s.Argv)
	d.put("ExecStopPost", "-"+d.privileged("lost")+" "+s.Unit)
	if s.Share != "" && !env.Paths.User {
		d.sharedDir(s)
	}
	if s.LowPorts && !env.Paths.User {
		// A capability of the host's own network is none of a user namespace.
		d.put("PrivateUsers", "no")
		d.put("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE")
		d.put("AmbientCapabilities", "CAP_NET_BIND_SERVICE")
	}
	return File{Name: DropInOf(s.Unit), Text: d.String()}, d.problems
}

// sharedDir shows the process the directory that it serves, and no other.
func (d *dropIn) sharedDir(s hypervisor.Sidecar) {
	if bindable(s.Share) != s.Share {
		d.refuse(s.Key+".path", "want a directory without quotes in its path, got %q", s.Share)
		return
	}
	name := "BindReadOnlyPaths"
	if s.Write {
		name = "BindPaths"
	}
	// Where it has vanished, whoever says so is to be executed all the same.
	v, err := path("-" + s.Share)
	d.set(s.Key+".path", name, v+":"+hypervisor.SharedDir, err)
}

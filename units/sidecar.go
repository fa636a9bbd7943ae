package units

import (
	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// sidecar is what systemd has to be told about a process beside the machine's
// hypervisor, beyond the packaged template, which holds its sandbox. The machine
// starts it (vmctl-unit prepare), and it goes when the machine does.
func sidecar(vm config.VM, s hypervisor.Sidecar, env Env) (File, []config.Problem) {
	d := &dropIn{vm: vm, env: env}
	what := "TPM"
	if s.Share != "" {
		what = "Directory " + s.Share
	}
	d.begin(legible(what+" of virtual machine "+vm.Name, maxTitle))
	d.put("BindsTo", config.Unit(vm.Name))
	d.put("Before", config.Unit(vm.Name)) // and so it ends after it

	if s.Share != "" {
		v, err := path(s.Share)
		d.set(s.Key+".path", "RequiresMountsFor", v, err)
	}
	d.section("Service")
	if s.State != "" && !env.Paths.User {
		d.put("User", User(vm.Name))
		d.bind("", env.Paths.TPM(vm.Name), true)
	}
	serve := d.helper("serve") + " " + s.Unit
	if s.User != "" {
		serve += " --as " + s.User
	}
	d.command(serve+" --", s.Argv)
	d.put("ExecStopPost", "-"+d.privileged("lost")+" "+s.Unit)
	if s.Share != "" && !env.Paths.User {
		d.sharedDir(s)
	}
	return File{Name: s.Unit + ".d/50-vmctl.conf", Text: d.String()}, d.problems
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
	v, err := path(s.Share)
	d.set(s.Key+".path", name, v+":"+hypervisor.SharedDir, err)
}

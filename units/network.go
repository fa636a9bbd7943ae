package units

import (
	"cmp"

	"github.com/vmctl/vmctl/config"
)

// RenderNetwork returns what systemd has to be told about a network beyond the
// packaged template, which does all that is the same for each. One with problems
// refuses to start, and says why. It is pure.
func RenderNetwork(n config.NetworkFile, env Env) []File {
	d := &dropIn{vm: config.VM{Name: n.Name, File: n.File}, env: env}
	// A path that cannot be written is not worth losing the network.
	if writable(n.File) != nil {
		d.vm.File = ""
	}
	name := DropInOf(config.NetworkUnit(n.Name))
	if len(n.Problems) > 0 {
		problems := describe(n.Problems)
		d.begin(legible("network "+n.Name+": invalid definition: "+problems[0], maxTitle))
		d.section("Service")
		d.put("Restart", "no") // the same would be wrong again
		return []File{{Name: name, Text: d.String()}}
	}
	d.begin(legible(cmp.Or(n.Network.Description, "Network "+n.Name+" of virtual machines"), maxTitle))
	if !n.Network.DHCP || n.Network.Bridge != "" {
		// Nothing has to run for it.
		d.section("Service")
		d.put("Type", "oneshot")
		d.put("RemainAfterExit", "yes")
		d.put("ExecStart", "")
		d.put("ExecStart", "true")
		d.put("Restart", "no")
	}
	files := []File{{Name: name, Text: d.String()}}
	if n.Network.Autostart {
		files = append(files, File{Name: "multi-user.target.wants/" + config.NetworkUnit(n.Name), Link: "/usr/lib/systemd/system/vm-network@.service"})
	}
	return files
}

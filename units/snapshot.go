package units

import "github.com/vmctl/vmctl/config"

// timersTarget is what starts timers with the host.
const timersTarget = "timers.target"

// snapshotTimer is the timer that takes snapshots of a machine by its schedule,
// and the link that starts it with the host.
func snapshotTimer(vm config.VM, env Env) (timer, link File, problems []config.Problem) {
	d := &dropIn{vm: vm, env: env}
	d.begin("Snapshots of virtual machine " + vm.Name)
	d.put("Documentation", "man:vmctl(1)")
	d.section("Timer")
	v, err := raw(vm.Machine.Snapshots.Schedule)
	d.set("snapshots.schedule", "OnCalendar", v, err)
	d.put("Persistent", "yes") // what was missed while the host was off is made up for
	name := config.SnapshotTimer(vm.Name)
	return File{Name: name, Text: d.String()}, File{Name: timersTarget + ".wants/" + name, Link: "../" + name}, d.problems
}

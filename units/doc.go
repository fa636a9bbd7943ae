// Package units knows what systemd has to be told about a machine: the drop-in
// for its unit, the links that start it with the host, and the syntax of both.
//
// The unit template itself is packaged (packaging/systemd/vm@.service): it
// holds what must survive a broken or deleted definition. How a hypervisor is
// run it takes from the plan; talking to systemd it leaves to units/bus.
package units

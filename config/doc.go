// Package config knows what a definition says: the TOML schema, where files
// are looked for, how drop-ins and templates merge, and what is wrong with
// them, by file, line and key. It knows every path and name of vmctl.
//
// It knows nothing of hypervisors, units, networks' making or the host's
// state: whether a file named in a definition exists is not its business, nor
// what a hypervisor can do.
//
// A definition is read in this order: each file by the TOML library into a
// tree that keeps the order of its keys (read.go, merge.go); the trees of
// templates, main file, drop-ins for all machines and drop-ins of this one,
// merged (load.go); that tree decoded into a [Machine] by its struct tags
// (schema.go, decode.go); defaults that depend on other keys, and checks of the
// whole (check.go); checks between machines (cross.go). Lines are looked up
// only where there is a problem (position.go).
package config

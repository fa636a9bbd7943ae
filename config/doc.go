// Package config knows what a definition says: the TOML schema, where files
// are looked for, how drop-ins and templates merge, and what is wrong with
// them, by file, line and key. It knows every path and name of vmctl.
//
// It knows nothing of hypervisors, units, networks' making or the host's
// state: whether a file named in a definition exists is not its business.
package config

package config

// VM is one definition as it was found: the machine, or what is wrong with it.
type VM struct {
	Name     string
	File     string    // main file: the one with the highest precedence
	Machine  *Machine  // nil where there are problems
	Problems []Problem // in file order
}

// Set is every definition of a host.
type Set struct {
	VMs      []VM      // by name
	Networks []string  // names of the networks that are defined, sorted
	Problems []Problem // of files that belong to no machine: settings, bad file names
}

// origin knows where each key of a machine was written.
type origin struct{}

// Problem makes a problem of this machine, with the file and line where key
// (dotted) was written; a key that was not written gets the line of the
// nearest table above it that was, or the main file without a line.
func (m *Machine) Problem(key, format string, args ...any) Problem { panic("not written") }

// Load reads every definition, and checks each and all together.
func Load(p Paths) (*Set, error) { panic("not written") }

// LoadVM reads one definition, without the checks that concern other
// machines. The error is fs.ErrNotExist where no such definition exists.
func LoadVM(p Paths, name string) (VM, error) { panic("not written") }

// LoadFile reads one file as a definition of its own, wherever it lies; the
// machine is named after it. For vmctl check FILE.
func LoadFile(p Paths, file string) VM { panic("not written") }

// Redacted returns a copy of m in which every value that the schema calls
// secret, and the value of every credential, is replaced by "***" (an empty
// one stays empty; a [Text] that names a file stays).
func (m *Machine) Redacted() *Machine { panic("not written") }

package config

import (
	"strings"
	"testing"
)

// What a person writes does not hold where vmctl has set it otherwise before: that
// is told, of what was written after it alone.
func TestOverridden(t *testing.T) {
	p := hostPaths(t)
	main := Definition(p.VMDirs[1], "web")
	kept, own := main+".d/95-set.toml", main+".d/50-own.toml"
	write(t, main, "cpus = 2\nmemory = \"1G\"\n[disk.data]\nsize = \"8M\"\n")
	write(t, own, "description = \"mine\"\n")
	writeLater(t, kept, DropInMark+"set\n\ncpus = 3\ndescription = \"set\"\n[disk.data]\niops = 5\n", own)
	told := func() string {
		t.Helper()
		vm, err := LoadVM(p, "web")
		if err != nil || len(vm.Problems) > 0 || vm.Machine.CPUs != 3 {
			t.Fatal(err, vm)
		}
		var keys []string
		for _, p := range vm.Overridden {
			keys = append(keys, strings.ReplaceAll(p.Error(), main, "web.toml"))
		}
		return strings.Join(keys, "\n")
	}
	if got := told(); got != "" {
		t.Errorf("set after it was written: got %s", got)
	}
	writeLater(t, main, "memory = \"1G\"\ncpus = 4\n[disk.data]\nsize = \"8M\"\n", kept)
	if got, want := told(), "web.toml:2: cpus: does not hold, since vmctl has set it otherwise in web.toml.d/95-set.toml:3, which comes after this file"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	writeLater(t, own, "description = \"by hand\"\n", kept)
	writeLater(t, main, "cpus = 3\n[disk.data]\nsize = \"8M\"\n", kept)
	if got, want := told(), "web.toml.d/50-own.toml:1: description: does not hold"; !strings.HasPrefix(got, want) || strings.Contains(got, "cpus") {
		t.Errorf("got %s, want %s", got, want)
	}
}

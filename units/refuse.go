package units

import (
	"fmt"
	"strings"

	"github.com/vmctl/vmctl/config"
)

// How much of the problems an error drop-in carries: enough to mend the file,
// little enough for systemctl status.
const (
	maxProblems = 20
	maxProblem  = 400 // bytes
	maxTitle    = 200 // bytes
)

// RenderError returns what systemd has to be told about a machine whose
// definition has problems: starting it fails, and says why, where people
// look. How a running one is stopped stays as the template says. It is pure,
// and never fails.
func RenderError(vm config.VM, env Env) []File {
	d := &dropIn{vm: vm, env: env}
	problems := describe(vm.Problems)
	title := vm.Name + ": invalid definition"
	if len(problems) > 0 {
		title += ": " + problems[0]
	}
	// A path that cannot be written is not worth losing the message.
	if writable(vm.File) != nil {
		d.vm.File = ""
	}
	d.begin(legible(title, maxTitle))

	d.section("Service")
	if !env.Paths.User {
		d.put("User", User(vm.Name))
	}
	d.put("ExecStartPre", "")
	d.put("ExecStart", "")
	var words strings.Builder
	for _, p := range problems {
		// What legible returns can always be quoted.
		word, _ := argument(p)
		words.WriteString(" \\\n    " + word)
	}
	d.put("ExecStart", d.helper("refuse")+words.String())
	d.put("ExecStartPost", "")

	files := []File{d.file()}
	// A machine that was to start with the host fails visibly then.
	if vm.Autostart {
		files = append(files, autostart(vm.Name, env))
	}
	return files
}

// describe puts each problem in one line.
func describe(problems []config.Problem) []string {
	var lines []string
	for i, p := range problems {
		if i == maxProblems {
			return append(lines, fmt.Sprintf("and %d more", len(problems)-i))
		}
		lines = append(lines, legible(p.Error(), maxProblem))
	}
	return lines
}

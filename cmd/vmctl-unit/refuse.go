package main

import (
	"fmt"
	"syscall"
)

// refusal is why a machine cannot start, which starting it again does not
// change.
type refusal struct{ problems []string }

func (r refusal) Error() string { return fmt.Sprint(r.problems) }

// refuse prints problems, where systemctl status and the journal show them,
// and returns the exit status that is not followed by a restart.
func (a app) refuse(problems []string) int {
	if len(problems) == 0 {
		// What the packaged template says by itself.
		problems = []string{fmt.Sprintf("no valid definition of %s: see vmctl check %s; after a change of its file run systemctl daemon-reload", a.vm, a.vm)}
	}
	for _, p := range problems {
		a.say(3, "%s", p)
	}
	more := ""
	if len(problems) > 1 {
		more = fmt.Sprintf(" (and %d more)", len(problems)-1)
	}
	a.notify(fmt.Sprintf("STATUS=%s%s\nERRNO=%d", oneLine(problems[0]), more, syscall.EINVAL))
	return exitConfig
}

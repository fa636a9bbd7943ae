package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"unicode"

	"golang.org/x/term"

	"github.com/vmctl/vmctl/config"
)

// The rules of the user interface:
//
//   - What was asked for goes to stdout: a table or lines for people, or with
//     -o json one JSON value with stable field names. Nothing else does.
//   - Everything else goes to stderr. An error begins with "vmctl: ", is lower
//     case without a full stop, says what, which and why; a line below it says
//     what to type next where that helps. With -o json it is JSON too.
//   - What changes something says so in one line, once it is done, unless JSON
//     was asked for. Several names at once: one line each, as each is done.
//   - A question is asked only where stdin and stderr are a terminal. Elsewhere
//     the answer is no, and the error names the flag that says yes.
//   - Progress is shown where stderr is a terminal, and leaves no trace. Where it
//     is none, what may take minutes prints a line now and then.
//   - No colour: these lines end up in logs and other programs.

// ui is the only way out to people.
type ui struct {
	in     *os.File
	out    io.Writer
	err    io.Writer
	format format

	mu    sync.Mutex // several machines report at once
	drawn bool       // a line of drawLine is on the terminal
}

// printf writes to stdout, unless JSON was asked for.
func (u *ui) printf(text string, args ...any) {
	if u.format == jsonFormat {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	fmt.Fprint(u.out, harmless(fmt.Sprintf(text, args...))+"\n")
}

// notef prints a line of progress, where there is no terminal.
func (u *ui) notef(text string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	fmt.Fprint(u.err, harmless(fmt.Sprintf("vmctl: "+text, args...))+"\n")
}

// warnf tells people of something that did not stop the work.
func (u *ui) warnf(text string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	fmt.Fprint(u.err, harmless(fmt.Sprintf("vmctl: warning: "+text, args...))+"\n")
}

// tellProgress tells a program that reads JSON, in a line of its own, how far something
// is that it is going to be told the result of.
func (u *ui) tellProgress(v any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	// Who does not read it any more learns of the result alone.
	_ = json.NewEncoder(u.err).Encode(struct {
		Progress any `json:"progress"`
	}{v})
}

// fail prints err, with its hint, and returns the exit status. An error that
// was already told in full prints nothing, but in JSON.
func (u *ui) fail(err error) int {
	status := exitStatus(err)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.format == jsonFormat {
		writeJSON(u.err, struct {
			Error errorJSON `json:"error"`
		}{newErrorJSON(err)})
		return status
	}
	if _, told := errors.AsType[*statusError](err); !told {
		u.printError(err)
	}
	return status
}

// errorf prints the error of one of several names.
func (u *ui) errorf(err error) {
	if u.format == jsonFormat {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.printError(err)
}

// printError writes err and its hint; u.mu is held.
func (u *ui) printError(err error) {
	if e, ok := errors.AsType[*invalidError](err); ok {
		for _, p := range e.Problems {
			fmt.Fprintf(u.err, "vmctl: %s\n", harmless(p.Error()))
		}
	} else {
		fmt.Fprintf(u.err, "vmctl: %s\n", harmless(err.Error()))
	}
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(u.err, "       %s\n", strings.ReplaceAll(harmless(hint), "\n", "\n       "))
	}
}

// harmless is a text without what terminals take for a command: guests, whose
// errors and paths are in it, and other hosts may say anything.
func harmless(text string) string {
	bad := func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }
	if !strings.ContainsFunc(text, bad) {
		return text
	}
	return strings.Map(func(r rune) rune {
		if bad(r) {
			return ' '
		}
		return r
	}, text)
}

// errorJSON is an error with -o json.
type errorJSON struct {
	Message  string           `json:"message"`
	Status   int              `json:"status"` // exit status
	Hint     string           `json:"hint,omitempty"`
	State    state            `json:"state,omitempty"`    // that it was not possible in
	Problems []config.Problem `json:"problems,omitempty"` // of the definition
}

func newErrorJSON(err error) errorJSON {
	e := errorJSON{Message: err.Error(), Status: exitStatus(err), Hint: hintOf(err)}
	if t, ok := errors.AsType[*transitionError](err); ok {
		e.State = t.From
	}
	if i, ok := errors.AsType[*invalidError](err); ok {
		e.Problems = i.Problems
	}
	return e
}

// interactive says whether a person can be asked.
func (u *ui) interactive() bool {
	return u.format == textFormat && isTerminal(u.in) && isTerminal(u.err)
}

// confirm asks a yes-or-no question; flag is what says yes where nobody can be
// asked.
func (u *ui) confirm(question, flag string) error {
	if !u.interactive() {
		return usageError{fmt.Errorf("%s: want %s where nobody can be asked", question, flag)}
	}
	fmt.Fprintf(u.err, "%s? [y/N] ", question)
	var answer string
	// An empty line is an error of Fscanln, and a no.
	_, _ = fmt.Fscanln(u.in, &answer)
	if answer != "y" && answer != "yes" {
		return errors.New("not done")
	}
	return nil
}

// isTerminal says whether w is a terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// writeJSON writes one JSON value for a program to read.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// drawLine shows a line that is going to be replaced; it is cut so that it
// stays one.
func (u *ui) drawLine(line string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	const width = 78
	u.drawn = true
	fmt.Fprintf(u.err, "\r\x1b[K%.*s", width, line)
}

// clearLine removes what drawLine has shown.
func (u *ui) clearLine() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.drawn {
		u.drawn = false
		fmt.Fprint(u.err, "\r\x1b[K")
	}
}

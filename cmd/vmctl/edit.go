package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// opEdit is for messages: no state refuses it.
const opEdit transition = "edit"

func newEditCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "edit NAME",
		Short: "Change the definition of a VM with an editor",
		Long: `Change the definition of a VM with $VISUAL, $EDITOR or vi: a copy of it, which is
checked and takes the definition's place once it is right. Of a definition in
/usr/lib the copy goes to /etc/vmctl/vms, where it goes before it. What runs goes
on as it was started.`,
		Example: `  vmctl edit web
  EDITOR=nano vmctl edit web`,
		GroupID:           groupDefine,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE:              func(cmd *cobra.Command, args []string) error { return runEdit(cmd.Context(), a, args[0]) },
	}
}

func runEdit(ctx context.Context, a *app, name string) error {
	vm, err := a.find(name)
	if err != nil {
		return err
	}
	if a.ui.format == jsonFormat || !isTerminal(a.ui.in) {
		return usageError{errors.New("want a terminal for the editor")}
	}
	// A link stays one.
	from, err := filepath.EvalSymlinks(vm.File)
	if err != nil {
		return err
	}
	e := edit{app: a, name: name, from: from, to: from, as: vm.File}
	if strings.HasPrefix(vm.File, a.paths.Root+"/usr/") || strings.HasPrefix(from, a.paths.Root+"/usr/") {
		e.to = config.Definition(a.etcDir(), name)
		e.as = e.to
	}
	if err := unix.Access(filepath.Dir(e.to), unix.W_OK); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "write to", Path: filepath.Dir(e.to), Err: err}
	}
	begun := time.Now()
	err = e.run(ctx)
	a.note(string(opEdit), "", name, begun, err)
	if err != nil {
		return inName(string(opEdit), name, err)
	}
	return nil
}

// edit is one change of a definition.
type edit struct {
	*app
	name string
	from string // what is edited
	to   string // what is written
	as   string // by what name it is read
	text []byte // of from, before
}

// run has a copy edited until it is right or given up.
func (e edit) run(ctx context.Context) error {
	var err error
	if e.text, err = os.ReadFile(e.from); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "vmctl-edit-")
	if err != nil {
		return err
	}
	copied := filepath.Join(dir, e.name+".toml")
	if err := os.WriteFile(copied, e.text, 0o600); err != nil {
		return err
	}
	err = e.until(ctx, copied)
	if kept, ok := errors.AsType[*keptError](err); ok {
		return withHint(kept.error, "what you wrote is kept in "+copied)
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// keptError is an end of an edit by which nothing that was written is lost.
type keptError struct{ error }

func (e *keptError) Unwrap() error { return e.error }

// until edits the copy until it is right, or nobody wants to go on.
func (e edit) until(ctx context.Context, copied string) error {
	for {
		if err := e.editor(ctx, copied); err != nil {
			return &keptError{err}
		}
		text, err := os.ReadFile(copied)
		if err != nil {
			return err
		}
		if bytes.Equal(text, e.text) {
			e.ui.printf("%s: not changed", e.name)
			return nil
		}
		p := e.plan(config.Try(e.paths, e.as, string(text)), e.probe())
		if len(p.Problems) == 0 {
			return e.replace(text)
		}
		problem := &invalidError{p.Problems}
		e.ui.errorf(problem)
		if !e.ui.again("edit it again") {
			return &keptError{&statusedError{errors.New("not changed: the definition is invalid"), exitInvalid}}
		}
	}
}

// editor runs the person's editor, which may have arguments of its own.
func (e edit) editor(ctx context.Context, file string) error {
	editor := cmp.Or(os.Getenv("VISUAL"), os.Getenv("EDITOR"), "vi")
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", editor+` "$1"`, "sh", file)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = e.ui.in, e.ui.out, e.ui.err
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("editor %s: %v", editor, err)
	}
	return nil
}

// replace puts the text in the definition's place, unless another has been
// there meanwhile. Owner and mode stay.
func (e edit) replace(text []byte) error {
	now, err := os.ReadFile(e.from)
	if err != nil || !bytes.Equal(now, e.text) {
		return &keptError{&stateError{fmt.Errorf("%s has changed meanwhile", e.from)}}
	}
	info, err := os.Stat(e.from)
	if err != nil {
		return &keptError{err}
	}
	if err := os.MkdirAll(filepath.Dir(e.to), 0o755); err != nil {
		return &keptError{err}
	}
	if e.to != e.from {
		err = access.CreateFile(e.to, text, info.Mode().Perm(), true)
	} else {
		err = access.ReplaceFile(e.to, text, info)
	}
	if err != nil {
		return &keptError{err}
	}
	e.ui.printf("%s: changed %s", e.name, e.to)
	if vm, err := config.LoadVM(e.paths, e.name); err == nil { // else it is no machine's
		e.tellOverridden(vm)
	}
	return nil
}

// again asks whether to go on; without an answer it is yes.
func (u *ui) again(question string) bool {
	fmt.Fprintf(u.err, "%s? [Y/n] ", question)
	answer, err := bufio.NewReader(u.in).ReadString('\n')
	answer = strings.TrimSpace(answer)
	return err == nil && (answer == "" || answer == "y" || answer == "yes")
}

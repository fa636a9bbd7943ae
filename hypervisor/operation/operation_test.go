package operation

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
)

func TestLock(t *testing.T) {
	paths := config.SystemPaths(t.TempDir())
	_, unlock, err := Lock(paths, "web", "a backup")
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = Lock(paths, "web", "a snapshot")
	if e, ok := errors.AsType[*Error](err); !ok || e.Status != WrongState || !strings.HasPrefix(e.Text, "a backup, process ") {
		t.Errorf("while it is locked: %v", err)
	}
	if _, other, err := Lock(paths, "db", "a snapshot"); err != nil {
		t.Errorf("another machine: %v", err)
	} else {
		other()
	}
	unlock()
	_, unlock, err = Lock(paths, "web", "a snapshot")
	if err != nil {
		t.Fatalf("once it is unlocked: %v", err)
	}
	unlock()
}

func TestOperation(t *testing.T) {
	paths := config.SystemPaths(t.TempDir())
	if r, err := Unfinished(paths, "web"); r != nil || err != nil {
		t.Errorf("before: %v, %v", r, err)
	}
	o, err := Begin(paths, "web", "snapshot create", "first")
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Note("second"); err != nil {
		t.Fatal(err)
	}
	r, err := Unfinished(paths, "web")
	if err != nil || r == nil || r.Kind != "snapshot create" || string(r.Detail) != `"second"` {
		t.Errorf("under way: %+v, %v", r, err)
	}
	if _, err := Begin(paths, "web", "backup", nil); err == nil {
		t.Error("a second one has begun before the first was mended")
	}
	if _, err := Replace(paths, "web", "backup", nil); err == nil {
		t.Error("a backup does not do what a snapshot has left")
	}
	if o, err = Replace(paths, "web", "snapshot create", "third"); err != nil {
		t.Fatal(err)
	}
	if r, err := Unfinished(paths, "web"); err != nil || r == nil || string(r.Detail) != `"third"` {
		t.Errorf("replaced: %+v, %v", r, err)
	}
	if err := o.End(); err != nil {
		t.Fatal(err)
	}
	if r, err := Unfinished(paths, "web"); r != nil || err != nil {
		t.Errorf("after: %v, %v", r, err)
	}
}

func TestReport(t *testing.T) {
	var b bytes.Buffer
	r := NewReporter(&b)
	r.Progress(Progress{Phase: "copying", Done: 1, Total: 2})
	r.Warn("no agent")
	b.WriteString("what a program printed\n")
	r.End(map[string]int{"bytes": 7}, nil)
	var seen []string
	var result struct{ Bytes int }
	follow := func() error {
		return Follow(&b, func(p Progress) { seen = append(seen, p.Phase) }, func(w string) { seen = append(seen, w) }, &result)
	}
	if err := follow(); err != nil || result.Bytes != 7 || strings.Join(seen, ",") != "copying,no agent" {
		t.Errorf("got %v, %+v, %v", err, result, seen)
	}
	r.End(nil, &Error{Status: NotFound, Text: "no snapshot is named x", Hint: "list"})
	if e, ok := errors.AsType[*Error](follow()); !ok || *e != (Error{NotFound, "no snapshot is named x", "list"}) {
		t.Errorf("got %+v", e)
	}
	r.Progress(Progress{Phase: "copying"})
	if err := follow(); !errors.Is(err, ErrCutOff) {
		t.Errorf("cut off: %v", err)
	}
}

// Who asked may stand still (Ctrl-Z): what is done goes on, and the end is told.
func TestReportToOneWhoStandsStill(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	r := NewReporter(write)
	for i := range int64(100000) {
		r.Progress(Progress{Phase: "copying", Done: i})
	}
	r.Warn("no agent")
	r.End(7, nil)
	write.Close()
	var result, seen, warned int
	err = Follow(read, func(Progress) { seen++ }, func(string) { warned++ }, &result)
	if err != nil || result != 7 || warned != 1 || seen == 0 {
		t.Errorf("got %v, %d, %d warnings, %d times how far it is", err, result, warned, seen)
	}
}

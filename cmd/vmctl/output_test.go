package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units/bus"
)

func TestWriteTable(t *testing.T) {
	var b strings.Builder
	err := writeTable(&b, [][]string{
		{"NAME", "STATE", "DESCRIPTION"},
		{"größe", "running", "of two\u00a0words"},
		{"b", "stopped", ""},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "NAME   STATE    DESCRIPTION\ngröße  running  of two\u00a0words\nb      stopped\n"
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
}

func TestSizeText(t *testing.T) {
	for bytes, want := range map[int64]string{
		0: "0B", 512: "512B", 1 << 10: "1K", 256 << 20: "256M", 3 << 29: "1.5G", 1 << 40: "1T", 1 << 62: "4096P",
	} {
		if got := sizeText(bytes); got != want {
			t.Errorf("%d: got %s, want %s", bytes, got, want)
		}
	}
}

func TestPrintableObeysNothing(t *testing.T) {
	if got, want := printable("a\x1b[31mb\nc\td é"), "a [31mb c d é"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestExitStatus(t *testing.T) {
	tests := []struct {
		err  error
		want int
	}{
		{errors.New("any"), 1},
		{usageError{errors.New("any")}, 2},
		{withHint(usageError{errors.New("any")}, "hint"), 2},
		{&notFoundError{Kind: "VM", Name: "web"}, 3},
		{fmt.Errorf("start web: %w", &transitionError{From: running}), 4},
		{fmt.Errorf("waiting: %w", context.DeadlineExceeded), 5},
		{withHint(&timeoutError{running}, "hint"), 5},
		{&invalidError{[]config.Problem{{Text: "any"}}}, 6},
		{fmt.Errorf("start: %w", bus.ErrNotPermitted), 7},
		{&fs.PathError{Op: "open", Path: "/x", Err: fs.ErrPermission}, 7},
		{worst([]error{nil, &notFoundError{}, &transitionError{}, errors.New("any")}), 4},
		{errors.Join(nil, &transitionError{}), 4},
	}
	for _, tt := range tests {
		if got := exitStatus(tt.err); got != tt.want {
			t.Errorf("%v: got %d, want %d", tt.err, got, tt.want)
		}
	}
	if err := worst([]error{nil, nil}); err != nil {
		t.Errorf("worst of none: got %v", err)
	}
}

// TestShellQuote: a shell reads back what was quoted (see also
// testdata/remote.txtar).
// Polkit lets people call systemd, not open sockets.
func TestHintOf(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("stop: %w", bus.ErrNotPermitted), "run it as root, or have an administrator allow it by polkit"},
		{fmt.Errorf("dial: %w", fs.ErrPermission), "run it as root"},
		{errors.New("other"), ""},
	} {
		if got := hintOf(tt.err); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.err, got, tt.want)
		}
	}
}

// One that runs without its definition cannot be restarted.
func TestShowRowsPending(t *testing.T) {
	for file, want := range map[string]string{"/etc/vmctl/vms/web.toml": "vmctl restart web", "": "vmctl stop web"} {
		s := shown{row: row{Name: "web", PendingChanges: true}, File: file}
		if got := fmt.Sprint(showRows(s)); !strings.Contains(got, want) {
			t.Errorf("file %q: got %s, want %q in it", file, got, want)
		}
	}
}

// What a guest says does nothing to the terminal.
func TestHarmless(t *testing.T) {
	var out, errs bytes.Buffer
	u := ui{out: &out, err: &errs, format: textFormat}
	hostile := "a\x1b]0;b\x07\r\u009bc\nd\xff\te"
	u.printf("%s: copied", hostile)
	u.warnf("%s", hostile)
	u.notef("%s", hostile)
	u.errorf(withHint(errors.New(hostile), hostile))
	u.fail(&invalidError{[]config.Problem{{Text: hostile}}})
	for _, got := range []string{out.String(), errs.String()} {
		if strings.ContainsAny(got, "\x1b\x07\r\u009b") || !strings.Contains(got, "a ]0;b   c\n") {
			t.Errorf("got %q", got)
		}
	}
}

func TestShellQuote(t *testing.T) {
	for s, want := range map[string]string{
		"":               `''`,
		"web-1.example":  `web-1.example`,
		"two words":      `'two words'`,
		"it's":           `'it'\''s'`,
		"$(reboot)`x`\n": "'$(reboot)`x`\n'",
		`a\`:             `'a'\\''`, // fish reads \' and \\ in quotes too
		"=ls":            `'=ls'`,   // which zsh looks up
		"~root":          `'~root'`,
		"a*b":            `'a*b'`,
	} {
		if got := shellQuote(s); got != want {
			t.Errorf("%q: got %s, want %s", s, got, want)
		}
	}
}

func TestJournalArgv(t *testing.T) {
	tests := []struct {
		user   bool
		format format
		opts   logsOptions
		want   string
	}{
		{false, textFormat, logsOptions{lines: -1}, "journalctl --unit=vm@web.service --unit=vm@db.service"},
		{true, textFormat, logsOptions{lines: 0, follow: true}, "journalctl --user-unit=vm@web.service --user-unit=vm@db.service --follow --lines=0"},
		{false, jsonFormat, logsOptions{lines: 5, since: "-1h", until: "now", console: true},
			"journalctl --unit=vm@web.service --unit=vm@db.service --lines=5 --since=-1h --until=now --output=json --all VMCTL_STREAM=console"},
	}
	for _, tt := range tests {
		got := strings.Join(journalArgv(tt.user, tt.format, tt.opts, []string{"web", "db"}), " ")
		if got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

package guestagent

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
)

// answers plays an agent that says one thing after the other.
func answers(t *testing.T, texts ...string) *Agent {
	return dial(t, func(conn net.Conn, lines *bufio.Scanner) {
		answer(conn, lines)
		for _, text := range texts {
			if !lines.Scan() {
				return
			}
			io.WriteString(conn, text+"\n")
		}
		silence(conn)
	})
}

func TestFreeze(t *testing.T) {
	a := answers(t, `{"return": 2}`, `{"return": "frozen"}`, `{"return": 2}`, `{"return": "thawed"}`)
	if n, err := a.Freeze(t.Context()); n != 2 || err != nil {
		t.Errorf("frozen: %d, %v", n, err)
	}
	if frozen, err := a.Frozen(t.Context()); !frozen || err != nil {
		t.Errorf("while frozen: %v, %v", frozen, err)
	}
	if err := a.Thaw(t.Context()); err != nil {
		t.Error(err)
	}
	if frozen, err := a.Frozen(t.Context()); frozen || err != nil {
		t.Errorf("once thawed: %v, %v", frozen, err)
	}
}

func TestFreezeByAHostileAgent(t *testing.T) {
	for text, want := range map[string]string{
		`{"return": -3}`:                      "want a number of file systems, got -3",
		`{"return": "all of them"}`:           "guest-fsfreeze-freeze: json:",
		`{"return": 99999999999999999999999}`: "guest-fsfreeze-freeze: json:",
		`{"error": {"class": "GenericError", "desc": "Device is busy"}}`: "guest agent: guest-fsfreeze-freeze: Device is busy",
		`[]`: "want an answer",
	} {
		if _, err := answers(t, text).Freeze(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
	a := answers(t) // takes the command, and says nothing
	if _, err := a.Freeze(soon(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

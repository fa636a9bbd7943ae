package guestagent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// guest is what plays the agent: it gets the lines that were sent.
type guest func(conn net.Conn, lines *bufio.Scanner)

// serve plays the agent for one connection and returns the socket.
func serve(t *testing.T, play guest) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		play(conn, bufio.NewScanner(conn))
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

// answer does what the agent does with guest-sync-delimited.
func answer(conn net.Conn, lines *bufio.Scanner) {
	lines.Scan()
	var request struct {
		Execute   string
		Arguments struct{ ID int64 }
	}
	text := strings.TrimPrefix(lines.Text(), "\xff")
	if json.Unmarshal([]byte(text), &request) == nil && request.Execute == "guest-sync-delimited" {
		fmt.Fprintf(conn, "\xff{\"return\": %d}\n", request.Arguments.ID)
	}
}

// forever sends text until the other side has gone.
func forever(conn net.Conn, text string) {
	for {
		if _, err := io.WriteString(conn, text); err != nil {
			return
		}
	}
}

// silence waits until the other side has gone.
func silence(conn net.Conn) { io.Copy(io.Discard, conn) }

func dial(t *testing.T, play guest) *Agent {
	t.Helper()
	a, err := Dial(t.Context(), serve(t, play))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestPing(t *testing.T) {
	a := dial(t, func(conn net.Conn, lines *bufio.Scanner) {
		// What others asked for, and did not wait for.
		io.WriteString(conn, "{\"return\": {}}\n\xff{\"return\": 1}\n{\"error\": {}}\n{\"ret")
		answer(conn, lines)
		for lines.Scan() {
			io.WriteString(conn, "{\"return\": {}}\n")
		}
	})
	for range 2 {
		if err := a.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDialOfWhatDoesNotAnswer(t *testing.T) {
	for name, test := range map[string]struct {
		play guest
		want string
	}{
		"nobody":          {func(_ net.Conn, l *bufio.Scanner) { l.Scan() }, "EOF"},
		"silence":         {func(c net.Conn, _ *bufio.Scanner) { silence(c) }, "context deadline exceeded"},
		"garbage":         {func(c net.Conn, _ *bufio.Scanner) { io.WriteString(c, "\xffhello\n\xff\xff[]\n\xff{}\n"); silence(c) }, "context deadline exceeded"},
		"another answer":  {func(c net.Conn, _ *bufio.Scanner) { io.WriteString(c, "\xff{\"return\": 1}\n"); silence(c) }, "context deadline exceeded"},
		"an endless line": {func(c net.Conn, _ *bufio.Scanner) { io.WriteString(c, "\xff"); forever(c, strings.Repeat("x", 1<<16)) }, "a message of more than 1048576 bytes"},
		"endless noise":   {func(c net.Conn, _ *bufio.Scanner) { forever(c, strings.Repeat("x", 1<<16)) }, "4194304 bytes without an answer"},
		"endless answers": {func(c net.Conn, _ *bufio.Scanner) { forever(c, strings.Repeat("\xff{\"return\": 1}\n", 1<<12)) }, "4194304 bytes without an answer"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := soon(t)
			if strings.HasPrefix(name, "endless") {
				ctx = t.Context()
			}
			a, err := Dial(ctx, serve(t, test.play))
			if err == nil {
				a.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want %q", err, test.want)
			}
		})
	}
	if _, err := Dial(t.Context(), t.TempDir()+"/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func TestCallOfAHostileAgent(t *testing.T) {
	for name, test := range map[string]struct {
		play func(conn net.Conn)
		want string
	}{
		"gone":            {func(net.Conn) {}, "guest agent: guest-ping: EOF"},
		"silence":         {silence, "guest agent: guest-ping: context deadline exceeded"},
		"garbage":         {func(c net.Conn) { io.WriteString(c, "\x1b[2Jhello\n"); silence(c) }, `guest agent: guest-ping: want an answer, got "\x1b[2Jhello\n"`},
		"no answer":       {func(c net.Conn) { io.WriteString(c, "{}\n"); silence(c) }, `guest agent: guest-ping: want an answer, got "{}\n"`},
		"refusal":         {func(c net.Conn) { io.WriteString(c, `{"error":{"class":"C","desc":"no"}}`+"\n"); silence(c) }, "guest agent: guest-ping: no"},
		"an endless line": {func(c net.Conn) { forever(c, strings.Repeat("x", 1<<16)) }, "guest agent: guest-ping: a message of more than 1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			a := dial(t, func(conn net.Conn, lines *bufio.Scanner) {
				answer(conn, lines)
				lines.Scan()
				test.play(conn)
			})
			ctx := t.Context()
			if name == "silence" {
				ctx = soon(t)
			}
			if err := a.Ping(ctx); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestShutdown(t *testing.T) {
	for name, test := range map[string]struct {
		play guest
		want string // "" for success
	}{
		"no answer":     {func(c net.Conn, _ *bufio.Scanner) { silence(c) }, ""},
		"the guest off": {func(net.Conn, *bufio.Scanner) {}, ""},
		"an answer":     {func(c net.Conn, _ *bufio.Scanner) { io.WriteString(c, "{\"return\": {}}\n"); silence(c) }, ""},
		"refused": {func(c net.Conn, _ *bufio.Scanner) {
			io.WriteString(c, `{"error":{"class":"GenericError","desc":"Command guest-shutdown has been disabled"}}`+"\n")
			silence(c)
		}, "guest agent: guest-shutdown: Command guest-shutdown has been disabled"},
	} {
		t.Run(name, func(t *testing.T) {
			var got string
			done := make(chan struct{})
			a := dial(t, func(conn net.Conn, lines *bufio.Scanner) {
				answer(conn, lines)
				lines.Scan()
				got = lines.Text()
				close(done)
				test.play(conn, lines)
			})
			err := a.Shutdown(t.Context())
			if (err == nil) != (test.want == "") || err != nil && err.Error() != test.want {
				t.Errorf("got %v, want %q", err, test.want)
			}
			<-done
			if want := `{"execute":"guest-shutdown","arguments":{"mode":"powerdown"}}`; got != want {
				t.Errorf("sent %s, want %s", got, want)
			}
		})
	}
}

func TestShutdownEndsWithItsContext(t *testing.T) {
	a := dial(t, func(conn net.Conn, lines *bufio.Scanner) { answer(conn, lines); silence(conn) })
	if err := a.Shutdown(soon(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

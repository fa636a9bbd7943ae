package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/console"
)

// playedAgent is a guest agent that answers, in a guest that has none.
type playedAgent struct {
	mu    sync.Mutex
	calls []agentCall
}

type agentCall struct {
	Execute   string
	Arguments struct {
		ID   int64
		Time int64 // nanoseconds since 1970
	}
}

// of are the calls of one command.
func (p *playedAgent) of(command string) []agentCall {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.calls), func(c agentCall) bool { return c.Execute != command })
}

func (p *playedAgent) serve(conn *net.UnixConn) {
	defer conn.Close()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		var call agentCall
		if json.Unmarshal(bytes.TrimLeft(lines.Bytes(), "\xff"), &call) != nil {
			continue
		}
		p.mu.Lock()
		p.calls = append(p.calls, call)
		p.mu.Unlock()
		if call.Execute == "guest-sync-delimited" {
			fmt.Fprintf(conn, "\xff{\"return\": %d}\n", call.Arguments.ID)
		} else {
			fmt.Fprintln(conn, `{"return": {}}`)
		}
	}
}

// playAgent has an agent answer, and the hypervisor say that one listens, until
// leave is called.
func (h host) playAgent() (p *playedAgent, leave func()) {
	h.Helper()
	p = &playedAgent{}
	agent := h.instead(h.paths.AgentSocket(h.vm), func(conn *net.UnixConn, _ string) { p.serve(conn) })
	job := h.instead(h.paths.JobSocket(h.vm), func(asker *net.UnixConn, behind string) {
		defer asker.Close()
		qmp, err := net.Dial("unix", behind)
		if err != nil {
			return
		}
		defer qmp.Close()
		go func() {
			for answers := bufio.NewReader(qmp); ; {
				line, err := answers.ReadString('\n')
				if err != nil {
					return
				}
				fmt.Fprint(asker, strings.ReplaceAll(line, `"frontend-open": false`, `"frontend-open": true`))
			}
		}()
		bufio.NewReader(asker).WriteTo(qmp)
	})
	return p, func() { agent(); job() }
}

// instead serves a socket in the place of who does, who is behind it, until back
// is called.
func (h host) instead(path string, serve func(conn *net.UnixConn, behind string)) (back func()) {
	h.Helper()
	behind := path + ".behind"
	if err := os.Rename(path, behind); err != nil {
		h.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		h.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			go serve(conn, behind)
		}
	}()
	return func() {
		h.Helper()
		if err := errors.Join(l.Close(), os.Rename(behind, path)); err != nil {
			h.Fatal(err)
		}
	}
}

// The clock of a guest has stood still while it was saved: its agent is told the
// time once it runs again, and not where it stays paused.
func TestClockAfterLoad(t *testing.T) {
	h := newHost(t)
	p := h.start()
	h.expect(h.attach(console.ModeFollow), "guest is up")
	for _, paused := range []bool{false, true} {
		if paused {
			h.control(func(ctx context.Context, c hypervisor.Control) error { return c.Pause(ctx) })
		}
		h.save(p)
		h.anotherRun()
		p = h.start()
		agent, leave := h.playAgent()
		before := time.Now()
		out := h.must(nil, "register", h.vm)
		told := agent.of("guest-set-time")
		leave()
		switch {
		case paused && len(told) != 0:
			t.Errorf("told %v while it is paused", told)
		case !paused && len(told) != 1:
			t.Errorf("told %v, want the time once: %s", told, out)
		case !paused:
			if at := time.Unix(0, told[0].Arguments.Time); at.Before(before) || at.After(time.Now()) {
				t.Errorf("told %s, want the time of now", at)
			}
		}
	}
}

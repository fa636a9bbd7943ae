//go:build e2e

package e2e

import (
	"context"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/console"
)

// screen is somebody who sits at a machine's console for as long as the test
// runs: reads everything, across restarts of the machine, and types.
type screen struct {
	t      testing.TB
	socket string
	stop   context.CancelFunc
	done   chan struct{}

	patience time.Duration // of expect

	mu   sync.Mutex
	text string   // everything that was read
	seen int      // how far expect has got in it
	conn net.Conn // nil while nothing runs
}

func newScreen(t testing.TB, vm string) *screen {
	ctx, cancel := context.WithCancel(context.Background())
	s := &screen{
		t:      t,
		socket: config.SystemPaths("").ConsoleSocket(vm),
		stop:   cancel,
		done:   make(chan struct{}),

		patience: patience,
	}
	go s.watch(ctx)
	return s
}

// watch reads the console whenever there is one. Each start of the machine has
// a console of its own, so that nothing is read twice.
func (s *screen) watch(ctx context.Context) {
	defer close(s.done)
	for ctx.Err() == nil {
		conn, err := console.Dial(ctx, s.socket, console.ModeAttach)
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		s.mu.Lock()
		s.conn = conn
		s.mu.Unlock()
		// It ends with the machine, and the next one comes by itself.
		console.Copy(ctx, conn, s)
		s.mu.Lock()
		s.conn = nil
		s.mu.Unlock()
		conn.Close()
	}
}

// Write takes what the guest writes.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text += strings.ReplaceAll(string(p), "\r", "")
	return len(p), nil
}

func (s *screen) close() {
	s.stop()
	<-s.done
}

// expect waits until the guest writes something that matches the regular
// expression, after what the last expect has found, and returns what its
// groups match.
func (s *screen) expect(pattern string) []string {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	var groups []string
	eventuallyIn(s.t, s.patience, "the console shows "+pattern, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		rest := s.text[s.seen:]
		found := re.FindStringSubmatchIndex(rest)
		if found == nil {
			return false
		}
		groups = re.FindStringSubmatch(rest)[1:]
		s.seen += found[1]
		return true
	})
	return groups
}

// typeLine types a line into the guest.
func (s *screen) typeLine(line string) {
	s.t.Helper()
	var conn net.Conn
	eventually(s.t, "the console can be typed to", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		conn = s.conn
		return conn != nil
	})
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		s.t.Fatalf("typing %q: %v", line, err)
	}
}

// shown is everything that the guest wrote so far.
func (s *screen) shown() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text
}

func (s *screen) lastLines(n int) string {
	lines := strings.Split(s.shown(), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

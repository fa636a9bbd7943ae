package console

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	maxLine = 2048 // bytes of a line that is logged; a longer one is split

	// flushAfter is when a line without an end is logged all the same: a
	// prompt, for example.
	flushAfter = 500 * time.Millisecond

	// A guest may log lineBurst lines at once, and lineRate per second in the
	// long run: more than a boot writes, and far less than fills a disk.
	lineBurst = 10000
	lineRate  = 100

	maxPending = 128 << 10 // bytes that wait for a slow log
)

// Lines turns a console's bytes into lines for a log: without carriage
// returns, escape sequences and other control characters, without empty lines.
type Lines struct {
	log  func(line string)
	wake chan struct{} // something is pending
	done chan struct{} // all was logged

	mu      sync.Mutex
	pending []byte
	lost    int // lines that did not fit into pending
	closed  bool
}

// NewLines starts to call log for each line, from one goroutine. log may be
// slow: what does not fit meanwhile is left out, counted, and the number
// logged.
func NewLines(log func(line string)) *Lines {
	l := &Lines{log: log, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go l.run()
	return l
}

// Write takes bytes of the console. It never waits and never fails.
func (l *Lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	if len(l.pending)+len(p) <= maxPending {
		l.pending = append(l.pending, p...)
	} else {
		l.lost += max(1, bytes.Count(p, []byte("\n")))
	}
	l.mu.Unlock()
	l.wakeUp()
	return len(p), nil
}

// Close logs what is left, and waits for that at most as long as given.
func (l *Lines) Close(wait time.Duration) {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.wakeUp()
	select {
	case <-l.done:
	case <-time.After(wait):
	}
}

func (l *Lines) wakeUp() {
	select {
	case l.wake <- struct{}{}:
	default: // it has been told already
	}
}

func (l *Lines) run() {
	defer close(l.done)
	limit := newLimiter(l.log, time.Now)
	var lines splitter
	var p []byte
	timer := time.NewTimer(flushAfter)
	for {
		select {
		case <-l.wake:
		case <-timer.C:
			lines.flush(limit.log)
			if limit.open() {
				limit.tell()
			}
			continue
		}
		l.mu.Lock()
		p, l.pending = l.pending, p[:0]
		lost, closed := l.lost, l.closed
		l.lost = 0
		l.mu.Unlock()

		lines.split(p, limit.log)
		limit.suppressed += lost
		if closed {
			lines.flush(limit.log)
			limit.tell()
			return
		}
		timer.Reset(flushAfter)
	}
}

// limiter passes lines on as long as there are not too many.
type limiter struct {
	to         func(line string)
	now        func() time.Time
	tokens     float64 // lines that may be logged at once
	filled     time.Time
	suppressed int
}

func newLimiter(to func(string), now func() time.Time) *limiter {
	return &limiter{to: to, now: now, tokens: lineBurst, filled: now()}
}

func (l *limiter) log(line string) {
	if !l.open() {
		l.suppressed++
		return
	}
	l.tell()
	l.tokens--
	l.to(line)
}

// open says whether a line may be logged. After too many, that is once there
// is room for a second's worth: else every other line were tell's.
func (l *limiter) open() bool {
	now := l.now()
	l.tokens = min(lineBurst, l.tokens+lineRate*now.Sub(l.filled).Seconds())
	l.filled = now
	return l.tokens >= lineRate || l.suppressed == 0 && l.tokens >= 1
}

// tell logs how many lines were not.
func (l *limiter) tell() {
	if l.suppressed == 0 {
		return
	}
	l.to(fmt.Sprintf("[vmctl: %d lines not logged: the console writes more than the journal is given, %d lines a second]", l.suppressed, lineRate))
	l.suppressed = 0
}

// splitter cuts bytes into lines of plain text. Its zero value is ready.
type splitter struct {
	line []byte
	seq  []byte // an escape sequence that has begun
	cr   bool   // the cursor is at the start of line, which is not empty
}

func (s *splitter) split(p []byte, emit func(string)) {
	for _, b := range p {
		switch {
		case len(s.seq) > 0:
			s.sequence(b)
		case b == esc || b == c1Lead:
			s.seq = append(s.seq, b)
		case b == '\n':
			s.flush(emit)
		case b == '\r':
			s.cr = true
		case b == '\b':
			_, n := utf8.DecodeLastRune(s.line)
			s.line = s.line[:len(s.line)-n]
		case b < ' ' && b != '\t' || b == 0x7f:
		default:
			s.add(b, emit)
		}
	}
}

// sequence takes one more byte of an escape sequence, all of which is dropped;
// of a character that only looks like the start of one, which is kept.
func (s *splitter) sequence(b byte) {
	s.seq = append(s.seq, b)
	if s.seq[0] == c1Lead {
		if b >= 0xa0 {
			s.line = append(s.line, s.seq...)
		}
	} else if !complete(s.seq) && len(s.seq) < maxSequence && b != can && b != sub {
		return
	}
	s.seq = s.seq[:0]
}

func (s *splitter) add(b byte, emit func(string)) {
	if s.cr { // written over, as a terminal does: progress bars
		s.line, s.cr = s.line[:0], false
	}
	if len(s.line) >= maxLine && (utf8.RuneStart(b) || len(s.line) >= maxLine+utf8.UTFMax) {
		s.flush(emit)
	}
	s.line = append(s.line, b)
}

// flush ends the line.
func (s *splitter) flush(emit func(string)) {
	line := strings.TrimRight(strings.ToValidUTF8(string(s.line), "\uFFFD"), " \t")
	s.line, s.cr = s.line[:0], false
	if line != "" {
		emit(line)
	}
}

package pull

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Phase is what is being done.
type Phase string

const (
	Waiting     Phase = "waiting for another process that stores it"
	Downloading Phase = "downloading"
	Retrying    Phase = "connection broken, trying again"
	Copying     Phase = "copying"
	Unpacking   Phase = "unpacking"
	Checking    Phase = "checking"
)

// Progress is how far a pull is.
type Progress struct {
	Phase Phase
	Done  int64 // bytes
	Total int64 // bytes; 0 where not known
	Rate  int64 // bytes per second of this phase; 0 where not known yet
	Err   error // of Retrying: what broke it
}

// Remaining is how long it may take; 0 where that cannot be told.
func (p Progress) Remaining() time.Duration {
	if p.Rate <= 0 || p.Total <= p.Done {
		return 0
	}
	return time.Duration(float64(p.Total-p.Done) / float64(p.Rate) * float64(time.Second)).Round(time.Second)
}

// String is one line for people.
func (p Progress) String() string {
	s := string(p.Phase)
	switch {
	case p.Total > 0:
		s += fmt.Sprintf(" %d %% of %s", p.Done*100/p.Total, size(p.Total))
	case p.Done > 0:
		s += " " + size(p.Done)
	}
	if p.Rate > 0 {
		s += ", " + size(p.Rate) + "/s"
	}
	if r := p.Remaining(); r > 0 {
		s += ", " + r.String() + " left"
	}
	if p.Err != nil {
		s += ": " + p.Err.Error()
	}
	return s
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}

// meter tells the progress of one phase.
type meter struct {
	report func(Progress)
	now    func() time.Time
	p      Progress
	begin  time.Time
	from   int64 // done before this phase
}

// meter begins a phase of which done bytes were done before.
func (p Puller) meter(phase Phase, done, total int64) *meter {
	m := &meter{report: p.Progress, now: p.Now, p: Progress{Phase: phase, Done: done, Total: total}, begin: p.Now(), from: done}
	m.report(m.p)
	return m
}

// rateAfter is how long a phase has to go on until a rate means something.
const rateAfter = time.Second

func (m *meter) add(n int64) {
	m.p.Done += n
	if t := m.now().Sub(m.begin); t >= rateAfter {
		m.p.Rate = int64(float64(m.p.Done-m.from) / t.Seconds())
	}
	m.report(m.p)
}

// reader counts what is read of r, and ends with ctx.
func (m *meter) reader(ctx context.Context, r io.Reader) io.Reader { return meterReader{ctx, m, r} }

type meterReader struct {
	ctx context.Context
	m   *meter
	r   io.Reader
}

func (r meterReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	r.m.add(int64(n))
	return n, err
}

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/vmctl/vmctl/units/bus"
)

// unitStopTime is how long vmctl has to take back what it has begun.
const unitStopTime = time.Minute

// runUnit runs a process as a unit of its own, outside of the service's sandbox; it
// ends with the caller, and with the service: then nobody reads what it says. Where it
// was run, the error is nil, however it has ended.
func runUnit(ctx context.Context, p process) error {
	program, err := exec.LookPath(p.argv[0])
	if err != nil {
		return err
	}
	conn, err := bus.Dial(ctx, false)
	if err != nil {
		return err
	}
	defer conn.Close()
	pipes, err := openPipes(p)
	if err != nil {
		return err
	}
	unit := unitName()
	notStarted := conn.RunTransient(ctx, bus.Transient{
		Unit:        unit,
		Description: "API of vmctl: " + strings.Join(p.argv[1:], " "),
		Argv:        append([]string{program}, p.argv[1:]...),
		Environment: p.env,
		Stdin:       pipes.theirs[0],
		Stdout:      pipes.theirs[1],
		Stderr:      pipes.theirs[2],
		TimeoutStop: uint64(unitStopTime.Microseconds()),
	})
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unitStopTime)
		defer cancel()
		// It may have ended just now.
		_ = conn.Stop(ctx, unit)
	})
	defer stop()
	said, err := pipes.copy(p)
	if said == 0 && err == nil {
		err = errors.New("vmctl has ended without a word")
		if notStarted != nil { // which systemd 252 also says of what ends at once
			err = notStarted
		}
	}
	return err
}

// unitName is a new name of a unit.
func unitName() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return "vmctl-api-" + hex.EncodeToString(b[:]) + ".service"
}

// pipes are the standard streams of a process that is none of ours.
type pipes struct {
	ours, theirs [3]*os.File
}

func openPipes(p process) (*pipes, error) {
	out := &pipes{}
	for i := range out.ours {
		r, w, err := os.Pipe()
		if err != nil {
			out.close()
			return nil, err
		}
		out.ours[i], out.theirs[i] = r, w
	}
	out.ours[0], out.theirs[0] = out.theirs[0], out.ours[0]
	return out, nil
}

func (p *pipes) close() {
	for i := range p.ours {
		p.ours[i].Close() // one that was never opened is nil, which is no harm
		p.theirs[i].Close()
	}
}

// copy copies what is read and written until the process has ended. It returns how
// much that has said, in bytes.
func (p *pipes) copy(to process) (said int64, err error) {
	defer p.close()
	for _, f := range p.theirs {
		f.Close()
	}
	go func() {
		// Who does not read it all has what it wants.
		_, _ = io.Copy(p.ours[0], to.stdin)
		p.ours[0].Close()
	}()
	var both sync.WaitGroup
	var n [2]int64
	var errs [2]error
	for i, w := range []io.Writer{to.stdout, to.stderr} {
		both.Go(func() { n[i], errs[i] = io.Copy(w, p.ours[i+1]) })
	}
	both.Wait()
	return n[0] + n[1], errors.Join(errs[:]...)
}

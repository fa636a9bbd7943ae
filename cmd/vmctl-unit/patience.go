package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// While what may take long is done, the start's time-out is put off, again and
// again, by more than the time until the next time.
const (
	patienceStep  = 10 * time.Second
	patienceGrace = time.Minute
)

// patiently does what may take long, outside of the start's time-out.
func (a app) patiently(work func() error) error {
	putOff := func() { a.putOff(patienceGrace) }
	putOff()
	defer putOff() // for the rest of the start
	done := make(chan error, 1)
	go func() { done <- work() }()
	tick := time.NewTicker(patienceStep)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			putOff()
		case err := <-done:
			return err
		}
	}
}

// putOff puts the time-out of what this is a part of off to d from now. That of a
// start stays off where systemd is told to reload: units.Env has PutOff then.
func (a app) putOff(d time.Duration) {
	a.notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()))
	if !a.starting {
		return
	}
	dir, err := os.OpenRoot(a.paths.RuntimeDir(a.vm))
	if err == nil {
		defer dir.Close()
		var f *os.File
		if f, err = dir.OpenFile(filepath.Base(a.paths.PutOff(a.vm)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err == nil {
			f.Close()
		}
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		a.warn("a reload of systemd would end this start: %v", err)
	}
}

// startedInTime takes back [app.putOff]. What systemd has read meanwhile it has until
// the next reload, which vmctl start sees to.
func (a app) startedInTime() {
	if err := os.Remove(a.paths.PutOff(a.vm)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.warn("%v", err)
	}
}

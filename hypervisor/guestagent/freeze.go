package guestagent

import (
	"context"
	"fmt"
)

// Freeze has the guest write out its file systems and hold back all further
// writes, until [Agent.Thaw]. It returns how many file systems that were. With an
// error nothing is certain: they may be frozen, or become so later, so that the
// caller thaws them all the same.
func (a *Agent) Freeze(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var n int
	if err := a.call(ctx, "guest-fsfreeze-freeze", nil, &n); err != nil {
		return 0, err
	}
	if n < 0 {
		return 0, fmt.Errorf("guest agent: guest-fsfreeze-freeze: want a number of file systems, got %d", n)
	}
	return n, nil
}

// Thaw lets the guest write again. It is no error where nothing is frozen.
func (a *Agent) Thaw(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return a.call(ctx, "guest-fsfreeze-thaw", nil, nil)
}

// Frozen says whether the agent holds file systems frozen.
func (a *Agent) Frozen(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var status string
	err := a.call(ctx, "guest-fsfreeze-status", nil, &status)
	return status == "frozen", err
}

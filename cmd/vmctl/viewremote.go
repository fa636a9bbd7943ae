package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// openRemote asks vmctl on the other host for a grant, and has ssh carry the
// display from there to a socket in a directory of ours.
func (a *app) openRemote(ctx context.Context, opts viewOptions, name string) (grant, dial, func(), error) {
	none := func(err error) (grant, dial, func(), error) { return grant{}, nil, nil, err }
	f, err := newFar(a.host)
	if err != nil {
		return none(err)
	}
	var g grant
	err = f.ask(ctx, &g, append(a.userFlag(), "view", "--print", "--expires="+opts.expires.String(), "--", name)...)
	if err != nil {
		return none(err)
	}
	dir, err := os.MkdirTemp(runtimeDir(), "vmctl-view-")
	if err != nil {
		return none(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	socket := filepath.Join(dir, "display.sock")
	// Two streams of the same connection would need a master of ssh's.
	argv := append([]string{f.ssh, "-N", "-o", "ExitOnForwardFailure=yes", "-L", socket + ":" + g.where()}, f.options...)
	tunnel := commandOfSSH(ctx, append(argv, "--", f.host))
	tunnel.Stderr = a.ui.err
	ended := make(chan error, 1)
	done := func() {
		cancel()
		<-ended
		os.RemoveAll(dir)
	}
	if err := tunnel.Start(); err != nil {
		cancel()
		os.RemoveAll(dir)
		return none(err)
	}
	go func() { ended <- tunnel.Wait(); close(ended) }()
	if err := awaitSocket(ctx, socket, ended); err != nil {
		done()
		return none(fmt.Errorf("ssh to %s: %v", f.host, err))
	}
	return g, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}, done, nil
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// runsHere marks a command that decides itself what of it runs on the host that
// -H names.
const runsHere = "runs-here"

// staysHere says whether a command is not simply run on the other host: where a
// program or a page is to be opened on this one.
func staysHere(a *app, cmd *cobra.Command) bool {
	_, marked := cmd.Annotations[runsHere]
	if !marked || a.ui.format == jsonFormat {
		return false
	}
	printed, err := cmd.Flags().GetBool("print")
	return err == nil && !printed
}

// openRemote asks vmctl on the other host for a grant, and has ssh carry the
// display from there to a socket in a directory of ours.
func (a *app) openRemote(ctx context.Context, opts viewOptions, name string) (grant, dial, func(), error) {
	none := func(err error) (grant, dial, func(), error) { return grant{}, nil, nil, err }
	ssh, err := a.findSSH()
	if err != nil {
		return none(err)
	}
	args := []string{"view", "--print", "--output=json", "--expires=" + opts.expires.String()}
	if a.user {
		args = append(args, "--user")
	}
	g, err := remoteGrant(ctx, ssh, sshArgv(a.host, false, append(args, "--", name))[1:])
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
	tunnel := exec.CommandContext(ctx, ssh, "-N", "-o", "ExitOnForwardFailure=yes", "-L", socket+":"+g.where(), "--", a.host)
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
		return none(fmt.Errorf("ssh to %s: %v", a.host, err))
	}
	return g, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}, done, nil
}

// remoteGrant runs vmctl on the other host. What it refuses with is ours too.
func remoteGrant(ctx context.Context, ssh string, args []string) (grant, error) {
	var g grant
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, ssh, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err == nil {
		if err := json.Unmarshal(stdout.Bytes(), &g); err != nil {
			return g, fmt.Errorf("want a grant from vmctl over there, got %.80q", stdout.String())
		}
		return g, nil
	}
	var refused struct{ Error errorJSON }
	if i := bytes.IndexByte(stderr.Bytes(), '{'); i >= 0 && json.NewDecoder(bytes.NewReader(stderr.Bytes()[i:])).Decode(&refused) == nil && refused.Error.Message != "" {
		_, text, found := strings.Cut(refused.Error.Message, ": ")
		if !found || !strings.HasPrefix(refused.Error.Message, "display of ") {
			text = refused.Error.Message
		}
		err := error(&statusedError{errors.New(text), refused.Error.Status})
		if refused.Error.Hint != "" {
			err = withHint(err, refused.Error.Hint)
		}
		return g, err
	}
	if text := strings.TrimSpace(stderr.String()); text != "" {
		return g, errors.New(text)
	}
	return g, fmt.Errorf("ssh: %v", err)
}

// awaitSocket waits until ssh listens, which it does once it is let in.
func awaitSocket(ctx context.Context, socket string, ended <-chan error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(socket); err == nil {
			return nil
		}
		select {
		case err := <-ended:
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

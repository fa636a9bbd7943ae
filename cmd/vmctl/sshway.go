package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/all"
)

const (
	sshPort = 22
	// connectTime is how long each of the ways to a guest's ssh server may take.
	connectTime = 5 * time.Second
	// bannerTime is how long the server may then take to say what it is, and
	// lastBannerTime where there is no other way: a guest under load takes seconds.
	bannerTime     = 10 * time.Second
	lastBannerTime = time.Minute
	// maxBanner bounds that, in bytes (RFC 4253, section 4.2: 255, and lines before).
	maxBanner = 4 << 10
)

// sshWay is a way to a guest's ssh server.
type sshWay struct {
	name string // for people
	dial func(context.Context) (net.Conn, error)
}

// sshWays are the ways to the ssh server of a machine that runs, best first: by
// vsock, which needs no network, by its addresses, by a forward. Of its addresses
// those that the agent alone tells are not believed: a guest could name another's.
func (a *app) sshWays(ctx context.Context, l look) []sshWay {
	var ways []sshWay
	m := l.machine()
	if m == nil {
		return nil
	}
	if l.record != nil && l.record.VsockCID() != 0 {
		cid := l.record.VsockCID()
		ways = append(ways, sshWay{fmt.Sprintf("vsock %d", cid), func(ctx context.Context) (net.Conn, error) { return dialVsock(ctx, cid, sshPort) }})
	}
	if hv, ok := all.ByName(m.Hypervisor); ok && m.Vsock.Enabled != "false" {
		if v, ok := hv.(hypervisor.VsockDialer); ok {
			ways = append(ways, sshWay{"vsock", func(ctx context.Context) (net.Conn, error) {
				socket, done, err := access.Socket(a.paths.VsockSocket(m.Name))
				if err != nil {
					return nil, err
				}
				defer done()
				return v.DialVsock(ctx, socket, sshPort)
			}})
		}
	}
	tcp := func(host string, port int) {
		address := net.JoinHostPort(host, strconv.Itoa(port))
		ways = append(ways, sshWay{address, func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		}})
	}
	for _, n := range a.see([]look{l}).nics(l, nil) {
		for _, found := range n.Addresses {
			tcp(found.Address, sshPort)
		}
	}
	for _, n := range m.NICs {
		for _, f := range n.Forward {
			if f.GuestPort == sshPort && f.Protocol == "tcp" {
				tcp(cmp.Or(strings.Trim(f.Address, "[]"), "127.0.0.1"), f.HostPort)
			}
		}
	}
	return ways
}

// dialSSH connects to a guest's ssh server by the first way on which one answers,
// and returns the connection with what the server has said so far.
func (a *app) dialSSH(ctx context.Context, l look) (net.Conn, *bufio.Reader, string, error) {
	ways := a.sshWays(ctx, l)
	if len(ways) == 0 {
		return nil, nil, "", withHint(&stateError{errors.New("no way to its ssh server is known: no vsock, no address, no forward to port 22")},
			"give a card forward = [\"127.0.0.1:2222:22/tcp\"], or see in vmctl show whether the guest has an address yet")
	}
	var errs []error
	for i, way := range ways {
		patience := bannerTime
		if i == len(ways)-1 {
			patience = lastBannerTime
		}
		conn, banner, err := tryWay(ctx, way, patience)
		if err == nil {
			return conn, banner, way.name, nil
		}
		errs = append(errs, fmt.Errorf("by %s: %w", way.name, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, nil, "", errors.Join(errs...)
}

// tryWay connects by one way, and waits for the server to say what it is, for at most
// patience.
func tryWay(ctx context.Context, way sshWay, patience time.Duration) (net.Conn, *bufio.Reader, error) {
	dialing, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	conn, err := way.dial(dialing)
	if err != nil {
		return nil, nil, err
	}
	// A forward accepts before anything in the guest does.
	deadline := time.Now().Add(patience)
	if end, ok := ctx.Deadline(); ok && end.Before(deadline) {
		deadline = end
	}
	if err := conn.SetReadDeadline(deadline); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	banner := bufio.NewReaderSize(conn, maxBanner)
	start, err := banner.Peek(len("SSH-"))
	if err == nil && string(start) != "SSH-" {
		err = errors.New("what answers is no ssh server")
	}
	if err == nil {
		err = conn.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, banner, nil
}

// dialVsock connects to a port of a guest.
func dialVsock(ctx context.Context, cid uint32, port uint32) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	timeout := unix.NsecToTimeval(connectTime.Nanoseconds())
	if deadline, ok := ctx.Deadline(); ok {
		timeout = unix.NsecToTimeval(max(time.Until(deadline), time.Millisecond).Nanoseconds())
	}
	err = unix.SetsockoptTimeval(fd, unix.AF_VSOCK, unix.SO_VM_SOCKETS_CONNECT_TIMEOUT, &timeout)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: port})
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	// Not blocking, so that the runtime waits for it, with deadlines.
	return vsockConn{os.NewFile(uintptr(fd), "vsock")}, nil
}

// vsockConn makes a connection of a file: package net has none of this family.
type vsockConn struct{ *os.File }

func (vsockConn) LocalAddr() net.Addr  { return nil }
func (vsockConn) RemoteAddr() net.Addr { return nil }

// sshDir has a machine's own key, and its guest's host keys.
func (a *app) sshDir(name string) string { return filepath.Join(a.paths.StateDir(name), "ssh") }

// agentAnswers says whether the guest agent does, within patience.
func (a *app) agentAnswers(ctx context.Context, l look) bool {
	if listens, err := a.agentListens(ctx, l); err != nil || !listens {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, agentHello)
	defer cancel()
	agent, err := a.dialAgent(ctx, l.vm.Name)
	if err != nil {
		return false
	}
	agent.Close()
	return true
}

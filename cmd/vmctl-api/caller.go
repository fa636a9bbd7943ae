package main

import (
	"context"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// role is what a caller may do.
type role int

const (
	nobody   role = iota
	viewer        // look
	operator      // do everything; as root could, since a definition may name any file
)

func (r role) String() string { return [...]string{"nobody", "viewer", "operator"}[r] }

// caller is who has called.
type caller struct {
	credentials.CommonAuthInfo
	Name string // for people: of a user, or of a certificate
	Role role
	Peer string // with what else identifies it
	// What it may do by now, where that can change; else nil.
	roleNow func() (role, error)
	// Of a process on this host alone.
	uid   uint32
	pid   int32
	local bool
}

// AuthType makes a caller a [credentials.AuthInfo].
func (*caller) AuthType() string { return "vmctl" }

// callerOf is who has called.
func callerOf(ctx context.Context) (*caller, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, false
	}
	c, ok := p.AuthInfo.(*caller)
	return c, ok
}

// group is who may do everything over the Unix socket, beside root.
const group = "vmctl"

// unixCaller asks the kernel who is at the other end of a connection. Who comes
// by the socket of viewers is one, whoever that is.
func unixCaller(conn *net.UnixConn, only role) (*caller, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var groups []uint32
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		if cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); sockErr == nil {
			groups, sockErr = peerGroups(int(fd))
		}
	})
	if err != nil {
		return nil, err
	}
	if sockErr != nil {
		return nil, sockErr
	}
	c := &caller{Name: userName(cred.Uid), uid: cred.Uid, pid: cred.Pid, local: true, Role: viewer}
	c.Peer = fmt.Sprintf("%s (uid %d, pid %d)", c.Name, cred.Uid, cred.Pid)
	c.SecurityLevel = credentials.PrivacyAndIntegrity
	if only == operator && (cred.Uid == 0 || slices.Contains(append(groups, cred.Gid), groupID(group))) {
		c.Role = operator
	}
	return c, nil
}

// peerGroups are the supplementary groups that the other end had when it
// connected (unix(7), SO_PEERGROUPS).
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			return groups[:size/4], nil
		case unix.ERANGE:
			groups = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}

// noGroup is no group's number.
const noGroup = ^uint32(0)

func groupID(name string) uint32 {
	g, err := user.LookupGroup(name)
	if err != nil {
		return noGroup
	}
	n, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		return noGroup
	}
	return uint32(n)
}

func userName(uid uint32) string {
	text := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(text); err == nil {
		return u.Username
	}
	return text
}

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"sync"
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
	gate gate   // by which it came in
	// Of a process on this host alone.
	uid   uint32
	pid   int32
	local bool
	// The group of which its user was a member when it came in, "" for none. Where a
	// process has a group of its own, as by SupplementaryGroups= of its unit, nobody
	// can take that from it.
	memberOf string
	// Its certificate, where it came by one, and those between that and the authority.
	chain []*x509.Certificate
}

// mayNow is what it may do by now.
func (c *caller) mayNow() (role, error) { return c.gate.rights()(c) }

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

// Groups, beside root.
const (
	group       = "vmctl"         // may do everything
	viewerGroup = "vmctl-viewers" // may look
)

// groupOf is the group by which a user has a role.
func groupOf(r role) string {
	if r == operator {
		return group
	}
	return viewerGroup
}

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

// memberRights are what a user of this host came in with, for as long as it is a member
// of the group of which it was one then.
func memberRights(c *caller, isMember memberLookup) (role, error) {
	if c.memberOf == "" {
		return c.Role, nil
	}
	in, err := isMember(c.uid, c.memberOf)
	switch {
	case err != nil:
		return nobody, &unknownError{fmt.Errorf("whether %s is a member of the group %s: %w", c.Name, c.memberOf, err)}
	case !in:
		return nobody, fmt.Errorf("%s is a member of the group %s no more", c.Name, c.memberOf)
	}
	return c.Role, nil
}

// unknownError is why it cannot be told what a caller may do by now.
type unknownError struct{ error }

func (e *unknownError) Unwrap() error { return e.error }

// memberLookup says whether a user is in a group; the error is why that cannot be told.
type memberLookup func(uid uint32, group string) (bool, error)

// once looks up each user and group once, for one who asks at a time.
func (look memberLookup) once() memberLookup {
	type membership struct {
		uid   uint32
		group string
	}
	known := map[membership]func() (bool, error){}
	return func(uid uint32, group string) (bool, error) {
		m := membership{uid, group}
		if known[m] == nil {
			known[m] = sync.OnceValues(func() (bool, error) { return look(uid, group) })
		}
		return known[m]()
	}
}

// isMember is the [memberLookup] by /etc/passwd and /etc/group. Who is not in them is no
// member, nor is anybody of a group that is not.
func isMember(uid uint32, group string) (bool, error) {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if _, none := errors.AsType[user.UnknownUserIdError](err); none {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	g, err := user.LookupGroup(group)
	if _, none := errors.AsType[user.UnknownGroupError](err); none {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	groups, err := u.GroupIds()
	return slices.Contains(groups, g.Gid), err
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

package main

import (
	"errors"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
)

func TestMemberRights(t *testing.T) {
	in := map[uint32]string{1000: group, 1001: viewerGroup}
	isMember := func(uid uint32, group string) (bool, error) { return in[uid] == group, nil }
	for what, c := range map[string]struct {
		caller caller
		want   role
	}{
		"root":                           {caller{Role: operator}, operator},
		"a member":                       {caller{Role: operator, uid: 1000, memberOf: group}, operator},
		"a viewer":                       {caller{Role: viewer, uid: 1001, memberOf: viewerGroup}, viewer},
		"by a group of the process":      {caller{Role: operator, uid: 1002}, operator},
		"one who has left":               {caller{Role: operator, uid: 1002, memberOf: group}, nobody},
		"one who is in the other by now": {caller{Role: operator, uid: 1001, memberOf: group}, nobody},
	} {
		got, err := memberRights(&c.caller, isMember)
		if got != c.want || (err == nil) == (got == nobody) {
			t.Errorf("%s: %v, %v, want %v", what, got, err, c.want)
		}
	}
}

// However many connections a user has, it is looked up once for all; where that fails,
// none of them is closed, and it is looked up again the next time.
func TestMemberLookup(t *testing.T) {
	out := logged(t)
	looked := 0
	var fails error
	in := true
	isMember := func(uint32, string) (bool, error) {
		looked++
		return in && fails == nil, fails
	}
	var conns []*enteredConn
	var ends []net.Conn
	for range 3 {
		conn, end := net.Pipe()
		defer conn.Close()
		defer end.Close()
		who := &caller{Name: "web", Peer: "web", Role: operator, uid: 1000, memberOf: group}
		conns, ends = append(conns, &enteredConn{Conn: conn, gated: &gatedConn{Conn: conn}, who: who, seen: operator}), append(ends, end)
	}
	recheck := func() {
		t.Helper()
		looked = 0
		now := whileMember(isMember)
		for _, c := range conns {
			c.recheck(now)
		}
		if looked != 1 {
			t.Errorf("looked up %d times, want once", looked)
		}
	}
	open := func(want bool, when string) {
		t.Helper()
		for _, end := range ends {
			err := end.SetReadDeadline(time.Now())
			if err == nil {
				_, err = end.Read(make([]byte, 1))
			}
			if errors.Is(err, os.ErrDeadlineExceeded) != want {
				t.Errorf("%s: %v, want an open connection: %v", when, err, want)
			}
		}
	}
	recheck()
	open(true, "a member")
	fails = unix.EMFILE
	recheck()
	recheck()
	open(true, "with a lookup that fails")
	if n := strings.Count(out.String(), "too many open files"); n != len(conns) {
		t.Errorf("logged %d times, want %d:\n%s", n, len(conns), out)
	}
	fails = nil
	recheck()
	open(true, "a member again")
	in = false
	recheck()
	open(false, "no member")
}

// Who is not there, and what group is not, is no error of the lookup.
func TestIsMember(t *testing.T) {
	for _, c := range []struct {
		uid   uint32
		group string
		want  bool
	}{{0, "root", true}, {0, "vmctl-no-such-group", false}, {1<<31 - 7, "root", false}} {
		if got, err := isMember(c.uid, c.group); got != c.want || err != nil {
			t.Errorf("%d in %s: %v, %v, want %v", c.uid, c.group, got, err, c.want)
		}
	}
}

// leaving is a gate whose callers leave the group that let them in.
type leaving struct {
	unixGate
	member *atomic.Bool
}

func (g leaving) enter(conn net.Conn) (net.Conn, *caller, error) {
	in, who, err := g.unixGate.enter(conn)
	if err == nil {
		who.memberOf = group
	}
	return in, who, err
}

func (g leaving) rights() rights {
	return whileMember(func(uint32, string) (bool, error) { return g.member.Load(), nil })
}

// Who is a member no more may not go on by a connection that there is: neither by the
// next call, nor by what goes on.
func TestMemberLeaves(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	out := logged(t)
	member := &atomic.Bool{}
	member.Store(true)
	api := client(t, "unix:"+s.listen(t, "unix", leaving{unixGate{operator}, member}).String(), insecure.NewCredentials())
	stream, err := api.WatchVms(t.Context(), &mvirt.WatchVmsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	member.Store(false)
	// By the same connection, or by another once that is closed, if not in that moment.
	if code := status.Code(second(api.GetVersion(t.Context(), &mvirt.GetVersionRequest{}))); code != codes.PermissionDenied && code != codes.Unavailable {
		t.Errorf("a call: %v", code)
	}
	_, err = stream.Recv()
	wantCode(t, "a stream", err, codes.Unavailable)
	eventually(t, "why is logged", func() bool {
		return strings.Contains(out.String(), "closed the connection of ") && strings.Contains(out.String(), "is a member of the group vmctl no more")
	})
}

package main

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/credentials"
)

// loopbackGate lets in who the Unix socket would, without any secret: the kernel
// says which user of this host has made a connection.
type loopbackGate struct{ root string }

func (g loopbackGate) enter(conn net.Conn) (net.Conn, *caller, error) {
	local, ok := conn.LocalAddr().(*net.TCPAddr)
	remote, ok2 := conn.RemoteAddr().(*net.TCPAddr)
	if !ok || !ok2 || !local.IP.IsLoopback() || !remote.IP.IsLoopback() {
		return nil, nil, errors.New("want a connection over loopback: without TLS there is no other")
	}
	uid, err := g.owner(remote, local)
	if err != nil {
		return nil, nil, err
	}
	// Which process it is cannot be told. Polkit, which wants one, goes by the user.
	who := &caller{Name: userName(uid), uid: uid, pid: int32(os.Getpid()), local: true, Peer: fmt.Sprintf("%s (uid %d, %s)", userName(uid), uid, remote)}
	who.SecurityLevel = credentials.PrivacyAndIntegrity
	if uid == 0 {
		who.Role = operator
		return conn, who, nil
	}
	for _, may := range []role{operator, viewer} {
		by := groupOf(may)
		in, err := isMember(uid, by)
		if err != nil {
			return nil, nil, err
		}
		if in {
			who.Role, who.memberOf = may, by
			return conn, who, nil
		}
	}
	return nil, nil, fmt.Errorf("%s is in neither of the groups %s and %s", who.Peer, group, viewerGroup)
}

func (loopbackGate) rights() rights { return whileMember(isMember) }

// owner is the user whose socket is bound to one address and connected to another
// (proc_pid_net(5)).
func (g loopbackGate) owner(from, to *net.TCPAddr) (uint32, error) {
	file := "/proc/self/net/tcp6"
	if from.IP.To4() != nil {
		file = "/proc/self/net/tcp"
	}
	f, err := os.Open(g.root + file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return ownerIn(f, from, to)
}

func ownerIn(table io.Reader, from, to *net.TCPAddr) (uint32, error) {
	wantFrom, wantTo := kernelAddress(from), kernelAddress(to)
	const established = "01"
	for lines := bufio.NewScanner(table); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) > 7 && f[1] == wantFrom && f[2] == wantTo && f[3] == established {
			uid, err := strconv.ParseUint(f[7], 10, 32)
			return uint32(uid), err
		}
	}
	return 0, fmt.Errorf("no process of this host has the connection from %s", from)
}

// kernelAddress is an address as the kernel prints it: in words of four bytes, the
// lowest first, on the architectures that there are machines for.
func kernelAddress(a *net.TCPAddr) string {
	ip := a.IP.To4()
	if ip == nil {
		ip = a.IP.To16()
	}
	turned := make([]byte, 0, len(ip))
	for word := range slices.Chunk(ip, 4) {
		turned = append(turned, word[3], word[2], word[1], word[0])
	}
	return strings.ToUpper(hex.EncodeToString(turned)) + fmt.Sprintf(":%04X", a.Port)
}

package netsetup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// vdeRequest is what a switch is told by who plugs in (struct request_v3 of
// vde2's datasock.c): the address of the socket that takes the frames of the
// switch, and who it is for people.
type vdeRequest struct {
	Magic, Version, Type uint32
	Family               uint16
	Path                 [108]byte
	Description          [128]byte
}

const (
	vdeMagic   = 0xfeedface
	vdeVersion = 3
	vdeTime    = 10 * time.Second // for an answer
)

// PlugVDE plugs into a VDE switch by its control directory. Frames are read from
// and written to data, one at a time; the port of the switch is there for as long
// as control is open. tap is a name for the port that nobody else has.
func PlugVDE(dir, tap, description string) (data, control *os.File, err error) {
	control, err = connectVDE(filepath.Join(dir, "ctl"))
	if err != nil {
		return nil, nil, fmt.Errorf("plug into the VDE switch %s: %w", dir, err)
	}
	if data, err = vdePort(control, dir, tap, description); err != nil {
		control.Close()
		return nil, nil, fmt.Errorf("plug into the VDE switch %s: %w", dir, err)
	}
	return data, control, nil
}

func connectVDE(ctl string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ctl)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: ctl}); {
	case errors.Is(err, unix.ENOENT):
		err = errors.New("there is none: no socket " + ctl)
		fallthrough
	case err != nil:
		f.Close()
		if errors.Is(err, unix.ECONNREFUSED) {
			err = fmt.Errorf("it does not run: nobody listens on %s", ctl)
		}
		return nil, err
	}
	limit := unix.NsecToTimeval(vdeTime.Nanoseconds())
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &limit); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// vdePort asks a switch for a port, and connects to it.
func vdePort(control *os.File, dir, tap, description string) (data *os.File, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	data = os.NewFile(uintptr(fd), dir)
	defer func() {
		if err != nil {
			data.Close()
		}
	}()
	path := filepath.Join(dir, "."+tap)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// What a socket is bound to gets the socket's mode.
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, fmt.Errorf("make the socket %s: %w", path, err)
	}
	// Once the switch has connected to it, it needs the name no more.
	defer os.Remove(path)
	if err := giveToSwitch(path, control.Name()); err != nil {
		return nil, err
	}
	port, err := askVDE(control, path, description)
	if err != nil {
		return nil, err
	}
	if err := connectPort(fd, dir, control.Name(), port); err != nil {
		return nil, fmt.Errorf("connect to the port %s: %w", port, err)
	}
	return data, nil
}

// connectPort connects to the socket that a switch has named for the port. The
// switch may be another user's, who is not to have root write to what is not the
// switch's.
func connectPort(data int, dir, ctl, port string) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	if at := filepath.Dir(port); at != filepath.Clean(dir) && at != real {
		return fmt.Errorf("want it in %s", dir)
	}
	fd, err := unix.Open(filepath.Join(dir, filepath.Base(port)), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var is, its unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &is), unix.Stat(ctl, &its)); err != nil {
		return err
	}
	if is.Mode&unix.S_IFMT != unix.S_IFSOCK || is.Uid != its.Uid {
		return fmt.Errorf("want a socket of the owner of %s", ctl)
	}
	// What was looked at, whatever has its name by now.
	return unix.Connect(data, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d", fd)})
}

// giveToSwitch lets the switch write to a socket, and nobody else but root. The
// directory may be another user's, who could put anything in its place.
func giveToSwitch(path, ctl string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var own, its unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &own), unix.Stat(ctl, &its)); err != nil {
		return err
	}
	switch {
	case own.Mode&unix.S_IFMT != unix.S_IFSOCK || int(own.Uid) != os.Geteuid():
		return fmt.Errorf("%s was replaced just now", path)
	case own.Uid == its.Uid:
		return nil
	}
	if err := unix.Fchownat(fd, "", int(its.Uid), int(its.Gid), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("the switch is another user's: %w", err)
	}
	return nil
}

// askVDE tells a switch of a socket, and returns the path of its own for it.
func askVDE(control *os.File, path, description string) (string, error) {
	request := vdeRequest{Magic: vdeMagic, Version: vdeVersion, Family: unix.AF_UNIX}
	copy(request.Path[:], path)
	description = description[:min(len(description), len(request.Description)-1)]
	copy(request.Description[:], description)
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, request); err != nil {
		return "", err
	}
	whole := b.Len() - len(request.Description) + len(description)
	fd := int(control.Fd())
	if _, err := unix.Write(fd, b.Bytes()[:whole]); err != nil {
		return "", fmt.Errorf("ask for a port: %w", err)
	}
	answer := make([]byte, unix.SizeofSockaddrUnix)
	n, err := unix.Read(fd, answer)
	if err != nil {
		return "", fmt.Errorf("no answer: %w", err)
	}
	if n <= 2 || binary.NativeEndian.Uint16(answer) != unix.AF_UNIX {
		return "", errors.New("no port is free, or it is none for this user")
	}
	name, _, _ := bytes.Cut(answer[2:n], []byte{0})
	return string(name), nil
}

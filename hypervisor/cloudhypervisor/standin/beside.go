package standin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// theTPM is what its connections are kept by, as a share's are by its id.
const theTPM = "tpm"

// connectBeside connects to what runs beside it, as is done at each boot: the last
// connections are closed before.
func (v *vmm) connectBeside() error {
	for id := range v.beside {
		v.disconnect(id)
	}
	for _, share := range v.config.FS {
		if err := v.connectShare(share); err != nil {
			return err
		}
	}
	if v.config.TPM != nil {
		conns, err := dialTPM(v.config.TPM["socket"])
		v.beside[theTPM] = conns
		if err != nil {
			return fmt.Errorf("TPM: %w", err)
		}
	}
	return nil
}

// connectShare connects to what serves a share.
func (v *vmm) connectShare(share map[string]any) error {
	conn, err := dialVirtiofsd(fmt.Sprint(share["socket"]))
	if err != nil {
		return fmt.Errorf("share %v: %w", share["tag"], err)
	}
	v.beside[fmt.Sprint(share["id"])] = []io.Closer{conn}
	return nil
}

// disconnect closes the connections of a device.
func (v *vmm) disconnect(id string) {
	for _, c := range v.beside[id] {
		c.Close()
	}
	delete(v.beside, id)
}

// dialVirtiofsd tries for a minute, and then asks what there is by vhost-user.
func dialVirtiofsd(socket string) (io.Closer, error) {
	conn, err := net.Dial("unix", socket)
	for last := time.Now().Add(time.Minute); err != nil; conn, err = net.Dial("unix", socket) {
		if time.Now().After(last) {
			return nil, err
		}
		time.Sleep(100 * time.Millisecond)
	}
	const getFeatures, version = 1, 1
	var answer struct {
		Request, Flags, Size uint32
		Features             uint64
	}
	err = errors.Join(
		binary.Write(conn, binary.NativeEndian, []uint32{getFeatures, version, 0}),
		binary.Read(conn, binary.NativeEndian, &answer))
	if err == nil && (answer.Request != getFeatures || answer.Features == 0) {
		err = fmt.Errorf("it answers %+v", answer)
	}
	return conn, err
}

// dialTPM tries once, hands swtpm one end of a pair of sockets for what is the
// guest's, and has it give some random bytes.
func dialTPM(socket string) ([]io.Closer, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket})
	if err != nil {
		return nil, err
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return []io.Closer{conn}, err
	}
	theirs, data := os.NewFile(uintptr(pair[0]), "swtpm's end"), os.NewFile(uintptr(pair[1]), "TPM")
	defer theirs.Close()
	const setDataFD = 0x10
	request := binary.BigEndian.AppendUint32(nil, setDataFD)
	var result uint32
	_, _, err = conn.WriteMsgUnix(request, syscall.UnixRights(pair[0]), nil)
	err = errors.Join(err, binary.Read(conn, binary.BigEndian, &result))
	if err == nil && result != 0 {
		err = fmt.Errorf("it takes no connection for the guest: %#x", result)
	}
	if err != nil {
		return []io.Closer{conn, data}, err
	}
	const noSessions, getRandom, size = 0x8001, 0x17b, 12
	var answer struct {
		Tag        uint16
		Size, Code uint32
		Random     [10]byte
	}
	_, err = data.Write([]byte{noSessions >> 8, noSessions & 0xff, 0, 0, 0, size, 0, 0, getRandom >> 8, getRandom & 0xff, 0, 8})
	if err = errors.Join(err, binary.Read(data, binary.BigEndian, &answer)); err == nil && answer.Code != 0 {
		err = fmt.Errorf("it has no random bytes: %#x", answer.Code)
	}
	return []io.Closer{conn, data}, err
}

package cloudhypervisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/jsonline"
)

var _ hypervisor.VsockDialer = CloudHypervisor{}

// maxReply bounds the answer to a request for a port, in bytes.
const maxReply = 64

// DialVsock implements [hypervisor.VsockDialer]: the socket takes a line with the
// port, and answers with "OK" and the port of the host's end once the guest has
// taken the connection; else it is closed.
func (CloudHypervisor) DialVsock(ctx context.Context, socket string, port uint32) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	stop := jsonline.Until(ctx, conn)
	_, err = fmt.Fprintf(conn, "CONNECT %d\n", port)
	var line []byte
	if err == nil {
		// What the guest says next may come with it: one byte at a time.
		line, err = jsonline.Read(bufio.NewReaderSize(&slowly{conn}, 16), maxReply)
	}
	stop()
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case err != nil:
		err = fmt.Errorf("the guest takes no connection at port %d", port)
	case !strings.HasPrefix(string(line), "OK "):
		err = fmt.Errorf("cloud-hypervisor answers %q for port %d", line, port)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// slowly reads one byte at a time, so that nothing is read beyond a line.
type slowly struct{ net.Conn }

func (s *slowly) Read(p []byte) (int, error) { return s.Conn.Read(p[:min(1, len(p))]) }

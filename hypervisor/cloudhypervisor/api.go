package cloudhypervisor

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor/jsonline"
)

// requestTimeout bounds every request but those that take long, whatever its context
// says: requests are answered one after another, so one that hangs keeps all others
// waiting.
const requestTimeout = 30 * time.Second

// maxAnswer bounds an answer, in bytes: who answers may be a hostile guest's
// hypervisor. That of vm.info is the whole configuration.
const maxAnswer = 8 << 20

// Error is a refusal of cloud-hypervisor.
type Error struct {
	Status int      // of HTTP, e.g. 500
	Causes []string // outermost first
}

func (e *Error) Error() string {
	if len(e.Causes) == 0 {
		return fmt.Sprintf("cloud-hypervisor refuses (status %d)", e.Status)
	}
	return "cloud-hypervisor: " + strings.Join(e.Causes, ": ")
}

// client speaks HTTP/1.1 on one connection, a request after the other. The little
// that cloud-hypervisor's server knows of it does not need a library that brings
// encryption, proxies and all.
type client struct {
	conn net.Conn
	r    *bufio.Reader
	lost error // why the connection is of no use any more
}

func newClient(conn net.Conn) *client {
	return &client{conn: conn, r: bufio.NewReader(conn)}
}

// call is a request of a path such as "vm.info".
type call struct {
	method, path string
	body         any           // nil for none
	files        []*os.File    // passed with it; the caller still owns them
	timeout      time.Duration // 0: requestTimeout
}

// noTimeout is for what its context alone bounds.
const noTimeout = time.Duration(-1)

// get and put make requests. The answer is read into result; nil where it does not
// matter.
func (c *client) get(ctx context.Context, path string, result any) error {
	return c.request(ctx, call{method: "GET", path: path}, result)
}

func (c *client) put(ctx context.Context, path string, body, result any) error {
	return c.request(ctx, call{method: "PUT", path: path, body: body}, result)
}

func (c *client) request(ctx context.Context, q call, result any) error {
	if c.lost != nil {
		return c.lost
	}
	if q.timeout != noTimeout {
		bounded, cancel := context.WithTimeout(ctx, cmp.Or(q.timeout, requestTimeout))
		defer cancel()
		ctx = bounded
	}
	defer jsonline.Until(ctx, c.conn)()
	answer, err := c.exchange(q)
	var refused *Error
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("%s: %w", q.path, err)
	case err != nil:
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		c.lost = fmt.Errorf("%s: %w", q.path, err)
		return c.lost
	case result == nil:
		return nil
	}
	if raw, ok := result.(*json.RawMessage); ok && len(answer) == 0 {
		*raw = nil // it need not have any
		return nil
	}
	if err := json.Unmarshal(answer, result); err != nil {
		return fmt.Errorf("%s: the answer of cloud-hypervisor: %w", q.path, err)
	}
	return nil
}

// exchange writes a request and reads its answer. The error is an [*Error] where
// that is a refusal; after any other the connection is of no use.
func (c *client) exchange(q call) ([]byte, error) {
	var content []byte
	if q.body != nil {
		var err error
		if content, err = json.Marshal(q.body); err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s /api/v1/%s HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n", q.method, q.path)
	if content != nil {
		fmt.Fprintf(&b, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(content))
	}
	b.WriteString("\r\n")
	b.Write(content)
	if err := c.send(b.Bytes(), q.files); err != nil {
		return nil, err
	}
	return c.answer()
}

// send writes a request, with files in one message: those that come with its first
// byte are the request's.
func (c *client) send(request []byte, files []*os.File) error {
	if len(files) == 0 {
		_, err := c.conn.Write(request)
		return err
	}
	conn, ok := c.conn.(*net.UnixConn)
	if !ok {
		return errors.New("no file can be passed on this connection")
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	n, _, err := conn.WriteMsgUnix(request, unix.UnixRights(fds...), nil)
	if err == nil && n < len(request) {
		_, err = conn.Write(request[n:])
	}
	return err
}

// maxLines and maxLine bound the head of an answer.
const (
	maxLines = 64
	maxLine  = 4 << 10 // bytes
)

func (c *client) answer() ([]byte, error) {
	status, length, err := c.head()
	if err != nil {
		return nil, err
	}
	content := make([]byte, length)
	if _, err := io.ReadFull(c.r, content); err != nil {
		return nil, err
	}
	if status >= 200 && status < 300 {
		return content, nil
	}
	refused := &Error{Status: status}
	// The text is a list of causes in JSON, or older than that.
	if json.Unmarshal(content, &refused.Causes) != nil {
		if text := strings.Join(strings.Fields(string(content)), " "); text != "" {
			refused.Causes = []string{text}
		}
	}
	return nil, refused
}

// head is what precedes the content of an answer.
func (c *client) head() (status, length int, err error) {
	line, err := jsonline.Read(c.r, maxLine)
	if err != nil {
		return 0, 0, err
	}
	protocol, rest, _ := strings.Cut(string(line), " ")
	code, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	if status, err = strconv.Atoi(code); err != nil || !strings.HasPrefix(protocol, "HTTP/1.") {
		return 0, 0, fmt.Errorf("the answer is not HTTP: %.100q", line)
	}
	for range maxLines {
		if line, err = jsonline.Read(c.r, maxLine); err != nil {
			return 0, 0, err
		}
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), ":")
		switch {
		case name == "":
			return status, length, nil
		case strings.EqualFold(name, "Content-Length"):
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil || length < 0 || length > maxAnswer {
				return 0, 0, fmt.Errorf("the answer has the length %.20q", value)
			}
		}
	}
	return 0, 0, fmt.Errorf("the answer has more than %d lines before its content", maxLines)
}

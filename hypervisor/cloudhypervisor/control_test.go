package cloudhypervisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// server answers as cloud-hypervisor v53 was seen to: 204 without content, 200
// with, 500 with the causes of a refusal, 404 without a machine.
type server struct {
	t      *testing.T
	socket string

	mu    sync.Mutex
	state string   // "" for no machine
	asked []string // "PUT vm.pause {…}"
	// answer is what is written instead, by path; "" closes the connection.
	answer map[string]string
	hold   chan struct{} // requests are answered once it is closed; nil: at once
}

func newServer(t *testing.T) *server {
	s := &server{t: t, socket: filepath.Join(t.TempDir(), "api.sock"), state: "Running", answer: map[string]string{}}
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(conn)
		}
	}()
	return s
}

func (s *server) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		method, path, body, err := readRequest(r)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.asked = append(s.asked, strings.TrimSpace(method+" "+path+" "+body))
		raw, other := s.answer[path]
		hold := s.hold
		s.mu.Unlock()
		if hold != nil {
			<-hold
		}
		if !other {
			raw = s.reply(method, path)
		}
		if _, err := io.WriteString(conn, raw); raw == "" || err != nil {
			return
		}
	}
}

func readRequest(r *bufio.Reader) (method, path, body string, err error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", "", "", err
	}
	f := strings.Fields(line)
	length := 0
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", "", "", err
		}
		if line == "\r\n" {
			break
		}
		fmt.Sscanf(line, "Content-Length: %d", &length)
	}
	content := make([]byte, length)
	_, err = io.ReadFull(r, content)
	return f[0], strings.TrimPrefix(f[1], "/api/v1/"), string(content), err
}

const noContent = "HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n"

func withContent(status int, content string) string {
	return fmt.Sprintf("HTTP/1.1 %d \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", status, len(content), content)
}

func (s *server) reply(method, path string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	become := func(from, to string) string {
		if s.state != from {
			return withContent(500, `["Error from API","The VM could not change","Invalid transition: InvalidStateTransition(`+s.state+`, `+to+`)"]`)
		}
		s.state = to
		return noContent
	}
	switch method + " " + path {
	case "GET vm.info":
		if s.state == "" {
			return withContent(404, `["Error from API","The VM info is not available","VM is not created"]`)
		}
		return withContent(200, `{"config":{"cpus":{"boot_vcpus":1}},"state":"`+s.state+`","memory_actual_size":1073741824,"device_tree":null}`)
	case "GET vm.counters":
		return withContent(200, `{"disk-root":{"read_bytes":4096,"read_ops":1,"write_bytes":8192,"write_ops":2,"read_latency_min":18446744073709551615},"nic-lan":{"rx_bytes":1},"seed":{"read_bytes":1}}`)
	case "PUT vm.pause":
		return become("Running", "Paused")
	case "PUT vm.resume":
		return become("Paused", "Running")
	case "PUT vm.reboot", "PUT vm.power-button":
		return become("Running", "Running")
	case "PUT vmm.shutdown":
		return withContent(200, "")
	}
	return withContent(404, `["not found"]`)
}

func (s *server) requests() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.asked, ", ")
}

func (s *server) control() hypervisor.Control {
	s.t.Helper()
	c, err := CloudHypervisor{}.Control(s.t.Context(), s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

func TestControl(t *testing.T) {
	s := newServer(t)
	c, ctx := s.control(), t.Context()
	status := func(want hypervisor.Status) {
		t.Helper()
		if got, err := c.Status(ctx); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	status(hypervisor.StatusRunning)
	must(c.Pause(ctx))
	must(c.Pause(ctx)) // twice is no error
	status(hypervisor.StatusPaused)
	if err := c.PowerButton(ctx); err == nil || !strings.Contains(err.Error(), "vm.power-button: cloud-hypervisor: Error from API: The VM could not change: Invalid transition") {
		t.Error(err)
	}
	must(c.Reset(ctx)) // resumes it
	status(hypervisor.StatusRunning)
	must(c.Resume(ctx))
	must(c.PowerButton(ctx))
	traffic, err := c.(hypervisor.DiskMeter).DiskTraffic(ctx)
	if want := (hypervisor.DiskTraffic{ReadBytes: 4096, WriteBytes: 8192, Reads: 1, Writes: 2}); err != nil || len(traffic) != 1 || traffic["root"] != want {
		t.Error(traffic, err)
	}
	must(c.Quit(ctx))
	for state, want := range map[string]hypervisor.Status{"Created": hypervisor.StatusStopping, "Shutdown": hypervisor.StatusStopping, "BreakPoint": hypervisor.StatusPaused} {
		s.mu.Lock()
		s.state = state
		s.mu.Unlock()
		status(want)
	}
	s.mu.Lock()
	s.state = ""
	s.mu.Unlock()
	var refused *Error
	if _, err := c.Status(ctx); !errors.As(err, &refused) || refused.Status != 404 || refused.Causes[2] != "VM is not created" {
		t.Error(err)
	}
	if got := s.requests(); !strings.HasPrefix(got, "GET vm.info, PUT vm.pause, PUT vm.pause, GET vm.info") {
		t.Error(got)
	}
}

// TestAnswers: whatever answers, the error says what was wrong, and the next
// request on the connection fails too, but for a refusal.
func TestAnswers(t *testing.T) {
	for name, test := range map[string]struct{ answer, want string }{
		"closed":        {"", "EOF"},
		"cut off":       {"HTTP/1.1 200 \r\nContent-Le", ""},
		"short":         {"HTTP/1.1 200 \r\nContent-Length: 10\r\n\r\n{}", ""},
		"not HTTP":      {"QMP\r\n\r\n", "the answer is not HTTP"},
		"no number":     {"HTTP/1.1 OK\r\n\r\n", "the answer is not HTTP"},
		"long line":     {strings.Repeat("x", maxLine+1) + "\n", "more than"},
		"many lines":    {"HTTP/1.1 200 \r\n" + strings.Repeat("X: y\r\n", maxLines+1), "more than 64 lines"},
		"huge":          {"HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n", "has the length"},
		"negative":      {"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n", "has the length"},
		"not JSON":      {withContent(200, "<html>"), "the answer of cloud-hypervisor"},
		"no content":    {noContent, "the answer of cloud-hypervisor"},
		"other state":   {withContent(200, `{"state":"Dreaming"}`), `the state "Dreaming"`},
		"plain refusal": {withContent(500, "Internal\n error"), "cloud-hypervisor: Internal error"},
		"mute refusal":  {withContent(400, ""), "refuses (status 400)"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.answer["vm.info"] = test.answer
			c := s.control()
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			if test.want != "" {
				cancel()
				ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
			}
			defer cancel()
			_, err := c.Status(ctx)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// TestSlow: a request ends with its context, and the connection is of no use then.
func TestSlow(t *testing.T) {
	s := newServer(t)
	s.hold = make(chan struct{})
	defer close(s.hold)
	c := s.control()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Pause(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := c.Resume(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("the answer to one request would be taken for that to another:", err)
	}
}

// TestCommands: a person's own requests.
func TestCommands(t *testing.T) {
	s := newServer(t)
	s.answer["vm.resize"] = noContent
	c := s.control().(hypervisor.Commander)
	for command, want := range map[string]string{
		"vm.info": "\"state\": \"Running\"", "vm.resize {\"desired_vcpus\": 2}": "", "vm.reboot": "", "vm.dance": "cloud-hypervisor: not found",
		"vm.resize {": "want JSON", "info": "want a request such as", "vm.info HTTP/1.1\r\nX: y": "want JSON", "vm.x\r\ny": "want a request such as",
	} {
		got, err := c.Human(t.Context(), command)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%q: got %q, want %q", command, got, want)
		}
	}
	if got := s.requests(); !strings.Contains(got, `PUT vm.resize {"desired_vcpus":2}`) {
		t.Error(got)
	}
}

func TestQuit(t *testing.T) {
	s := newServer(t)
	s.answer["vmm.shutdown"] = ""
	if err := s.control().Quit(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNobody(t *testing.T) {
	dir := t.TempDir()
	if _, err := (CloudHypervisor{}).Control(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, syscall.ENOENT) {
		t.Error(err)
	}
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := (CloudHypervisor{}).Control(t.Context(), stale); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
}

// TestResizeRefused: why an older version does not grow a disk.
func TestResizeRefused(t *testing.T) {
	for version, want := range map[string]string{
		"v51.2": "Unsupported operation (cloud-hypervisor v51.2 grows the disks alone that it reads by io_uring: want v52.0 or newer)",
		"v53.0": "Unsupported operation",
		"v49.0": "cloud-hypervisor v49.0 cannot grow a disk while the machine runs: want v50.0 or newer",
	} {
		s := newServer(t)
		s.answer["vmm.ping"] = withContent(200, `{"build_version":"`+version+`"}`)
		s.answer["vm.resize-disk"] = withContent(500, `["Error from API","Unsupported operation"]`)
		err := s.control().(hypervisor.DiskHotplug).ResizeDisk(t.Context(), hypervisor.HotDisk{Disk: config.Disk{Name: "data"}}, 2<<20)
		if err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: got %v, want %q at its end", version, err, want)
		}
	}
}

// TestHotShare: a share is asked for by the socket of its server, and taken out once.
func TestHotShare(t *testing.T) {
	s := newServer(t)
	started := &config.Machine{Name: "vm", MemoryOptions: config.MemoryOptions{Shared: true}}
	private := *started
	private.MemoryOptions.Shared = false
	share := config.Share{Name: "src", Path: "/srv/src", Tag: "the-src", Cache: "auto"}
	hot := hypervisor.HotShare{Machine: started, Share: share, Paths: config.SystemPaths(""), Started: &private,
		Host: hypervisor.Host{Programs: map[string]string{"virtiofsd": "/usr/libexec/virtiofsd"}}}
	if _, problems := (CloudHypervisor{}).PlanShare(hot); len(problems) != 1 || !strings.Contains(problems[0].Text, "memory that no other process can map") {
		t.Errorf("into memory of its own: %v", problems)
	}
	hot.Started = started
	plan, problems := CloudHypervisor{}.PlanShare(hot)
	if len(problems) > 0 || len(plan.Sidecars) != 1 || !plan.Sidecars[0].Reconnects || len(plan.Descriptors) != 0 {
		t.Fatalf("got %+v, %v", plan, problems)
	}
	s.answer["vm.add-fs"] = withContent(200, `{"id":"share-src","bdf":"0000:00:09.0"}`)
	c := s.control().(hypervisor.ShareHotplug)
	if err := c.AttachShare(t.Context(), hot, nil); err != nil {
		t.Fatal(err)
	}
	const want = `PUT vm.add-fs {"id":"share-src","num_queues":1,"queue_size":1024,"socket":"/run/vmctl/beside/vm-virtiofsd@vm:src/socket","tag":"the-src"}`
	if got := s.requests(); !strings.Contains(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}

	s.has(`{"share-src":{},"share-other":{},"nic-lan":{}}`, "share-src", "share-other")
	if got, err := c.PluggedShares(t.Context()); err != nil || strings.Join(got, " ") != "other src" {
		t.Errorf("plugged are %v, %v", got, err)
	}
	if err := c.AttachShare(t.Context(), hot, nil); !errors.Is(err, hypervisor.ErrPlugged) {
		t.Errorf("twice: %v", err)
	}
	// A guest that does not let go of it is asked once, and then waited for.
	s.answer["vm.remove-device"] = noContent
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.DetachShare(short, hot); !errors.Is(err, hypervisor.ErrNotReleased) {
		t.Errorf("got %v", err)
	}
	s.has(`{"nic-lan":{}}`)
	if err := c.DetachShare(t.Context(), hot); err != nil {
		t.Error(err)
	}
	if got := strings.Count(s.requests(), `PUT vm.remove-device {"id":"share-src"}`); got != 1 {
		t.Errorf("asked %d times: %s", got, s.requests())
	}
}

// has has vm.info tell of devices that the guest has, and of shares that are to stay.
func (s *server) has(tree string, shares ...string) {
	var fs []string
	for _, id := range shares {
		fs = append(fs, `{"id":"`+id+`"}`)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer["vm.info"] = withContent(200, `{"config":{"fs":[`+strings.Join(fs, ",")+`]},"state":"Running","device_tree":`+tree+`}`)
}

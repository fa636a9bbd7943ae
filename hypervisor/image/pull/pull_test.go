package pull

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/image"
)

// content is an image that no compression makes smaller, and in which no two
// parts are the same.
func content(seed uint64) []byte {
	b := make([]byte, 3<<20)
	r := rand.NewChaCha8([32]byte{byte(seed), 1})
	if _, err := r.Read(b); err != nil {
		panic(err)
	}
	return b
}

func sha256Of(b []byte) Sum {
	s := sha256.Sum256(b)
	return Sum{"sha256", hex.EncodeToString(s[:])}
}

func sha512Of(b []byte) Sum {
	s := sha512.Sum512(b)
	return Sum{"sha512", hex.EncodeToString(s[:])}
}

// server is a publisher's server that can do everything wrong.
type server struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex
	content  []byte
	etag     string
	lists    map[string]string // other paths
	breaks   []int             // of each answer: after how many bytes it breaks off; -1: does not
	noRange  bool              // whole answers only
	wrong    bool              // answers another range than it was asked for
	length   int               // added to Content-Length
	chunked  bool              // no Content-Length
	changeTo []byte            // content from the second answer on
	status   int               // instead of any answer
	missing  string            // a path that is not there
	requests []string          // "GET /path", with the range
}

func newServer(t *testing.T) *server {
	s := &server{t: t, content: content(1), etag: `"one"`, lists: map[string]string{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *server) url() string { return s.URL + "/disk.img" }

func (s *server) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string{}, s.requests...)
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, strings.TrimSpace(r.URL.Path+" "+r.Header.Get("Range")))
	if text, ok := s.lists[r.URL.Path]; ok {
		fmt.Fprint(w, text)
		return
	}
	switch {
	case s.status != 0:
		w.WriteHeader(s.status)
		return
	case r.URL.Path == s.missing:
		w.WriteHeader(http.StatusNotFound)
		return
	case r.URL.Path == "/moved":
		http.Redirect(w, r, "/disk.img", http.StatusFound)
		return
	case r.URL.Path == "/around":
		http.Redirect(w, r, "/around", http.StatusFound)
		return
	case r.URL.Path == "/file":
		http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		return
	}
	defer func() {
		if s.changeTo != nil {
			s.content, s.etag = s.changeTo, `"two"`
		}
	}()
	s.image(w, r)
}

func (s *server) image(w http.ResponseWriter, r *http.Request) {
	body, from := s.content, 0
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil && !s.noRange && r.Header.Get("If-Range") == s.etag {
		if from >= len(body) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		if s.wrong {
			from /= 2
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(body)-1, len(body)))
		defer func() { body = nil }()
	} else {
		from = 0
	}
	body = body[from:]
	w.Header().Set("ETag", s.etag)
	if !s.chunked {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)+s.length))
	}
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	breakAt := -1
	if len(s.breaks) > 0 {
		breakAt, s.breaks = s.breaks[0], s.breaks[1:]
	}
	if breakAt < 0 {
		// Writing more than was announced is an error, and so is announcing more.
		_, _ = w.Write(body)
		return
	}
	_, _ = w.Write(body[:min(breakAt, len(body))])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// newPuller is one into an empty store that does not wait.
func newPuller(t *testing.T) Puller {
	t.Helper()
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Fatal(err)
	}
	p := New(image.Store{Paths: config.SystemPaths(root)}, program, "test")
	p.Sleep = func(context.Context, time.Duration) {}
	return p
}

// stored checks that the store has exactly this under the name, and nothing
// half beside it.
func stored(t *testing.T, p Puller, name string, want []byte) {
	t.Helper()
	i, err := p.Store.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(p.Store.Paths.Image(name))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("stored %d bytes (%v), which are not the %d wanted", len(got), err, len(want))
	}
	if err := p.Store.Verify(i, func(int64) {}); err != nil {
		t.Error(err)
	}
	s, err := os.Stat(p.Store.Paths.Image(name))
	if err != nil || s.Mode() != 0o444 {
		t.Errorf("mode %v, %v", s.Mode(), err)
	}
	nothingLeft(t, p)
}

func nothingLeft(t *testing.T, p Puller) {
	t.Helper()
	left, err := filepath.Glob(p.Store.Paths.Images + "/.*")
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func nothingStored(t *testing.T, p Puller) {
	t.Helper()
	if names, err := p.Store.Names(); err != nil || len(names) > 0 {
		t.Errorf("stored: %v, %v", names, err)
	}
	if _, err := os.Lstat(p.Store.Paths.Image("a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the image's file is there: %v", err)
	}
}

// What servers do to a download that comes through all the same.
func TestDownload(t *testing.T) {
	half := len(content(1)) / 2
	for _, test := range []struct {
		name  string
		wrong func(*server)
		path  string // "" for /disk.img
		check bool   // with a checksum
		asked string // requests; "" where they do not matter
	}{
		{name: "nothing wrong", asked: "/disk.img"},
		{name: "nothing wrong, with a checksum", check: true, asked: "/disk.img"},
		{name: "breaks off", wrong: func(s *server) { s.breaks = []int{half} }, check: true,
			asked: fmt.Sprintf("/disk.img|/disk.img bytes=%d-", half)},
		{name: "breaks off, without a checksum", wrong: func(s *server) { s.breaks = []int{half} }},
		{name: "breaks off again and again", wrong: func(s *server) { s.breaks = []int{half, 1000, 0, 0, 100_000, 0, 0, 0, 1} }},
		{name: "breaks off before the first byte", wrong: func(s *server) { s.breaks = []int{0, 0, 0} }},
		{name: "breaks off, knows no ranges", wrong: func(s *server) { s.breaks, s.noRange = []int{half}, true }},
		{name: "breaks off, sends another range", wrong: func(s *server) { s.breaks, s.wrong = []int{half}, true }},
		{name: "breaks off, has no validator", wrong: func(s *server) { s.breaks, s.etag = []int{half}, "" },
			asked: "/disk.img|/disk.img"},
		{name: "breaks off, has a weak validator", wrong: func(s *server) { s.breaks, s.etag = []int{half}, `W/"x"` },
			asked: "/disk.img|/disk.img"},
		{name: "tells no length", wrong: func(s *server) { s.chunked = true }},
		{name: "tells no length and breaks off", wrong: func(s *server) { s.chunked, s.breaks = true, []int{half} }},
		{name: "redirects", path: "/moved", asked: "/moved|/disk.img"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, p := newServer(t), newPuller(t)
			if test.wrong != nil {
				test.wrong(s)
			}
			r := Request{Name: "a", URL: s.url()}
			if test.path != "" {
				r.URL = s.URL + test.path
			}
			if test.check {
				r.Checksum = sha512Of(s.content)
			}
			i, fresh, err := p.Pull(t.Context(), r)
			if err != nil || !fresh {
				t.Fatalf("fresh %v, %v; asked for %q", fresh, err, s.asked())
			}
			if i.Format != "raw" || i.Source != r.URL || i.Checksum != r.Checksum.String() || i.SHA256 != sha256Of(s.content).Hex {
				t.Errorf("got %+v", i)
			}
			stored(t, p, "a", content(1))
			if got := strings.Join(s.asked(), "|"); test.asked != "" && got != test.asked {
				t.Errorf("asked for %q, want %q", got, test.asked)
			}
		})
	}
}

// What keeps an image from being stored: nothing of it is ever seen.
func TestDownloadRefused(t *testing.T) {
	for _, test := range []struct {
		name    string
		wrong   func(*server)
		request func(*server, *Request)
		want    string
	}{
		{"wrong checksum", nil, func(s *server, r *Request) { r.Checksum = sha256Of(content(2)) },
			"URL/disk.img: wrong checksum: want " + sha256Of(content(2)).String() + ", got " + sha256Of(content(1)).Hex},
		{"announces more than it has", func(s *server) { s.length = 100 }, nil, "URL/disk.img: "},
		{"never sends a byte", func(s *server) { s.breaks = make([]int, 100) }, nil, "URL/disk.img: "},
		{"not there", func(s *server) { s.status = 404 }, nil, "URL/disk.img: the server says 404 Not Found"},
		{"out of order", func(s *server) { s.status = 503 }, nil, "URL/disk.img: the server says 503 Service Unavailable"},
		{"sends a range unasked", func(s *server) { s.status = 206 }, nil, "URL/disk.img: the server sent another part than was asked for"},
		{"sends nothing", func(s *server) { s.content = nil }, nil, "URL/disk.img: the image is empty"},
		{"redirects for ever", nil, func(s *server, r *Request) { r.URL = s.URL + "/around" }, "URL/around: more than 10 redirects"},
		{"redirects to a file of ours", nil, func(s *server, r *Request) { r.URL = s.URL + "/file" },
			"URL/file: redirected to file:///etc/passwd, which is neither http nor https"},
		{"another format", nil, func(s *server, r *Request) { r.Format = "qcow2" }, "URL/disk.img: want a qcow2 image, got raw"},
		{"no checksum in the list", func(s *server) { s.lists["/SUMS"] = "" }, func(s *server, r *Request) { r.Checksums = s.URL + "/SUMS" },
			"URL/SUMS: no checksum of disk.img in it"},
		{"no list", func(s *server) { s.status = 403 }, func(s *server, r *Request) { r.Checksums = s.URL + "/SUMS" },
			"the publisher's checksums: URL/SUMS: the server says 403 Forbidden"},
		{"endless list", func(s *server) { s.lists["/SUMS"] = strings.Repeat("x\n", maxList) }, func(s *server, r *Request) { r.Checksums = s.URL + "/SUMS" },
			"the publisher's checksums: URL/SUMS: longer than 4194304 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, p := newServer(t), newPuller(t)
			if test.wrong != nil {
				test.wrong(s)
			}
			r := Request{Name: "a", URL: s.url()}
			if test.request != nil {
				test.request(s, &r)
			}
			_, _, err := p.Pull(t.Context(), r)
			if err == nil || !strings.HasPrefix(strings.ReplaceAll(err.Error(), s.URL, "URL"), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
			nothingStored(t, p)
			if test.name != "announces more than it has" { // of which the beginning may be good
				nothingLeft(t, p)
			}
		})
	}
}

// A server that sends more than it announced: what is too much is not taken.
func TestLongerThanAnnounced(t *testing.T) {
	p := newPuller(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1024\r\nConnection: close\r\n\r\n%s", bytes.Repeat([]byte("x"), 4096))
			conn.Close()
		}
	}()
	if _, _, err := p.Pull(t.Context(), Request{Name: "a", URL: "http://" + l.Addr().String() + "/disk.img"}); err != nil {
		t.Fatal(err)
	}
	stored(t, p, "a", bytes.Repeat([]byte("x"), 1024))
}

// A redirect to where anybody on the way can change the image needs a checksum.
func TestRedirectFromHTTPS(t *testing.T) {
	s, p := newServer(t), newPuller(t)
	secure := httptest.NewTLSServer(http.RedirectHandler(s.url(), http.StatusFound))
	defer secure.Close()
	p.Client.Transport = secure.Client().Transport
	r := Request{Name: "a", URL: secure.URL + "/disk.img"}
	if _, _, err := p.Pull(t.Context(), r); err == nil || !strings.Contains(err.Error(), "there is no checksum to compare it with") {
		t.Errorf("got %v", err)
	}
	nothingStored(t, p)
	r.Checksum = sha256Of(s.content)
	if _, _, err := p.Pull(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	stored(t, p, "a", s.content)
}

func TestOffline(t *testing.T) {
	s, p := newServer(t), newPuller(t)
	s.Close()
	for _, r := range []Request{
		{Name: "a", URL: s.url()},
		{Name: "a", URL: s.url(), Checksums: s.URL + "/SUMS"},
		{Name: "a", URL: "http://no.such.host.invalid/disk.img"},
	} {
		_, _, err := p.Pull(t.Context(), r)
		if err == nil || !strings.Contains(err.Error(), "cannot be reached, is this host offline?") {
			t.Errorf("%v: got %v", r, err)
		}
	}
	nothingStored(t, p)
}

// A pull that was killed is gone on with by the next; where the image changed
// meanwhile, from its beginning.
func TestResume(t *testing.T) {
	half := len(content(1)) / 2
	for _, test := range []struct {
		name    string
		between func(*testing.T, *server, Puller)
		check   func(*server) Sum
		asked   string // of the second pull
		want    []byte
	}{
		{"the same", nil, nil, fmt.Sprintf("/disk.img bytes=%d-", half), content(1)},
		{"changed", func(_ *testing.T, s *server, _ Puller) { s.content, s.etag = content(2), `"two"` }, nil,
			fmt.Sprintf("/disk.img bytes=%d-", half), content(2)},
		// A server that gives another content the same validator.
		{"changed in secret", func(_ *testing.T, s *server, _ Puller) { s.content = content(2) },
			func(*server) Sum { return sha256Of(content(2)) }, "/disk.img", content(2)},
		{"spoilt by a crash", func(t *testing.T, _ *server, p Puller) {
			if err := os.WriteFile(p.part("a"), make([]byte, half), 0o600); err != nil {
				t.Fatal(err)
			}
		}, func(*server) Sum { return sha256Of(content(1)) }, fmt.Sprintf("/disk.img bytes=%d-|/disk.img", half), content(1)},
		{"note lost", func(t *testing.T, _ *server, p Puller) {
			if err := os.WriteFile(p.Store.Paths.ImageTemp("a", "part.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, nil, "/disk.img", content(1)},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, p := newServer(t), newPuller(t)
			r := Request{Name: "a", URL: s.url()}
			if test.check != nil {
				r.Checksum = test.check(s)
			}
			// The first process dies when half has come.
			s.breaks = []int{half}
			ctx, die := context.WithCancel(t.Context())
			p.Progress = func(now Progress) {
				if now.Phase == Retrying {
					die()
				}
			}
			if test.name == "changed in secret" {
				r.Checksum = sha256Of(content(1))
			}
			if _, _, err := p.Pull(ctx, r); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			nothingStored(t, p)
			before := len(s.asked())
			if test.between != nil {
				test.between(t, s, p)
			}
			if test.check != nil {
				r.Checksum = test.check(s)
			}
			if _, _, err := p.Pull(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			stored(t, p, "a", test.want)
			if got := strings.Join(s.asked()[before:], "|"); got != test.asked {
				t.Errorf("asked for %q, want %q", got, test.asked)
			}
		})
	}
}

// The content changes between two answers of one download.
func TestChangesMeanwhile(t *testing.T) {
	s, p := newServer(t), newPuller(t)
	s.breaks, s.changeTo = []int{1 << 20}, content(2)
	// What it was at first is what was wanted.
	_, _, err := p.Pull(t.Context(), Request{Name: "a", URL: s.url(), Checksum: sha256Of(content(1))})
	if _, wrong := errors.AsType[*ChecksumError](err); !wrong {
		t.Errorf("got %v", err)
	}
	nothingStored(t, p)
	nothingLeft(t, p)
}

// killedURL is what a test binary started by TestKilled pulls, and killedRoot
// where to.
const (
	killedURL  = "PULL_TEST_URL"
	killedRoot = "PULL_TEST_ROOT"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(killedURL); url != "" {
		p := New(image.Store{Paths: config.SystemPaths(os.Getenv(killedRoot))}, "", "test")
		_, _, err := p.Pull(context.Background(), Request{Name: "a", URL: url, Update: true})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// A pull that is killed at any moment leaves the image that was there, or the
// whole new one, or none; and nothing that is in the way of the next.
func TestKilled(t *testing.T) {
	s, p := newServer(t), newPuller(t)
	for i := range 20 {
		s.mu.Lock()
		s.content, s.etag = content(uint64(i)), fmt.Sprintf(`"%d"`, i)
		s.mu.Unlock()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killedURL+"="+s.url(), killedRoot+"="+p.Store.Paths.Root)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed, or done before
		if found, err := p.Store.Get("a"); err == nil {
			if err := p.Store.Verify(found, func(int64) {}); err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	if _, _, err := p.Pull(t.Context(), Request{Name: "a", URL: s.url(), Update: true}); err != nil {
		t.Fatal(err)
	}
	stored(t, p, "a", s.content)
}

// Many at once ask the publisher once.
func TestShared(t *testing.T) {
	s, p := newServer(t), newPuller(t)
	var wg sync.WaitGroup
	fresh := make(chan bool, 8)
	for range cap(fresh) {
		wg.Go(func() {
			p := p
			p.Sleep = func(context.Context, time.Duration) { time.Sleep(time.Millisecond) }
			_, new, err := p.Pull(t.Context(), Request{Name: "a", URL: s.url()})
			if err != nil {
				t.Error(err)
			}
			fresh <- new
		})
	}
	wg.Wait()
	close(fresh)
	made := 0
	for new := range fresh {
		if new {
			made++
		}
	}
	if made != 1 || len(s.asked()) != 1 {
		t.Errorf("stored by %d, asked for %q", made, s.asked())
	}
	stored(t, p, "a", s.content)
}

// A second pull takes what is stored; with Update it asks, and replaces what is
// not the newest, but never under a disk.
func TestUpdate(t *testing.T) {
	s, p := newServer(t), newPuller(t)
	list := func() {
		s.lists["/SUMS"] = sha512Of(s.content).Hex + "  disk.img\n" + sha512Of([]byte("x")).Hex + " *other.img\n"
	}
	list()
	r := Request{Name: "a", URL: s.url(), Checksums: s.URL + "/SUMS"}
	pull := func(update, wantFresh bool, asked string) {
		t.Helper()
		before := len(s.asked())
		r.Update = update
		_, fresh, err := p.Pull(t.Context(), r)
		if err != nil || fresh != wantFresh {
			t.Errorf("fresh %v, %v", fresh, err)
		}
		if got := strings.Join(s.asked()[before:], "|"); got != asked {
			t.Errorf("asked for %q, want %q", got, asked)
		}
	}
	pull(false, true, "/SUMS|/disk.img")
	pull(false, false, "")
	pull(true, false, "/SUMS")
	s.content, s.etag = content(2), `"two"`
	list()
	pull(false, false, "")
	stored(t, p, "a", content(1))
	pull(true, true, "/SUMS|/disk.img")
	stored(t, p, "a", content(2))

	makeChild(t, p, "web", "a")
	s.content = content(3)
	list()
	r.Update = true
	_, _, err := p.Pull(t.Context(), r)
	if used, ok := errors.AsType[*image.InUseError](err); !ok || used.Error() != "a is what the disk of web stands on" {
		t.Errorf("got %v", err)
	}
	stored(t, p, "a", content(2))
}

// makeChild makes a disk of a machine that stands on an image.
func makeChild(t *testing.T, p Puller, vm, name string) {
	t.Helper()
	i, err := p.Store.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(p.Store.Paths.StateDir(vm), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", p.Store.Paths.Image(name), "-F", i.Format,
		p.Store.Paths.Disk(vm, "root", "qcow2")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestUnpack(t *testing.T) {
	// Holes, and an end that is no whole block.
	plain := append(append(make([]byte, 1<<20), content(1)[:100_000]...), make([]byte, 300_001)...)
	pack := func(new func(io.Writer) (io.WriteCloser, error)) []byte {
		var b bytes.Buffer
		w, err := new(&b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for name, packed := range map[string][]byte{
		"xz":   pack(func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }),
		"gzip": pack(func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }),
		"zstd": pack(func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }),
	} {
		t.Run(name, func(t *testing.T) {
			s, p := newServer(t), newPuller(t)
			s.content = packed
			if _, _, err := p.Pull(t.Context(), Request{Name: "a", URL: s.url(), Checksum: sha256Of(packed)}); err != nil {
				t.Fatal(err)
			}
			stored(t, p, "a", plain)

			// Cut short, and without a checksum that would tell.
			s.content = packed[:len(packed)-20]
			_, _, err := p.Pull(t.Context(), Request{Name: "b", URL: s.url()})
			if err == nil {
				t.Error("an archive that is cut short was stored")
			}
			if _, err := p.Store.Get("b"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestFormats imports an image of each format as QEMU makes it, and refuses
// those that lead to other files.
func TestFormats(t *testing.T) {
	p := newPuller(t)
	dir := t.TempDir()
	base := filepath.Join(dir, "base.img")
	if err := os.WriteFile(base, content(1), 0o600); err != nil {
		t.Fatal(err)
	}
	qemuImg := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %v: %v: %s", args, err, out)
		}
	}
	for _, test := range []struct {
		name, format string
		options      string
		want         string // an error
	}{
		{name: "qcow2", format: "qcow2"},
		{name: "qcow2-old", format: "qcow2", options: "compat=0.10"},
		{name: "vmdk", format: "vmdk"},
		{name: "vmdk-stream", format: "vmdk", options: "subformat=streamOptimized"},
		{name: "vdi", format: "vdi"},
		{name: "vpc", format: "vpc", options: "force_size=on"},
		{name: "vpc-fixed", format: "vpc", options: "subformat=fixed,force_size=on"},
		{name: "vhdx", format: "vhdx"},
		{name: "vmdk-flat", format: "vmdk", options: "subformat=monolithicFlat", want: "the image is a description of other files: want one that is whole (qemu-img convert makes it so)"},
		{name: "qcow2-data", format: "qcow2", options: "data_file=" + dir + "/data", want: "the image has its content in another file: want one that is whole (qemu-img convert makes it so)"},
		{name: "qed", format: "qed", want: "want an image of the format qcow2, raw, vmdk, vdi, vpc, vhdx, got qed"},
	} {
		file := filepath.Join(dir, test.name)
		args := []string{"convert", "-q", "-f", "raw", "-O", test.format}
		if test.options != "" {
			args = append(args, "-o", test.options)
		}
		qemuImg(append(args, base, file)...)
		i, _, err := p.Pull(t.Context(), Request{Name: test.name, File: file})
		if test.want != "" {
			if err == nil || err.Error() != file+": "+test.want {
				t.Errorf("%s: got %v, want %s", test.name, err, test.want)
			}
			continue
		}
		if err != nil || i.Format != test.format || i.VirtualSize != int64(len(content(1))) {
			t.Errorf("%s: got %+v, %v", test.name, i, err)
		}
	}

	for name, args := range map[string][]string{
		"qcow2": {"create", "-q", "-f", "qcow2", "-b", base, "-F", "raw"},
		"vmdk":  {"create", "-q", "-f", "vmdk", "-b", filepath.Join(dir, "vmdk"), "-F", "vmdk"},
	} {
		file := filepath.Join(dir, name+"-child")
		qemuImg(append(args, file)...)
		if _, _, err := p.Pull(t.Context(), Request{Name: name + "-child", File: file}); err == nil || !strings.Contains(err.Error(), "the image stands on another file") {
			t.Errorf("%s: got %v", file, err)
		}
	}
	nothingLeft(t, p)
}

// A file of the host is copied, and stays what it was.
func TestImport(t *testing.T) {
	p := newPuller(t)
	file := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(file, content(1), 0o640); err != nil {
		t.Fatal(err)
	}
	_, _, err := p.Pull(t.Context(), Request{Name: "a", File: file, Checksum: sha256Of(content(2))})
	if _, wrong := errors.AsType[*ChecksumError](err); !wrong {
		t.Errorf("got %v", err)
	}
	nothingStored(t, p)
	i, fresh, err := p.Pull(t.Context(), Request{Name: "a", File: file, Checksum: sha256Of(content(1))})
	if err != nil || !fresh || i.Source != file || i.Format != "raw" {
		t.Fatalf("got %+v, %v, %v", i, fresh, err)
	}
	stored(t, p, "a", content(1))
	if s, err := os.Stat(file); err != nil || s.Mode() != 0o640 {
		t.Errorf("the file's mode is %v, %v", s.Mode(), err)
	}
	if _, _, err := p.Pull(t.Context(), Request{Name: "b", File: filepath.Dir(file)}); err == nil {
		t.Error("a directory was imported")
	}
}

func TestFindSum(t *testing.T) {
	a, b := sha256Of([]byte("a")), sha256Of([]byte("b"))
	long := sha512Of([]byte("a"))
	for _, test := range []struct {
		name, list, file string
		want             Sum
		err              string
	}{
		{"GNU", b.Hex + "  b.img\n" + a.Hex + "  a.img\n", "a.img", a, ""},
		{"binary", b.Hex + " *b.img\n" + a.Hex + " *a.img\n", "a.img", a, ""},
		{"in a folder", b.Hex + "  ./b.img\n" + a.Hex + "  ./a.img\n", "a.img", a, ""},
		{"BSD, signed", "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# a.img: 4 bytes\nSHA256 (a.img) = " + strings.ToUpper(a.Hex) + "\nSHA256 (b.img) = " + b.Hex + "\n", "a.img", a, ""},
		{"both", "SHA256 (a.img) = " + a.Hex + "\nSHA512 (a.img) = " + long.Hex + "\n", "a.img", long, ""},
		{"alone", a.Hex + "\n", "x.img", a, ""},
		{"alone, of the build that the name is linked to", a.Hex + "  a-20240101.img\n", "a.img", a, ""},
		{"not there", a.Hex + "  a.img\n" + b.Hex + "  b.img\n", "c.img", Sum{}, "no checksum of c.img in it"},
		{"twice", a.Hex + "  a.img\n" + b.Hex + "  a.img\n", "a.img", Sum{}, "two checksums of a.img in it"},
		{"wrong length", "SHA512 (a.img) = " + a.Hex + "\n", "a.img", Sum{}, "no checksum of a.img in it"},
		{"a page", "<html><body>404</body></html>", "a.img", Sum{}, "no checksum of a.img in it"},
	} {
		got, err := findSum([]byte(test.list), test.file)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if got != test.want || text != test.err {
			t.Errorf("%s: got %v, %q; want %v, %q", test.name, got, text, test.want, test.err)
		}
	}
}

func TestProgressText(t *testing.T) {
	for want, p := range map[string]Progress{
		"downloading 25 % of 400 MiB, 10 MiB/s, 30s left":         {Phase: Downloading, Done: 100 << 20, Total: 400 << 20, Rate: 10 << 20},
		"downloading 12 KiB":                                      {Phase: Downloading, Done: 12 << 10},
		"waiting for another process that stores it":              {Phase: Waiting},
		"connection broken, trying again 50 % of 20 GiB: no luck": {Phase: Retrying, Done: 10 << 30, Total: 20 << 30, Err: errors.New("no luck")},
	} {
		if got := p.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// onSmallDisk puts the store of a puller on a file system with room for size
// bytes.
func onSmallDisk(t *testing.T, p Puller, size int) {
	t.Helper()
	dir := p.Store.Paths.Images
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("vmctl-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// A full disk is said as what it is, leaves nothing half, and is no hindrance once
// there is room.
func TestNoRoom(t *testing.T) {
	plain := content(1)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(file, plain, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		room int
		edit func(*server)
		file string
		left bool // of the download, to go on with
	}{
		{name: "length known", room: 2 << 20},
		{name: "length not known", room: 2 << 20, edit: func(s *server) { s.chunked = true }, left: true},
		{name: "unpack", room: 4 << 20, edit: func(s *server) { s.content = packed.Bytes() }, left: true},
		{name: "import", room: 2 << 20, file: file},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, p := newServer(t), newPuller(t)
			onSmallDisk(t, p, test.room)
			if test.edit != nil {
				test.edit(s)
			}
			r := Request{Name: "a", URL: s.url(), File: test.file}
			if test.file != "" {
				r.URL = ""
			}
			_, _, err := p.Pull(t.Context(), r)
			if err == nil || !strings.Contains(err.Error(), "room for") || !errors.Is(err, unix.ENOSPC) {
				t.Errorf("got %v", err)
			}
			nothingStored(t, p)
			if !test.left {
				nothingLeft(t, p)
			}
			if _, err := os.Lstat(p.Store.Paths.ImageTemp("a", "new")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("half of it is there: %v", err)
			}
			if err := unix.Mount("vmctl-test", p.Store.Paths.Images, "", unix.MS_REMOUNT, "size=32m"); err != nil {
				t.Fatal(err)
			}
			if _, _, err := p.Pull(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			stored(t, p, "a", plain)
		})
	}
}

// An image that is deleted while a newer one of that name is pulled: the pull
// stores the newer one. One that is deleted right after is gone, and nothing of
// the pull is left in either case.
func TestDeletedMeanwhile(t *testing.T) {
	s, p := newServer(t), newPuller(t)
	r := Request{Name: "a", URL: s.url(), Update: true}
	if _, _, err := p.Pull(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	s.content, s.etag = content(2), `"two"`
	deleted := 0
	p.Progress = func(now Progress) {
		if now.Phase != Downloading || deleted > 0 {
			return
		}
		deleted++
		if err := p.Store.Delete("a"); err != nil {
			t.Error(err)
		}
		if left, err := p.Store.Left(); err != nil || len(left) > 0 {
			t.Errorf("what is being pulled is left over: %v, %v", left, err)
		}
		// As long as the pull goes on there is none.
		if err := p.Store.Delete("a"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("deleted again: %v", err)
		}
	}
	if _, fresh, err := p.Pull(t.Context(), r); err != nil || !fresh || deleted == 0 {
		t.Fatalf("fresh %v, %v", fresh, err)
	}
	stored(t, p, "a", content(2))
	if err := p.Store.Delete("a"); err != nil {
		t.Fatal(err)
	}
	nothingStored(t, p)
	nothingLeft(t, p)
}

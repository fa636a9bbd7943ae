package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serve starts a server on a real socket.
func serve(t *testing.T, scrollback int, input Input) (*Server, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "console.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(scrollback, input)
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s, socket
}

func dial(t *testing.T, socket string, mode Mode) net.Conn {
	t.Helper()
	conn, err := Dial(t.Context(), socket, mode)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// expect reads until want has come.
func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(r, got)
	if string(got[:n]) != want {
		t.Fatalf("got %q (%v), want %q", got[:n], err, want)
	}
}

func TestLogIsReplayed(t *testing.T) {
	s, socket := serve(t, 1<<20, nil)
	io.WriteString(s, "first byte after power-on\r\n")
	conn := dial(t, socket, ModeLog)
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "first byte after power-on\r\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestAttach(t *testing.T) {
	guest, host := net.Pipe()
	s, socket := serve(t, 1<<20, host)
	io.WriteString(s, "before ")
	a, b := dial(t, socket, ModeAttach), dial(t, socket, ModeFollow)
	expect(t, a, "before ")
	expect(t, b, "before ")
	io.WriteString(s, "after")
	expect(t, a, "after")
	expect(t, b, "after")

	io.WriteString(b, "a follower types nothing")
	io.WriteString(a, "ls\n")
	expect(t, guest, "ls\n")

	s.Close()
	for _, c := range []net.Conn{a, b} {
		var rest bytes.Buffer
		if err := Copy(t.Context(), c, &rest); err != nil || rest.Len() > 0 {
			t.Errorf("after the end: read %q, %v", rest.String(), err)
		}
	}
}

// What a client types right after its first line belongs to the guest.
func TestInputInFirstPacket(t *testing.T) {
	guest, host := net.Pipe()
	_, socket := serve(t, 1<<20, host)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "attach\nroot\n")
	expect(t, guest, "root\n")
}

// Clients that never read hold up neither the guest nor another client, and
// are told what they missed.
func TestStuckClients(t *testing.T) {
	const scrollback = 64 << 10
	s, socket := serve(t, scrollback, nil)
	var stuck []net.Conn
	for range 10 {
		stuck = append(stuck, dial(t, socket, ModeAttach))
	}
	reader := dial(t, socket, ModeFollow)
	total := 0
	for i := range 200 { // 200 times 16 KiB: far more than sockets buffer
		block := strings.Repeat(fmt.Sprintf("%06d\n", i), 16<<10/7)
		io.WriteString(s, block)
		total += len(block)
		expect(t, reader, block)
	}
	// Only now does one of them read: what its socket held, then a note, then
	// the last of it.
	go s.Close()
	got, err := io.ReadAll(stuck[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(got) >= total || !bytes.Contains(got, []byte("bytes of the console were missed here]")) {
		t.Errorf("stuck client got %d of %d bytes, want fewer, and a note", len(got), total)
	}
}

func TestScrollbackKeepsTheLastWholeLines(t *testing.T) {
	s, socket := serve(t, 100, nil)
	for i := range 1000 {
		fmt.Fprintf(s, "line %d\n", i)
	}
	got, err := io.ReadAll(dial(t, socket, ModeLog))
	if err != nil || !strings.HasPrefix(string(got), "line ") || !strings.HasSuffix(string(got), "line 998\nline 999\n") || len(got) < 80 {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestUnknownMode(t *testing.T) {
	_, socket := serve(t, 100, nil)
	got, err := io.ReadAll(dial(t, socket, "GET / HTTP/1.1"))
	if err != nil || !strings.Contains(string(got), `want "attach"`) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestTooManyClients(t *testing.T) {
	_, socket := serve(t, 100, nil)
	for range maxClients {
		dial(t, socket, ModeFollow)
	}
	// Accepted in order, so this is one too many.
	got, _ := io.ReadAll(dial(t, socket, ModeFollow))
	if !strings.Contains(string(got), "too many clients") {
		t.Errorf("got %q", got)
	}
}

func TestReplayHasNoQueries(t *testing.T) {
	s, socket := serve(t, 1<<20, nil)
	io.WriteString(s, "a\x1b[6nb")
	log, err := io.ReadAll(dial(t, socket, ModeLog))
	if err != nil || string(log) != "ab" {
		t.Errorf("log: got %q, %v; want it without the query", log, err)
	}
	conn := dial(t, socket, ModeAttach)
	expect(t, conn, "ab")
	io.WriteString(s, "\x1b[6nc") // somebody is there to answer
	expect(t, conn, "\x1b[6nc")
}

func TestQueries(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"plain \x1b[1;31mred\x1b[0m\r\n", "plain \x1b[1;31mred\x1b[0m\r\n"},
		{"\x1b[2J\x1b[H\x1b[?25l\x1b(B\x1b=", "\x1b[2J\x1b[H\x1b[?25l\x1b(B\x1b="},
		{"\x1b[6n\x1b[5n\x1b[?6n", ""},
		{"\x1b[c\x1b[>c\x1b[=0c\x1bZ", ""},
		{"\x1b[?2026$p\x1b[>q\x1b[?u\x1b[x", ""},
		{"\x1b[18t\x1b[14t\x1b[22t\x1b[8;24;80t", "\x1b[22t\x1b[8;24;80t"},
		{"\x1b]11;?\x07\x1b]4;1;?\x1b\\\x1b]0;title\x07", "\x1b]0;title\x07"},
		{"\x1bP$qm\x1b\\\x1bP+q544e\x1b\\", ""},
		{"\x05who\x05", "who"},
		{"\x1b[\x1b[6n", ""}, // the first has no effect, the second would
		{"\x1b[\x056n", ""},  // ENQ acts inside of it
		{"\xc2\x9b6n", "6n"}, // CSI in eight bits
		{"caf\xc2\xa9", "caf\xc2\xa9"},
		{"\x1b[12\x18x", "x"},
	} {
		var q cleaner
		if got := string(q.flush(q.appendTo(nil, []byte(test.in)))); got != test.want {
			t.Errorf("%q: got %q, want %q", test.in, got, test.want)
		}
		var one cleaner // the same byte by byte
		var out []byte
		for _, b := range []byte(test.in) {
			out = one.appendTo(out, []byte{b})
		}
		if got := string(one.flush(out)); got != test.want {
			t.Errorf("%q byte by byte: got %q, want %q", test.in, got, test.want)
		}
	}
}

func TestHistoryWipesNothing(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"before\r\n\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\r\n", "before\r\n\x1b[0mSeaBIOS\r\n"},
		{"\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe", "\x1b[=3hBdsDxe"}, // EDK2
		{"\x1b[r\x1b[H\x1b[Jlogin: ", "\x1b[rlogin: "},         // agetty
		{"\x1b[H\x1b[2J\x1b[3J", ""},                           // clear
		{"\x1b[1;1f\x1b[;H\x1b[0J\x1b[?2J", ""},
		{"\x1b[12;1H\x1b[1J\x1b[K\x1b[?7h\x1b[?25l", "\x1b[12;1H\x1b[1J\x1b[K\x1b[?7h\x1b[?25l"},
		{"nul\x00s\x1b[\x002J", "nuls"},
		{"\xc2\xa9", "\xc2\xa9"},
	} {
		q := cleaner{history: true}
		if got := string(q.flush(q.appendTo(nil, []byte(test.in)))); got != test.want {
			t.Errorf("%q: got %q, want %q", test.in, got, test.want)
		}
	}
}

// What a guest clears is not lost to who comes later; who is there sees it
// cleared.
func TestReplayWipesNothing(t *testing.T) {
	s, socket := serve(t, 1<<20, nil)
	io.WriteString(s, "one\x1bc\x1b[2Jtwo\x00")
	log, err := io.ReadAll(dial(t, socket, ModeLog))
	if err != nil || string(log) != "onetwo" {
		t.Errorf("log: got %q, %v", log, err)
	}
	attached, following := dial(t, socket, ModeAttach), dial(t, socket, ModeFollow)
	expect(t, attached, "onetwo")
	expect(t, following, "onetwo")
	io.WriteString(s, "\x1b[2Jthree")
	expect(t, attached, "\x1b[2Jthree")
	expect(t, following, "\x1b[2Jthree")
}

// TestLive has the end of the history told once all of it was read, and before
// anything newer is.
func TestLive(t *testing.T) {
	for _, history := range []string{"", "history", strings.Repeat("history\n", 4096)} {
		s, socket := serve(t, 1<<20, nil)
		io.WriteString(s, history)
		conn, err := Dial(t.Context(), socket, ModeAttach)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		got := new(syncBuffer)
		conn.Live = func() {
			io.WriteString(got, "[live]")
			go func() {
				io.WriteString(s, "news\x00")
				s.Close()
			}()
		}
		if err := Copy(t.Context(), conn, got); err != nil || got.String() != history+"[live]news\x00" {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

func FuzzQueries(f *testing.F) {
	f.Add([]byte("\x1b[6n\x1b]11;?\x07"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var q cleaner
		out := q.flush(q.appendTo(nil, in))
		if len(out) > len(in) {
			t.Errorf("%q became longer: %q", in, out)
		}
		var s splitter
		s.split(in, func(line string) {
			if strings.ContainsAny(line, "\n\r\x1b\x00") {
				t.Errorf("%q gave the line %q", in, line)
			}
		})
	})
}

func TestSplitter(t *testing.T) {
	for _, test := range []struct {
		in   string
		want []string
	}{
		{"one\r\ntwo\n\n\r\nthree\n", []string{"one", "two", "three"}},
		{"\x1b[0;32m  OK  \x1b[0m] Started\r\n", []string{"  OK  ] Started"}},
		{"10%\r20%\r100%\r\n", []string{"100%"}},
		{"pass\bt\n", []string{"past"}},
		{"\x1b]0;title\x07shown\n", []string{"shown"}},
		{"bad \xff utf-8\tand tab\x00\n", []string{"bad \uFFFD utf-8\tand tab"}},
		{"grün ©\n", []string{"grün ©"}},
		{strings.Repeat("é", 1500) + "\n", []string{strings.Repeat("é", 1024), strings.Repeat("é", 476)}},
	} {
		var s splitter
		var got []string
		s.split([]byte(test.in), func(line string) { got = append(got, line) })
		if fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("%q: got %q, want %q", test.in, got, test.want)
		}
	}
}

func TestLinesLogsAPrompt(t *testing.T) {
	got := make(chan string)
	l := NewLines(func(line string) { got <- line })
	io.WriteString(l, "login: ")
	if line := <-got; line != "login:" {
		t.Errorf("got %q", line)
	}
	go io.WriteString(l, "root\n")
	if line := <-got; line != "root" {
		t.Errorf("got %q", line)
	}
	l.Close(time.Minute)
}

// A log that does not take lines holds up nothing.
func TestLinesSlowLog(t *testing.T) {
	free := make(chan struct{})
	var got []string
	l := NewLines(func(line string) {
		<-free
		got = append(got, line)
	})
	for range 100 {
		io.WriteString(l, strings.Repeat("line\n", 1000))
	}
	close(free)
	l.Close(time.Minute)
	if last := got[len(got)-1]; !strings.Contains(last, "lines not logged") {
		t.Errorf("got %d lines, the last %q; want a number of lost ones", len(got), last)
	}
}

func TestLimiter(t *testing.T) {
	now := time.Unix(0, 0)
	var got []string
	l := newLimiter(func(line string) { got = append(got, line) }, func() time.Time { return now })
	for range lineBurst + 500 {
		l.log("x")
	}
	if len(got) != lineBurst {
		t.Fatalf("logged %d lines at once, want %d", len(got), lineBurst)
	}
	now = now.Add(2 * time.Second)
	l.log("y")
	want := "[vmctl: 500 lines not logged: the console writes more than the journal is given, 100 lines a second] y"
	if s := strings.Join(got[lineBurst:], " "); s != want {
		t.Errorf("got %q, want %q", s, want)
	}
}

func TestSession(t *testing.T) {
	guest, host := net.Pipe()
	s, socket := serve(t, 1<<20, host)
	io.WriteString(s, "login: ")

	in, typed := io.Pipe()
	out := new(syncBuffer)
	pressed := make(chan bool, 1)
	session := Session{In: in, Out: out, CtrlAltDel: func() error {
		pressed <- true
		return errors.New("no keyboard")
	}}
	ended := make(chan error)
	conn := dial(t, socket, ModeAttach)
	go func() { ended <- session.Run(t.Context(), conn) }()
	for out.String() == "" {
		time.Sleep(time.Millisecond)
	}

	go io.WriteString(typed, "root\x1d\x1d\n\x1d?\x1dd")
	expect(t, guest, "root\x1d\n")
	<-pressed
	io.WriteString(typed, "\x1d")
	io.WriteString(typed, "q")
	if err := <-ended; err != ErrDetached {
		t.Errorf("ended with %v, want %v", err, ErrDetached)
	}
	for _, want := range []string{"login: ", "this help", "no keyboard"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q was not shown: %q", want, out)
		}
	}
}

func TestSessionEndsWithTheMachine(t *testing.T) {
	s, socket := serve(t, 1<<20, nil)
	in, _ := io.Pipe()
	out := new(syncBuffer)
	ended := make(chan error)
	conn := dial(t, socket, ModeAttach)
	go func() { ended <- Session{In: in, Out: out}.Run(t.Context(), conn) }()
	io.WriteString(s, "Power down\r\n")
	// The client has to be there before the end to be sent it.
	for out.String() == "" {
		time.Sleep(time.Millisecond)
	}
	s.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestSessionIsCancelled(t *testing.T) {
	_, socket := serve(t, 1<<20, nil)
	in, _ := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Session{In: in, Out: io.Discard}.Run(ctx, dial(t, socket, ModeAttach))
	if err != context.Canceled {
		t.Errorf("got %v", err)
	}
}

func TestDialNothing(t *testing.T) {
	_, err := Dial(t.Context(), filepath.Join(t.TempDir(), "console.sock"), ModeLog)
	if !isNotExist(err) {
		t.Errorf("got %v", err)
	}
}

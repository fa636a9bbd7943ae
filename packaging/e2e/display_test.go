//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/des"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	pixels "image"
	"image/png"
	"io"
	"math/bits"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// grant is what vmctl view --print says.
type grant struct {
	Name, Type, Socket, Host, Password string
	Port                               int
	ExpiresAt                          time.Time `json:"expires_at"`
}

func (v *vm) grant(options ...string) grant {
	v.t.Helper()
	return decode[grant](v.t, run(v.t, append([]string{"vmctl", "view", "--print", "-o", "json", v.name}, options...)...))
}

// errRefused is what a display says to who has not got its password.
var errRefused = errors.New("the display refuses the password")

// shakeVNC is the beginning of RFB (RFC 6143, 7.1 to 7.3), with VNC's
// authentication, up to the name of the desktop.
func shakeVNC(conn io.ReadWriter, password string) (name string, err error) {
	read := func(n int) []byte {
		p := make([]byte, n)
		if err == nil {
			_, err = io.ReadFull(conn, p)
		}
		return p
	}
	write := func(p []byte) {
		if err == nil {
			_, err = conn.Write(p)
		}
	}
	if greeting := read(12); err == nil && string(greeting) != "RFB 003.008\n" {
		return "", fmt.Errorf("greeted with %q", greeting)
	}
	write([]byte("RFB 003.008\n"))
	const vncAuthentication = 2
	types := read(int(read(1)[0]))
	if err == nil && !bytes.Equal(types, []byte{vncAuthentication}) {
		return "", fmt.Errorf("security types %v", types)
	}
	write([]byte{vncAuthentication})
	challenge := read(16)
	var key [8]byte
	copy(key[:], password)
	for i := range key {
		key[i] = bits.Reverse8(key[i])
	}
	cipher, _ := des.NewCipher(key[:])
	cipher.Encrypt(challenge[:8], challenge[:8])
	cipher.Encrypt(challenge[8:], challenge[8:])
	write(challenge)
	if result := read(4); err == nil && binary.BigEndian.Uint32(result) != 0 {
		return "", errRefused
	}
	write([]byte{0}) // "leave me alone with it", as remote-viewer says
	server := read(24)
	text := read(int(binary.BigEndian.Uint32(server[20:])))
	return string(text), err
}

// shakeSPICE is the beginning of SPICE's main channel: the link, and the ticket.
func shakeSPICE(conn io.ReadWriter, password string) error {
	var link bytes.Buffer
	link.WriteString("REDQ")
	for _, v := range []any{uint32(2), uint32(2), uint32(18), uint32(0), uint8(1), uint8(0), uint32(0), uint32(0), uint32(18)} {
		_ = binary.Write(&link, binary.LittleEndian, v)
	}
	if _, err := conn.Write(link.Bytes()); err != nil {
		return err
	}
	header := make([]byte, 16)
	if _, err := io.ReadFull(conn, header); err != nil {
		return err
	}
	if string(header[:4]) != "REDQ" {
		return fmt.Errorf("answered with %q", header)
	}
	reply := make([]byte, binary.LittleEndian.Uint32(header[12:]))
	if _, err := io.ReadFull(conn, reply); err != nil {
		return err
	}
	if code := binary.LittleEndian.Uint32(reply); code != 0 {
		return fmt.Errorf("link refused with %d", code)
	}
	public, err := x509.ParsePKIXPublicKey(reply[4 : 4+162])
	if err != nil {
		return err
	}
	ticket, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, public.(*rsa.PublicKey), []byte(password+"\x00"), nil)
	if err != nil {
		return err
	}
	if _, err := conn.Write(ticket); err != nil {
		return err
	}
	result := make([]byte, 4)
	if _, err := io.ReadFull(conn, result); err != nil {
		return err
	}
	const permissionDenied = 7
	switch code := binary.LittleEndian.Uint32(result); code {
	case 0:
		return nil
	case permissionDenied:
		return errRefused
	default:
		return fmt.Errorf("ticket refused with %d", code)
	}
}

// dialDisplay connects to a display.
func dialDisplay(t testing.TB, network, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// vnc is a handshake on a new connection, which stays.
func (v *vm) vnc(g grant) (net.Conn, error) {
	v.t.Helper()
	conn := dialDisplay(v.t, "unix", g.Socket)
	name, err := shakeVNC(conn, g.Password)
	if err == nil && !strings.Contains(name, v.name) {
		v.t.Errorf("the desktop is named %q", name)
	}
	return conn, err
}

// picture takes a screenshot, and looks at it.
func (v *vm) picture(file string) pixels.Image {
	v.t.Helper()
	run(v.t, "vmctl", "screenshot", "--force", v.name, file)
	data, err := os.ReadFile(file)
	if err != nil {
		v.t.Fatal(err)
	}
	return decodePicture(v.t, data)
}

func decodePicture(t testing.TB, data []byte) pixels.Image {
	t.Helper()
	picture, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return picture
}

// lit is how many pixels of a picture are not black.
func lit(picture pixels.Image) int {
	n := 0
	for y := range picture.Bounds().Dy() {
		for x := range picture.Bounds().Dx() {
			if r, g, b, _ := picture.At(x, y).RGBA(); r+g+b > 0 {
				n++
			}
		}
	}
	return n
}

// One guest with VNC on its socket: who is let in, what it shows, what is typed,
// and the hypervisor's monitor beside it.
func TestDisplay(t *testing.T) {
	t.Parallel()
	v := newVM(t, "screen", "display.type = \"vnc\"\n")
	v.boot()
	work := t.TempDir()

	if level := v.exposure(); level > 1.0 {
		t.Errorf("exposure %.1f with a display on a socket", level)
	}
	socket := filepath.Join(v.runtimeDir(), "display.sock")
	if s, err := os.Stat(socket); err != nil || s.Mode().Perm()&0o077 != 0 {
		t.Errorf("%s: %v, %v: others reach it", socket, s, err)
	}

	t.Run("passwords", func(t *testing.T) {
		if _, err := v.vnc(grant{Socket: socket, Password: ""}); !errors.Is(err, errRefused) {
			t.Errorf("before any grant: %v", err)
		}
		first := v.grant()
		if first.Type != "vnc" || first.Socket != socket || len(first.Password) != 8 || time.Until(first.ExpiresAt) > 2*time.Minute {
			t.Errorf("grant %+v", first)
		}
		watching, err := v.vnc(first)
		if err != nil {
			t.Fatal("the right password:", err)
		}
		wrong := first
		wrong.Password = "12345678"
		if _, err := v.vnc(wrong); !errors.Is(err, errRefused) {
			t.Errorf("a wrong password: %v", err)
		}
		second := v.grant("--expires", "1h")
		if _, err := v.vnc(first); !errors.Is(err, errRefused) {
			t.Errorf("a password that was replaced: %v", err)
		}
		if _, err := v.vnc(second); err != nil {
			t.Errorf("a second viewer: %v", err)
		}
		short := v.grant("--expires", "1s")
		eventually(t, "the password has expired", func() bool {
			conn, err := v.vnc(short)
			conn.Close() // QEMU has room for 32
			return errors.Is(err, errRefused)
		})
		// Who is in stays: asked for a picture, the display sends one.
		if _, err := watching.Write([]byte{3, 0, 0, 0, 0, 0, 0, 1, 0, 1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(watching, make([]byte, 4)); err != nil {
			t.Errorf("the first viewer was thrown out: %v", err)
		}
		text := run(t, "systemctl", "cat", v.unit()) + v.journal() + run(t, "cat", fmt.Sprintf("/proc/%d/cmdline", v.mainPID()))
		for _, g := range []grant{first, second, short} {
			if strings.Contains(text, g.Password) {
				t.Error("a password is in the unit, the journal or the command line")
			}
		}
	})

	t.Run("screenshot", func(t *testing.T) {
		file := filepath.Join(work, "screen.png")
		v.typeLine(`for i in 1 2 3 4 5; do echo "### vmctl $i ###"; done > /dev/tty1; echo shown`)
		v.expect(`\nshown`)
		picture := v.picture(file)
		if size := picture.Bounds().Size(); size != pixels.Pt(720, 400) {
			t.Errorf("%v pixels, want those of VGA's text mode", size)
		}
		if n := lit(picture); n < 500 {
			t.Errorf("%d pixels are lit", n)
		}
		contains(t, fail(t, 4, "vmctl", "screenshot", v.name, file), "is there already", "--force replaces it")
		contains(t, fail(t, 2, "vmctl", "screenshot", "--head", "1", v.name, work+"/second.png"), "want a monitor from 0 to 0")
		contains(t, fail(t, 1, "vmctl", "screenshot", v.name, work+"/none/a.png"), "no such file")
		contains(t, fail(t, 4, "vmctl", "screenshot", "-f", v.name, work), "want a file")
		decodePicture(t, []byte(try("vmctl", "screenshot", v.name, "-").stdout))
		about := decode[map[string]any](t, run(t, "vmctl", "screenshot", "-o", "json", v.name, work+"/json.png"))
		if about["width"] != 720.0 || about["file"] != work+"/json.png" {
			t.Errorf("said %v", about)
		}
		if left, err := filepath.Glob(work + "/.*"); err != nil || len(left) > 0 {
			t.Errorf("left %v", left)
		}
	})

	t.Run("keys", func(t *testing.T) {
		const text = "Hello, World_42! ~`@#$%^&*()-=+[]{}|;:'\"<>./?"
		v.typeLine("head -n 1 /dev/tty1")
		v.expect("head -n 1 /dev/tty1")
		run(t, "vmctl", "sendkey", v.name, "--hold", "100ms", "--text", text, "backspace", "Q", "enter")
		v.expect(`\n` + regexp.QuoteMeta(text[:len(text)-1]+"q"))
		contains(t, fail(t, 2, "vmctl", "sendkey", v.name, "ctrl-alt-delte"), `no key is named "delte"`, `did you mean "delete"?`)
		contains(t, fail(t, 2, "vmctl", "sendkey", v.name, "--text", "grün"), `'ü' is not on a US keyboard`)
		contains(t, fail(t, 2, "vmctl", "sendkey", v.name), "want keys")
		run(t, "vmctl", "pause", v.name)
		contains(t, fail(t, 4, "vmctl", "sendkey", v.name, "a"), "invalid transition from paused")
		run(t, "vmctl", "resume", v.name)
	})

	t.Run("monitor", func(t *testing.T) { v.tryMonitor(t) })
	t.Run("viewer", func(t *testing.T) { v.tryViewer(t, work) })
	t.Run("browser", func(t *testing.T) { v.tryBrowser(t) })
	t.Run("afar", func(t *testing.T) { v.viewedFromAfar(t) })

	t.Run("saved", func(t *testing.T) {
		run(t, "vmctl", "save", v.name)
		contains(t, fail(t, 4, "vmctl", "screenshot", v.name, work+"/saved.png"), "invalid transition from saved")
		run(t, "vmctl", "start", v.name)
		if _, err := v.vnc(v.grant()); err != nil {
			t.Error(err)
		}
		if n := lit(v.picture(work + "/loaded.png")); n < 500 {
			t.Errorf("%d pixels are lit", n)
		}
	})

	contains(t, fail(t, 7, "setpriv", "--reuid=65534", "--clear-groups", "vmctl", "view", v.name), "permission denied", "run it as root")
	contains(t, fail(t, 7, "setpriv", "--reuid=65534", "--clear-groups", "vmctl", "monitor", v.name, "-c", "quit"), "permission denied")

	// What is connected ends with the machine.
	writeFile(t, "/usr/share/novnc/vnc.html", "the page")
	defer os.RemoveAll("/usr/share/novnc")
	p := v.page(t)
	_, to, _ := p.get(p.client, p.address.String())
	settings, _ := url.ParseQuery(strings.TrimPrefix(to, "/vnc.html#"))
	conn, err := p.connect("http://" + p.address.Host)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shakeVNC(conn, settings.Get("password")); err != nil {
		t.Error(err)
	}
	run(t, "vmctl", "kill", v.name)
	if err := <-p.ended; err != nil {
		t.Errorf("the machine ended: %v, %s", err, p.stderr)
	}
	for _, command := range [][]string{{"view"}, {"view", "--print"}, {"screenshot"}, {"monitor"}} {
		contains(t, fail(t, 4, append(append([]string{"vmctl"}, command...), v.name)...), "invalid transition from stopped")
	}
	contains(t, fail(t, 4, "vmctl", "sendkey", v.name, "a"), "invalid transition from stopped")
	contains(t, fail(t, 3, "vmctl", "view", "screeen"), `did you mean "screen"?`)
}

// tryMonitor speaks to the hypervisor in every way.
func (v *vm) tryMonitor(t *testing.T) {
	contains(t, run(t, "vmctl", "monitor", v.name, "--command", "info status"), "VM status: running")
	contains(t, run(t, "sh", "-c", "printf 'info status\n\ninfo name\n' | vmctl monitor "+v.name), "VM status: running", v.name)
	contains(t, fail(t, 1, "vmctl", "monitor", v.name, "-c", "no-such-command"), "monitor of "+v.name+": unknown command: 'no-such-command'")
	if got := decode[map[string]any](t, run(t, "vmctl", "monitor", v.name, "--qmp", "-c", `{"execute": "query-status"}`)); got["status"] != "running" {
		t.Errorf("query-status: %v", got)
	}
	contains(t, fail(t, 1, "vmctl", "monitor", v.name, "--qmp", "-c", "query-status"), "want a QMP command")
	contains(t, fail(t, 1, "vmctl", "monitor", v.name, "--qmp", "-c", `{"execute": "nonsense"}`), "nonsense")
	raw := run(t, "sh", "-c", `echo '{"execute":"qmp_capabilities"} {"execute":"query-name","id":7}' | vmctl monitor --qmp `+v.name)
	contains(t, raw, `{"QMP": `, `"id": 7`, fmt.Sprintf(`"name": %q`, v.name))
	contains(t, fail(t, 1, "sh", "-c", "echo garbage | vmctl monitor --qmp "+v.name), "want commands in JSON")

	// At a terminal, which script(1) makes, typing once what went before is shown.
	terminal := filepath.Join(t.TempDir(), "terminal")
	shown := func(text string) string {
		return "until grep -qF '" + text + "' " + terminal + "; do sleep .1; done; "
	}
	seen := run(t, "timeout", "120", "sh", "-c", "touch "+terminal+"; { "+
		shown("("+v.name+")")+`printf 'info status\r'; `+shown("VM status")+`printf '\035?'; `+shown("leave")+`printf '\035q'; `+
		"} | script -qefc 'vmctl monitor "+v.name+"' "+terminal)
	contains(t, seen, "("+v.name+") info status", "VM status: running", "Ctrl-] q  leave")

	// Who has it has it alone; what vmctl does otherwise goes by other ways.
	conn := dialDisplay(t, "unix", filepath.Join(v.runtimeDir(), "qmp.sock"))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	contains(t, fail(t, 4, "vmctl", "monitor", v.name, "-c", "info status"), "somebody else has the monitor")
	contains(t, run(t, "vmctl", "list"), v.name)
	run(t, "vmctl", "pause", v.name)
	run(t, "vmctl", "resume", v.name)
	conn.Close()
	eventually(t, "the monitor is free again", func() bool {
		return try("vmctl", "monitor", v.name, "-c", "info status").code == 0
	})
}

// tryViewer has a program in remote-viewer's place find its way to the display.
func (v *vm) tryViewer(t *testing.T, work string) {
	bin := filepath.Join(work, "bin")
	env := func(more ...string) []string {
		return append([]string{"XDG_RUNTIME_DIR=" + work, "PATH=" + os.Getenv("PATH")}, more...)
	}
	view := func(env []string) *exec.Cmd {
		cmd := exec.Command("vmctl", "view", v.name)
		cmd.Env = env
		return cmd
	}
	for why, env := range map[string][]string{"there is no screen": env(), "remote-viewer is not installed": env("DISPLAY=:1")} {
		out, err := view(env).CombinedOutput()
		if err != nil {
			t.Error(err)
		}
		contains(t, string(out), why, "vnc on "+v.runtimeDir()+"/display.sock", "password", "vmctl -H root@")
	}

	// It tells what it was to open, and waits for leave to end.
	writeFile(t, bin+"/remote-viewer", "#!/bin/sh\nstat -c %a \"$2\" > "+work+"/mode\ncp \"$2\" "+work+"/copy && mv "+work+"/copy "+work+"/opened\nrm \"$2\"\nuntil [ -e "+work+"/leave ]; do sleep .1; done\n")
	if err := os.Chmod(bin+"/remote-viewer", 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := view(append(env("DISPLAY=:1"), "PATH="+bin+":"+os.Getenv("PATH")))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the viewer is there", func() bool { _, err := os.Stat(work + "/opened"); return err == nil })
	text := run(t, "cat", work+"/opened")
	contains(t, text, "[virt-viewer]\ntype=vnc\nhost=127.0.0.1\n", "\ntitle=screen\ndelete-this-file=1")
	if mode := run(t, "cat", work+"/mode"); mode != "600" {
		t.Errorf("the file has mode %s", mode)
	}
	said := regexp.MustCompile(`port=(\d+)\npassword=(\w+)\n`).FindStringSubmatch(text)
	if said == nil {
		t.Fatal(text)
	}
	if strings.Contains(run(t, "ps", "axww"), said[2]) {
		t.Error("the password is in a command line")
	}
	for range 2 {
		if _, err := shakeVNC(dialDisplay(t, "tcp", "127.0.0.1:"+said[1]), said[2]); err != nil {
			t.Error(err)
		}
	}
	writeFile(t, work+"/leave", "")
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, stderr.String())
	}
	if _, err := net.Dial("tcp", "127.0.0.1:"+said[1]); err == nil {
		t.Error("the port is still there without the viewer")
	}
	if left, _ := filepath.Glob(work + "/vmctl-*"); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// page is a vmctl view --web that runs.
type page struct {
	t       *testing.T
	address *url.URL
	client  *http.Client
	stderr  *bytes.Buffer
	ended   chan error
}

func (v *vm) page(t *testing.T, options ...string) *page {
	t.Helper()
	cmd := exec.Command("vmctl", append([]string{"view", "--web", v.name}, options...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	jar, _ := cookiejar.New(nil)
	p := &page{t: t, stderr: &bytes.Buffer{}, ended: make(chan error, 1)}
	p.client = &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	cmd.Stderr = p.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	line := make([]byte, 200)
	n, _ := out.Read(line)
	go func() { p.ended <- cmd.Wait() }()
	if p.address, err = url.Parse(strings.TrimSpace(string(line[:n]))); err != nil || p.address.Host == "" {
		t.Fatalf("%v in %q: %s", err, line[:n], p.stderr)
	}
	return p
}

// get asks for a page, and returns the status, the place to go to, and the text.
func (p *page) get(client *http.Client, address string) (int, string, string) {
	p.t.Helper()
	r, err := client.Get(address)
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Body.Close()
	body, _ := io.ReadAll(r.Body)
	return r.StatusCode, r.Header.Get("Location"), string(body)
}

// connect is what the page's script does.
func (p *page) connect(origin string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	p.t.Cleanup(cancel)
	conn, _, err := websocket.Dial(ctx, "ws://"+p.address.Host+"/websockify", &websocket.DialOptions{
		HTTPClient: p.client, HTTPHeader: http.Header{"Origin": {origin}}, Subprotocols: []string{"binary"},
	})
	if err != nil {
		return nil, err
	}
	return websocket.NetConn(ctx, conn, websocket.MessageBinary), nil
}

// tryBrowser is a browser, and what else may come to the page's address.
func (v *vm) tryBrowser(t *testing.T) {
	contains(t, fail(t, 1, "vmctl", "view", "--web", v.name), "noVNC", "apt install novnc")
	writeFile(t, "/usr/share/novnc/vnc.html", "the page")
	t.Cleanup(func() { os.RemoveAll("/usr/share/novnc") })
	late := v.page(t, "--expires", "1s")
	if err := <-late.ended; err == nil || !strings.Contains(late.stderr.String(), "no browser came") {
		t.Errorf("nobody came: %v, %s", err, late.stderr)
	}

	p := v.page(t)
	stranger := &http.Client{CheckRedirect: p.client.CheckRedirect}
	own := "http://" + p.address.Host
	for _, address := range []string{own + "/", own + "/vnc.html", own + "/websockify", own + "/?token=guess"} {
		if status, _, _ := p.get(stranger, address); status != http.StatusForbidden {
			t.Errorf("%s without the token: %d", address, status)
		}
	}
	status, to, _ := p.get(p.client, p.address.String())
	if status != http.StatusSeeOther || !strings.HasPrefix(to, "/vnc.html#") {
		t.Fatalf("%d, to %s", status, to)
	}
	if status, _, _ := p.get(stranger, p.address.String()); status != http.StatusForbidden {
		t.Errorf("the token lets a second one in: %d", status)
	}
	if status, _, text := p.get(p.client, own+"/vnc.html"); status != http.StatusOK || text != "the page" {
		t.Errorf("%d %s", status, text)
	}
	request, _ := http.NewRequest("GET", own+"/vnc.html", nil)
	request.Host = "evil.example:80"
	if r, err := p.client.Do(request); err != nil || r.StatusCode != http.StatusForbidden {
		t.Errorf("by another name: %v %v", r, err)
	}
	for _, origin := range []string{"http://evil.example", "http://127.0.0.1:1", ""} {
		if _, err := p.connect(origin); err == nil {
			t.Errorf("a page of %q reaches the display", origin)
		}
	}
	settings, err := url.ParseQuery(strings.TrimPrefix(to, "/vnc.html#"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := p.connect(own)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shakeVNC(conn, settings.Get("password")); err != nil {
		t.Error(err)
	}
	if _, err := p.connect(own); err == nil {
		t.Error("a second connection reaches the display")
	}
	conn.Close()
	if err := <-p.ended; err != nil {
		t.Errorf("the browser left: %v, %s", err, p.stderr)
	}
}

// SPICE, with what it brings, and on an address; nobody boots here.
func TestDisplayBySPICE(t *testing.T) {
	t.Parallel()
	v := newVM(t, "spice", `
[display]
type = "spice"
device = "qxl"
heads = 2
`)
	v.start()
	g := v.grant()
	if g.Type != "spice" || g.Socket != filepath.Join(v.runtimeDir(), "display.sock") {
		t.Errorf("grant %+v", g)
	}
	if err := shakeSPICE(dialDisplay(t, "unix", g.Socket), g.Password); err != nil {
		t.Error("the right password:", err)
	}
	if err := shakeSPICE(dialDisplay(t, "unix", g.Socket), "wrong"); !errors.Is(err, errRefused) {
		t.Error("a wrong password:", err)
	}
	g = v.grant("--expires", "1s")
	eventually(t, "the password has expired", func() bool {
		conn := dialDisplay(t, "unix", g.Socket)
		defer conn.Close()
		return errors.Is(shakeSPICE(conn, g.Password), errRefused)
	})
	if level := v.exposure(); level > 1.0 {
		t.Errorf("exposure %.1f with a display on a socket", level)
	}
	contains(t, fail(t, 2, "vmctl", "screenshot", "--head", "1", v.name, t.TempDir()+"/a.png"), "where qxl has all its monitors")
	contains(t, run(t, "vmctl", "monitor", v.name, "-c", "info qtree"), "qxl-vga", "usb-tablet", "usb-redir", "com.redhat.spice.0")
	contains(t, fail(t, 4, "vmctl", "view", "--web", v.name), "VNC alone")
	// With a viewer that is there; it has to come again.
	if err := shakeSPICE(dialDisplay(t, "unix", g.Socket), v.grant().Password); err != nil {
		t.Error(err)
	}
	run(t, "vmctl", "save", v.name)
	run(t, "vmctl", "start", v.name)
	if err := shakeSPICE(dialDisplay(t, "unix", g.Socket), v.grant().Password); err != nil {
		t.Error("after it was saved:", err)
	}
	run(t, "vmctl", "kill", v.name)

	v.define(littleGuest("cloud", "") + "[display]\ntype = \"spice\"\naddress = \"127.0.0.1:5977\"\n")
	v.start()
	g = v.grant()
	if g.Host != "127.0.0.1" || g.Port != 5977 || g.Socket != "" {
		t.Errorf("grant %+v", g)
	}
	if err := shakeSPICE(dialDisplay(t, "tcp", "127.0.0.1:5977"), g.Password); err != nil {
		t.Error(err)
	}
	other := newVM(t, "spice-too", "[display]\ntype = \"vnc\"\naddress = \"127.0.0.1:5977\"\n")
	checked := try("vmctl", "check", other.name)
	if checked.code != 6 {
		t.Errorf("check: exit status %d", checked.code)
	}
	contains(t, checked.all(), "want a port of the host of its own", "machine spice")
	run(t, "vmctl", "kill", v.name)

	v.define(littleGuest("cloud", ""))
	v.start()
	for _, command := range [][]string{{"view"}, {"screenshot"}} {
		contains(t, fail(t, 4, append(append([]string{"vmctl"}, command...), v.name)...), `display.type is "none"`, "vmctl edit spice")
	}
	v.define(littleGuest("cloud", "") + "[display]\ntype = \"vnc\"\naddress = \"127.0.0.1:5978\"\ndevice = \"vga\"\nclipboard = true\n")
	contains(t, fail(t, 4, "vmctl", "view", v.name), `display.type is "none"`, "vmctl restart spice")
	run(t, "vmctl", "kill", v.name)
	v.start()
	g = v.grant()
	if _, err := shakeVNC(dialDisplay(t, "tcp", "127.0.0.1:5978"), g.Password); err != nil {
		t.Error(err)
	}
}

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
)

const (
	viewer = "remote-viewer"

	// grantTime is how long a password lets viewers in. Who is in stays.
	grantTime    = 2 * time.Minute
	minGrantTime = time.Second
	maxGrantTime = 24 * time.Hour
	// vncPassword is how much of a password VNC looks at, in bytes.
	vncPassword = 8
)

// viewOptions are the flags of vmctl view.
type viewOptions struct {
	print   bool
	web     bool
	expires span
}

func newViewCommand(a *app) *cobra.Command {
	opts := viewOptions{expires: span(grantTime)}
	cmd := &cobra.Command{
		Use:   "view NAME",
		Short: "Look at the display of a VM",
		Long: `Look at the display of a VM, by remote-viewer, until that is closed. It is let in
by a password made for this once, which replaces the one before, and lets nobody
in any more after two minutes. Where there is no remote-viewer, or no screen to
show it on, what to open is printed.

With -H the viewer is here, the VM there, and what is between them goes by ssh.

With --web it is a page for a browser on this host (noVNC), for one browser and one
time: it ends with the page. VNC alone.`,
		Example: `  vmctl view web
  vmctl -H root@host2 view web
  vmctl view --web web
  vmctl view --print -o json web`,
		GroupID:           groupReach,
		Annotations:       map[string]string{runsHere: unlessText},
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runView(cmd.Context(), a, opts, args[0])
		},
	}
	cmd.Flags().BoolVar(&opts.print, "print", false, "open nothing, print what to open")
	cmd.Flags().BoolVar(&opts.web, "web", false, "serve it to a browser on this host")
	cmd.Flags().Var(&opts.expires, "expires", "how long the password lets viewers in")
	cmd.MarkFlagsMutuallyExclusive("print", "web")
	return cmd
}

// grant is what lets a viewer in, and where.
type grant struct {
	Name      string    `json:"name"`
	Type      string    `json:"type"`             // "vnc" or "spice"
	Socket    string    `json:"socket,omitempty"` // or Host and Port
	Host      string    `json:"host,omitempty"`
	Port      int       `json:"port,omitempty"`
	Password  string    `json:"password"`
	ExpiresAt time.Time `json:"expires_at"`
}

// where is what a viewer connects to, for people.
func (g grant) where() string {
	if g.Socket != "" {
		return g.Socket
	}
	return net.JoinHostPort(g.Host, strconv.Itoa(g.Port))
}

// dial connects to a display. Each call is one more connection: SPICE has one
// for each of its channels.
type dial func(ctx context.Context) (net.Conn, error)

func (g grant) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	if g.Socket == "" {
		return d.DialContext(ctx, "tcp", g.where())
	}
	socket, done, err := access.Socket(g.Socket)
	if err != nil {
		return nil, err
	}
	defer done()
	return d.DialContext(ctx, "unix", socket)
}

func runView(ctx context.Context, a *app, opts viewOptions, name string) error {
	if t := time.Duration(opts.expires); t < minGrantTime || t > maxGrantTime || t%time.Second != 0 {
		return usageError{fmt.Errorf("--expires: want whole seconds, from 1s to %s, got %s", config.Duration(maxGrantTime), opts.expires.String())}
	}
	if opts.web {
		return inView(name, a.viewInBrowser(ctx, opts, name))
	}
	return inView(name, a.view(ctx, opts, name))
}

func inView(name string, err error) error {
	return about("display of "+name, quietEnd(err))
}

// about says what an error is about, unless vmctl on another host has said so.
func about(what string, err error) error {
	if err == nil || strings.HasPrefix(err.Error(), what+": ") {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

// view opens the viewer, or prints what to open.
func (a *app) view(ctx context.Context, opts viewOptions, name string) error {
	program, why := findViewer()
	toPrint := opts.print || a.ui.format == jsonFormat || program == ""
	if toPrint && !opts.print && a.host != "" {
		return withHint(errors.New(why), "vmctl view --web "+name+" is for a browser; --print prints what to open on "+a.host)
	}
	g, dial, done, err := a.open(ctx, opts, name)
	if err != nil {
		return err
	}
	defer done()
	if !toPrint {
		return a.runViewer(ctx, g, dial, program)
	}
	if err := a.printGrant(g); err != nil || opts.print || a.ui.format == jsonFormat {
		return err
	}
	a.ui.notef("%s; from another host: vmctl -H root@%s view %s", why, hostName(), name)
	return nil
}

// findViewer returns the viewer, or why there is none.
func findViewer() (program, why string) {
	if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return "", "there is no screen here to show it on"
	}
	program, err := exec.LookPath(viewer)
	if err != nil {
		return "", viewer + " is not installed here (Debian: virt-viewer)"
	}
	return program, ""
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "HOST"
	}
	return name
}

// open has a viewer let in, here or on the other host. done lets go of what is
// between here and there.
func (a *app) open(ctx context.Context, opts viewOptions, name string) (grant, dial, func(), error) {
	if a.host != "" {
		return a.openRemote(ctx, opts, name)
	}
	g, err := a.authorize(ctx, opts, name)
	return g, g.dial, func() {}, err
}

// authorize sets a new password.
func (a *app) authorize(ctx context.Context, opts viewOptions, name string) (grant, error) {
	l, d, display, done, err := a.viewable(ctx, name)
	if err != nil {
		return grant{}, err
	}
	defer done()
	if opts.web {
		if _, err := a.findNoVNC(d.Type); err != nil {
			return grant{}, err
		}
	}
	valid := time.Duration(opts.expires)
	g := grant{Name: l.vm.Name, Type: d.Type, Password: rand.Text(), ExpiresAt: time.Now().Add(valid).Truncate(time.Second)}
	if d.Type == "vnc" {
		g.Password = g.Password[:vncPassword]
	}
	if d.Address == "" {
		g.Socket = a.paths.DisplaySocket(l.vm.Name)
	} else {
		g.Host, g.Port = reachable(d.Address)
	}
	return g, display.Authorize(ctx, d.Type, g.Password, valid)
}

// reachable is an address of a definition, whose form was checked, as one to
// connect to.
func reachable(address string) (host string, port int) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		panic(err)
	}
	port, _ = strconv.Atoi(text)
	switch ip, _ := netip.ParseAddr(host); {
	case host == "" || ip == netip.IPv4Unspecified():
		host = "127.0.0.1"
	case ip == netip.IPv6Unspecified():
		host = "::1"
	}
	return host, port
}

func (a *app) printGrant(g grant) error {
	if a.ui.format == jsonFormat {
		return a.ui.json(g)
	}
	rows := [][]string{{"display", g.Type + " on " + g.where()}}
	if g.Socket != "" && g.Type == "spice" {
		rows = append(rows, []string{"open", viewer + " spice+unix://" + g.Socket})
	} else if g.Socket != "" {
		rows = append(rows, []string{"open", "vncviewer " + g.Socket})
	} else {
		rows = append(rows, []string{"open", viewer + " " + g.Type + "://" + g.where()})
	}
	rows = append(rows, []string{"password", g.Password}, []string{"until", g.ExpiresAt.Format(time.DateTime)})
	return writeTable(a.ui.out, rows)
}

// runViewer runs the viewer until it is closed. It reads where to connect to from a
// file, and knows no Unix sockets there: a port of this host stands for the
// display.
func (a *app) runViewer(ctx context.Context, g grant, to dial, program string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var relays sync.WaitGroup
	defer relays.Wait()
	defer listener.Close()
	relays.Go(func() { relay(ctx, listener, to) })

	file, err := writeViewerFile(g, listener.Addr().(*net.TCPAddr).Port)
	if err != nil {
		return err
	}
	// The viewer has removed it by then, unless it failed early.
	defer os.Remove(file)
	cmd := exec.CommandContext(ctx, program, "--", file)
	cmd.Stderr = a.ui.err
	err = cmd.Run()
	cancel()
	if err != nil {
		return fmt.Errorf("%s: %w", viewer, err)
	}
	return nil
}

// writeViewerFile writes what remote-viewer is to open (its "connection file"),
// for the caller's eyes alone.
func writeViewerFile(g grant, port int) (string, error) {
	f, err := os.CreateTemp(runtimeDir(), "vmctl-"+g.Name+"-*.vv") // mode 0600
	if err != nil {
		return "", err
	}
	_, err = fmt.Fprintf(f, "[virt-viewer]\ntype=%s\nhost=127.0.0.1\nport=%d\npassword=%s\ntitle=%s\ndelete-this-file=1\n", g.Type, port, g.Password, g.Name)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// runtimeDir is for files of the caller's that nobody else sees, or else where
// files are put that others see the names of.
func runtimeDir() string {
	for _, dir := range []string{os.Getenv("XDG_RUNTIME_DIR"), filepath.Join("/run/user", uid())} {
		if s, err := os.Stat(dir); err == nil && s.IsDir() {
			return dir
		}
	}
	return os.TempDir()
}

// relay connects each who comes to the display, until ctx or the listener ends.
func relay(ctx context.Context, listener net.Listener, to dial) {
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	var all sync.WaitGroup
	defer all.Wait()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return // closed
		}
		all.Go(func() {
			defer conn.Close()
			display, err := to(ctx)
			if err != nil {
				return // the viewer says that it was hung up on
			}
			join(ctx, conn, display)
		})
	}
}

// join passes bytes between two connections until either ends, or ctx does, and
// closes both.
func join(ctx context.Context, a, b io.ReadWriteCloser) {
	ctx, cancel := context.WithCancel(ctx)
	var both sync.WaitGroup
	defer both.Wait()
	context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	pass := func(to io.Writer, from io.Reader) {
		defer cancel()
		// However one side ends, the other does too.
		_, _ = io.Copy(to, from)
	}
	both.Go(func() { pass(a, b) })
	both.Go(func() { pass(b, a) })
}

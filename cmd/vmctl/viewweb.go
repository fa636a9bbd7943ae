package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// The page for a browser. Who has the address, with its token, is given a cookie
// in exchange, once; without the cookie there is nothing to be had. The page has
// one connection to the display, and all ends with that. Browsers say which page
// a connection is for, and whose address they think this is: pages of others
// reach nothing.

// noVNCDirs is where distributions have noVNC.
var noVNCDirs = []string{"/usr/share/novnc", "/usr/share/noVNC", "/usr/share/webapps/novnc"}

// findNoVNC returns the directory with the page for a kind of display.
func (a *app) findNoVNC(kind string) (string, error) {
	if kind != "vnc" {
		return "", &stateError{fmt.Errorf(`the page speaks VNC alone, display.type is %q`, kind)}
	}
	for _, dir := range noVNCDirs {
		if _, err := os.Stat(filepath.Join(a.root+dir, "vnc.html")); err == nil {
			return a.root + dir, nil
		}
	}
	return "", withHint(errors.New("noVNC, the page for browsers, is not installed here"), "apt install novnc")
}

// viewInBrowser serves the display to one browser, once.
func (a *app) viewInBrowser(ctx context.Context, opts viewOptions, name string) error {
	if a.ui.format == jsonFormat {
		return usageError{errors.New("want --print with -o json: a page is not JSON")}
	}
	g, dial, done, err := a.open(ctx, opts, name)
	if err != nil {
		return err
	}
	defer done()
	dir, err := a.findNoVNC(g.Type)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	page := newWebPage(dir, g, dial, listener.Addr().(*net.TCPAddr).Port)
	fmt.Fprintln(a.ui.out, page.address())
	a.ui.notef("for one browser on this host, until %s; Ctrl-C ends it", g.ExpiresAt.Format(time.TimeOnly))
	return page.serve(ctx, listener)
}

// webPage is a display for one browser.
type webPage struct {
	grant  grant
	dial   dial
	files  http.Handler
	port   int
	cookie string
	ended  chan struct{} // closed once the browser has gone

	mu      sync.Mutex
	token   string // "" once it was used
	joined  bool   // a browser is, or was, connected to the display
	endOnce sync.Once
}

func newWebPage(dir string, g grant, to dial, port int) *webPage {
	return &webPage{
		grant: g, dial: to, port: port, files: http.FileServer(http.Dir(dir)),
		cookie: rand.Text(), token: rand.Text(), ended: make(chan struct{}),
	}
}

// address is what a person opens.
func (p *webPage) address() string {
	return fmt.Sprintf("http://127.0.0.1:%d/?token=%s", p.port, p.token)
}

// serve ends when the browser leaves, when the display ends, or when no browser
// comes while the password holds.
func (p *webPage) serve(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server := &http.Server{
		Handler: p, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	defer server.Close()
	late := time.NewTimer(time.Until(p.grant.ExpiresAt))
	defer late.Stop()
	for {
		select {
		case <-p.ended:
			return nil
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-late.C:
			p.mu.Lock()
			joined := p.joined
			p.mu.Unlock()
			if !joined {
				return fmt.Errorf("no browser came: %w", context.DeadlineExceeded)
			}
		}
	}
}

// cookieName tells pages apart: browsers do not, by the port.
func (p *webPage) cookieName() string { return fmt.Sprintf("vmctl-view-%d", p.port) }

func (p *webPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("X-Frame-Options", "DENY")
	if !p.isOwnAddress(r.Host) {
		http.Error(w, "not known by this name", http.StatusForbidden)
		return
	}
	token := r.URL.Query().Get("token")
	if r.URL.Path == "/" && token != "" {
		p.letIn(w, r, token)
		return
	}
	cookie, err := r.Cookie(p.cookieName())
	switch {
	case err != nil || subtle.ConstantTimeCompare([]byte(cookie.Value), []byte(p.cookie)) != 1:
		http.Error(w, "vmctl view --web prints an address that lets one browser in, once", http.StatusForbidden)
	case r.URL.Path == "/websockify":
		p.join(w, r)
	default:
		p.files.ServeHTTP(w, r)
	}
}

// isOwnAddress keeps out pages of others that have their own name mean this
// host (DNS rebinding).
func (p *webPage) isOwnAddress(host string) bool {
	return host == fmt.Sprintf("127.0.0.1:%d", p.port) || host == fmt.Sprintf("localhost:%d", p.port)
}

// letIn exchanges the token for the cookie, and sends the browser to the page.
// What follows the "#" is for the page alone, and not sent to any server.
func (p *webPage) letIn(w http.ResponseWriter, r *http.Request, token string) {
	p.mu.Lock()
	good := p.token != "" && subtle.ConstantTimeCompare([]byte(token), []byte(p.token)) == 1
	if good {
		p.token = ""
	}
	p.mu.Unlock()
	if !good {
		http.Error(w, "this address was used already, or is not the one that vmctl view --web has printed", http.StatusForbidden)
		return
	}
	http.SetCookie(w, &http.Cookie{Name: p.cookieName(), Value: p.cookie, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
	settings := url.Values{"autoconnect": {"true"}, "resize": {"scale"}, "path": {"websockify"}, "password": {p.grant.Password}}
	http.Redirect(w, r, "/vnc.html#"+settings.Encode(), http.StatusSeeOther)
}

// join connects the browser to the display. Who has another page open is
// refused by the origin (Accept does that), who comes second by being second.
func (p *webPage) join(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Origin") == "" {
		http.Error(w, "for the page of this address alone", http.StatusForbidden)
		return
	}
	p.mu.Lock()
	second := p.joined
	p.joined = true
	p.mu.Unlock()
	if second {
		http.Error(w, "the display has its browser", http.StatusConflict)
		return
	}
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"binary"}})
	if err != nil {
		p.mu.Lock()
		p.joined = false
		p.mu.Unlock()
		return // it has answered
	}
	defer p.end()
	conn.SetReadLimit(-1)
	display, err := p.dial(r.Context())
	if err != nil {
		// The browser may have gone.
		_ = conn.Close(websocket.StatusInternalError, "the display does not answer")
		return
	}
	join(r.Context(), websocket.NetConn(r.Context(), conn, websocket.MessageBinary), display)
}

func (p *webPage) end() { p.endOnce.Do(func() { close(p.ended) }) }

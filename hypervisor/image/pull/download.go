package pull

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// attempts is how often in a row a connection may break without having brought
// anything.
const attempts = 5

// stallTime is how long a server may be silent.
const stallTime = time.Minute

// NewClient returns a client for pulls: without a limit of time, which a large
// image on a slow line may well need, but with limits of silence.
func NewClient(userAgent string) *http.Client {
	dialer := &net.Dialer{Timeout: 30 * time.Second}
	return &http.Client{
		Transport: agent{userAgent, &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           dialer.DialContext,
			TLSHandshakeTimeout:   30 * time.Second,
			ResponseHeaderTimeout: stallTime,
			DisableCompression:    true, // ranges are of what is there
			ForceAttemptHTTP2:     true,
		}},
		CheckRedirect: func(to *http.Request, via []*http.Request) error {
			if len(via) >= 10 {
				return errors.New("more than 10 redirects")
			}
			if to.URL.Scheme != "http" && to.URL.Scheme != "https" {
				return fmt.Errorf("redirected to %s, which is neither http nor https", to.URL.Redacted())
			}
			if via[0].URL.Scheme == "https" && to.URL.Scheme == "http" && to.Context().Value(checked{}) == nil {
				return fmt.Errorf("redirected from https to %s, where anybody on the way can change it, and there is no checksum to compare it with", to.URL.Redacted())
			}
			return nil
		},
	}
}

// checked is the key of a context in which what is fetched will be compared
// with a checksum or a signature.
type checked struct{}

// agent says who asks.
type agent struct {
	name string
	next http.RoundTripper
}

func (a agent) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", a.name)
	return a.next.RoundTrip(r)
}

// part is where a download lies until it is whole.
func (p Puller) part(name string) string { return p.Store.Paths.ImageTemp(name, "part") }

// partial is what a part is a part of, beside it as JSON.
type partial struct {
	URL       string `json:"url"`
	Checksum  string `json:"checksum,omitempty"` // as it is expected
	Validator string `json:"validator"`          // for If-Range: a strong ETag, or the time of the last change; "": cannot be gone on with
	Total     int64  `json:"total"`              // bytes; 0 where not known
	Boot      string `json:"boot"`               // id of the boot in which it was written: a crash of the host may have spoilt it
}

func (p Puller) readPartial(name string) partial {
	var known partial
	b, err := os.ReadFile(p.Store.Paths.ImageTemp(name, "part.json"))
	// What cannot be read is begun anew.
	if err != nil || json.Unmarshal(b, &known) != nil {
		return partial{}
	}
	return known
}

// writePartial need not be whole: see readPartial.
func (p Puller) writePartial(name string, known partial) error {
	b, err := json.Marshal(known)
	if err != nil {
		return err
	}
	return os.WriteFile(p.Store.Paths.ImageTemp(name, "part.json"), b, 0o600)
}

// forget removes what there is of a download.
func (p Puller) forget(name string) error {
	var errs []error
	for _, kind := range []string{"part", "part.json"} {
		if err := os.Remove(p.Store.Paths.ImageTemp(name, kind)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// download fetches an image, going on with what an earlier one has left, and
// compares its checksum. Where that is wrong and a part of it is from before,
// it is fetched once more as a whole.
func (p Puller) download(ctx context.Context, r Request) (*os.File, error) {
	if !r.Checksum.zero() || r.imageSigned() {
		ctx = context.WithValue(ctx, checked{}, true)
	}
	f, err := os.OpenFile(p.part(r.Name), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	d := downloading{Puller: p, request: r, file: f}
	err = d.whole(ctx)
	if _, wrong := errors.AsType[*ChecksumError](err); wrong && d.resumed {
		if err = d.restart(); err == nil {
			err = d.whole(ctx)
		}
	}
	if err != nil {
		f.Close()
		if _, wrong := errors.AsType[*ChecksumError](err); wrong {
			err = fmt.Errorf("%s: %w", Redacted(r.URL), err)
			d.have = 0
		}
		if d.have == 0 { // nothing to go on with
			err = errors.Join(err, p.forget(r.Name))
		}
		return nil, err
	}
	return f, nil
}

// downloading is one download.
type downloading struct {
	Puller
	request Request
	file    *os.File
	known   partial
	have    int64 // bytes in file that belong to known
	resumed bool  // not all of it is from one answer
}

// restart throws away what there is.
func (d *downloading) restart() error {
	d.have, d.resumed, d.known = 0, false, partial{URL: d.request.URL, Checksum: d.request.Checksum.String(), Boot: bootID()}
	if err := d.file.Truncate(0); err != nil {
		return err
	}
	return d.writePartial(d.request.Name, d.known)
}

// whole fetches what is missing, in as many attempts as it takes as long as each
// brings something, and compares the checksum.
func (d *downloading) whole(ctx context.Context) error {
	if err := d.adopt(); err != nil {
		return err
	}
	most := d.have
	for failures := 0; ; {
		err := d.attempt(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", Redacted(d.request.URL), context.Cause(ctx))
		}
		// Only what was never there before is progress: a server that knows
		// no ranges begins anew each time.
		if d.have > most {
			most, failures = d.have, 0
		}
		if failures++; failures == attempts || final(err) || most == 0 && unreachable(err) {
			return d.explain(err)
		}
		d.Progress(Progress{Phase: Retrying, Done: d.have, Total: d.known.Total, Err: plain(err)})
		d.Sleep(ctx, time.Second<<(failures-1))
	}
	if d.request.Checksum.zero() {
		return nil
	}
	return d.compare(ctx, d.file, d.request.Checksum)
}

// adopt goes on with what an earlier download has left, if it is of the same.
func (d *downloading) adopt() error {
	d.known = d.readPartial(d.request.Name)
	st, err := d.file.Stat()
	if err != nil {
		return err
	}
	// A checksum tells whether a crash of the host has spoilt what there is.
	sound := !d.request.Checksum.zero() || d.known.Boot == bootID()
	if d.known.URL != d.request.URL || d.known.Validator == "" || d.known.Checksum != d.request.Checksum.String() || !sound {
		return d.restart()
	}
	d.have = st.Size()
	d.resumed = d.have > 0
	return nil
}

// bootID tells one boot of the host from another; "" where the kernel does not.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// statusError is an answer that is none of those hoped for.
type statusError struct {
	code   int
	status string
}

func (e *statusError) Error() string { return "the server says " + e.status }

// final says whether asking again is of no use.
func final(err error) bool {
	if e, ok := errors.AsType[*statusError](err); ok {
		again := e.code >= 500 || e.code == http.StatusTooManyRequests || e.code == http.StatusRequestTimeout
		return !again
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return true // of our own file: no room, for one
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return e.IsNotFound
	}
	_, ok := errors.AsType[finalError](err)
	return ok
}

// finalError is one that asking again does not mend.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

// unreachable says whether the server was not reached at all.
func unreachable(err error) bool {
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "dial" {
		return true
	}
	_, dns := errors.AsType[*net.DNSError](err)
	return dns
}

// plain is an error without the method and the URL, which are told anyway.
func plain(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// explain makes a sentence of the last error.
func (d *downloading) explain(err error) error { return explain(d.request.URL, err) }

func explain(address string, err error) error {
	err = describe(plain(err))
	address = Redacted(address)
	if unreachable(err) {
		return fmt.Errorf("%s cannot be reached, is this host offline? %w", address, err)
	}
	return fmt.Errorf("%s: %w", address, err)
}

// attempt asks for what is missing and adds it to the file.
func (d *downloading) attempt(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.request.URL, nil)
	if err != nil {
		return finalError{err}
	}
	if d.known.Validator == "" && d.have > 0 {
		if err := d.restart(); err != nil {
			return err
		}
	}
	if d.have > 0 {
		request.Header.Set("Range", "bytes="+strconv.FormatInt(d.have, 10)+"-")
		request.Header.Set("If-Range", d.known.Validator)
	}
	answer, err := d.Client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	done, err := d.begin(answer)
	if done || err != nil {
		return err
	}
	silence := time.AfterFunc(stallTime, func() { cancel(fmt.Errorf("nothing came for %s", stallTime)) })
	defer silence.Stop()
	err = d.take(ctx, answer.Body, silence)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil && d.known.Total > 0 && d.have != d.known.Total {
		err = fmt.Errorf("the server ended after %d of %d bytes", d.have, d.known.Total)
	}
	return err
}

// begin understands the head of an answer: whether it goes on with what is
// there, or begins anew. done says that all is there already.
func (d *downloading) begin(answer *http.Response) (done bool, err error) {
	switch answer.StatusCode {
	case http.StatusOK:
		if err := d.restart(); err != nil {
			return false, err
		}
		d.known.Total = max(answer.ContentLength, 0)
		if err := d.room(d.known.Total); err != nil {
			return false, err
		}
		d.known.Validator = validator(answer.Header)
		return false, d.writePartial(d.request.Name, d.known)
	case http.StatusPartialContent:
		from, total, ok := contentRange(answer.Header.Get("Content-Range"))
		if d.have > 0 && ok && from == d.have && (d.known.Total == 0 || total == 0 || total == d.known.Total) {
			d.known.Total = cmp.Or(d.known.Total, total)
			d.resumed = true
			return false, nil
		}
		// Not what was asked for: what is there cannot be gone on with.
		return false, errors.Join(errors.New("the server sent another part than was asked for"), d.restart())
	case http.StatusRequestedRangeNotSatisfiable:
		if d.have > 0 && d.have == d.known.Total {
			return true, nil
		}
		return false, errors.Join(errors.New("the server has less than there is already"), d.restart())
	}
	return false, &statusError{answer.StatusCode, answer.Status}
}

// room says, before gigabytes have come, whether there is room for them.
func (d *downloading) room(size int64) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(d.file.Fd()), &fs); err != nil {
		return finalError{fmt.Errorf("the room in %s: %w", d.Store.Paths.Images, err)}
	}
	if free := int64(fs.Bavail) * fs.Bsize; size > free {
		return finalError{fmt.Errorf("the image has %d bytes, %s has room for %d: %w", size, d.Store.Paths.Images, free, unix.ENOSPC)}
	}
	return nil
}

// validator is what If-Range can be asked with: nothing where the server gives
// no strong one.
func validator(h http.Header) string {
	if tag := h.Get("ETag"); strings.HasPrefix(tag, `"`) {
		return tag
	}
	return h.Get("Last-Modified")
}

// contentRange reads "bytes 100-199/200"; total is 0 for "*".
func contentRange(s string) (from, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, length, slash := strings.Cut(s, "/")
	first, _, dash := strings.Cut(span, "-")
	from, err := strconv.ParseInt(first, 10, 64)
	if !ok || !slash || !dash || err != nil {
		return 0, 0, false
	}
	if length == "*" {
		return from, 0, true
	}
	total, err = strconv.ParseInt(length, 10, 64)
	return from, total, err == nil
}

// take adds what comes to the file.
func (d *downloading) take(ctx context.Context, body io.Reader, silence *time.Timer) error {
	m := d.meter(Downloading, d.have, d.known.Total)
	in := m.reader(ctx, body)
	block := make([]byte, 256<<10)
	for {
		n, err := in.Read(block)
		if n > 0 {
			silence.Reset(stallTime)
			if d.known.Total > 0 && d.have+int64(n) > d.known.Total {
				return errors.Join(errors.New("the server sent more than it said"), d.restart())
			}
			if _, err := d.file.WriteAt(block[:n], d.have); err != nil {
				return err
			}
			d.have += int64(n)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// fetch gets a small file whole, of at most limit bytes.
func (p Puller) fetch(ctx context.Context, address string, limit int64) ([]byte, error) {
	for failures := 0; ; {
		b, err := p.fetchOnce(ctx, address, limit)
		if err == nil {
			return b, nil
		}
		if failures++; failures == attempts || final(err) || unreachable(err) || ctx.Err() != nil {
			return nil, explain(address, err)
		}
		p.Progress(Progress{Phase: Retrying, Err: plain(err)})
		p.Sleep(ctx, time.Second<<(failures-1))
	}
}

func (p Puller) fetchOnce(ctx context.Context, address string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, stallTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, finalError{err}
	}
	answer, err := p.Client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, &statusError{answer.StatusCode, answer.Status}
	}
	b, err := io.ReadAll(io.LimitReader(answer.Body, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = finalError{fmt.Errorf("longer than %d bytes", limit)}
	}
	return b, err
}

package operation

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Status is an exit status of vmctl. Where an operation has failed, it decides
// which.
type Status int

const (
	Failed       Status = 1
	Usage        Status = 2
	NotFound     Status = 3
	WrongState   Status = 4
	TimedOut     Status = 5
	Invalid      Status = 6
	NotPermitted Status = 7
)

// Error is why an operation was not done, for the one who asked for it, in
// another process.
type Error struct {
	Status Status `json:"status"`
	Text   string `json:"text"`
	Hint   string `json:"hint,omitempty"` // what to type next
}

func (e *Error) Error() string { return e.Text }

// Refuse is an error of a status.
func Refuse(status Status, format string, args ...any) *Error {
	return &Error{Status: status, Text: fmt.Sprintf(format, args...)}
}

// Progress is how far an operation is.
type Progress struct {
	Phase string `json:"phase"`           // in a few words: "copying disk root"
	Done  int64  `json:"done,omitempty"`  // bytes
	Total int64  `json:"total,omitempty"` // bytes; 0 where not known
}

// message is one line of a report.
type message struct {
	Progress *Progress       `json:"progress,omitempty"`
	Warning  string          `json:"warning,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *Error          `json:"error,omitempty"`
}

// Reporter tells how an operation goes, in lines of JSON that [Follow] reads.
// That nobody reads them any more is no error of the operation's, nor does it
// wait for a reader that stands still to learn how far it is.
type Reporter struct {
	mu sync.Mutex
	w  io.Writer
}

// NewReporter reports to w.
func NewReporter(w io.Writer) *Reporter { return &Reporter{w: w} }

func (r *Reporter) send(m message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, err := json.Marshal(m)
	if err != nil {
		return // a result of ours that is not JSON shows in every test
	}
	_, _ = r.w.Write(append(b, '\n'))
}

// Progress tells how far it is, unless much is still unread.
func (r *Reporter) Progress(p Progress) {
	if hasRoom(r.w) {
		r.send(message{Progress: &p})
	}
}

// hasRoom says whether less than a quarter of a pipe is unread: the rest is for
// what has to be told.
func hasRoom(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return true
	}
	size, err := unix.FcntlInt(f.Fd(), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return true // it is no pipe
	}
	unread, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ)
	return err != nil || unread < size/4
}

// Warn tells of what did not stop it.
func (r *Reporter) Warn(format string, args ...any) {
	r.send(message{Warning: fmt.Sprintf(format, args...)})
}

// End tells its end: result where err is nil.
func (r *Reporter) End(result any, err error) {
	if err != nil {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			e = &Error{Status: Failed}
		}
		r.send(message{Error: &Error{Status: e.Status, Text: err.Error(), Hint: e.Hint}})
		return
	}
	b, err := json.Marshal(result)
	if err != nil {
		r.send(message{Error: &Error{Status: Failed, Text: err.Error()}})
		return
	}
	r.send(message{Result: b})
}

// ErrCutOff is a report without an end: who made it was killed.
var ErrCutOff = errors.New("it was cut off")

// Follow reads a report until its end, stores the result, and returns its error:
// an [*Error], or [ErrCutOff].
func Follow(report io.Reader, progress func(Progress), warn func(string), result any) error {
	lines := bufio.NewScanner(report)
	lines.Buffer(nil, 16<<20)
	err := ErrCutOff
	for lines.Scan() {
		var m message
		if json.Unmarshal(lines.Bytes(), &m) != nil {
			continue // not ours: something that the process ran has written it
		}
		switch {
		case m.Progress != nil:
			progress(*m.Progress)
		case m.Warning != "":
			warn(m.Warning)
		case m.Error != nil:
			err = m.Error
		case m.Result != nil:
			err = nil
			if result != nil {
				err = json.Unmarshal(m.Result, result)
			}
		}
	}
	return errors.Join(err, lines.Err())
}

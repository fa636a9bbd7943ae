package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// maxFile is the size of the largest file that is read: far more than a
// definition with its cloud-init data needs.
const maxFile = 1 << 20

// maxNesting is how deep tables, lists and the parts of a key may nest. The
// schema needs three; the TOML library would need a stack, or time, without
// bound.
const maxNesting = 32

// source is one file: what it says, or what is wrong with it.
type source struct {
	file    string
	dropIn  bool
	kept    bool // a drop-in that vmctl keeps
	masked  bool // empty, or a link to /dev/null
	tree    *tree
	problem *Problem
	places  func() map[string]place // of its keys, found when first asked for
	changed time.Time               // when it was written to, or put in its place; zero where that is not known
}

// readSource reads and parses a file.
func readSource(file string, dropIn bool) *source {
	s := &source{file: file, dropIn: dropIn, tree: newTree(0)}
	data, changed, err := readDated(file)
	s.changed = changed
	switch {
	case err != nil:
		s.problem = &Problem{File: file, Text: err.Error()}
		return s
	case len(data) == 0:
		s.masked = true
		return s
	}
	s.parse(string(data))
	s.kept = dropIn && strings.HasPrefix(string(data), DropInMark)
	return s
}

func (s *source) parse(doc string) {
	// The library takes the last line to end, or blames the one before it.
	doc = strings.TrimSuffix(strings.TrimPrefix(doc, "\ufeff"), "\n") + "\n"
	s.places = sync.OnceValue(func() map[string]place { return places(doc) })
	if line := notUTF8(doc); line > 0 {
		s.problem = &Problem{File: s.file, Line: line, Text: "want UTF-8, got other bytes"}
		return
	}
	if line := tooDeep(doc); line > 0 {
		s.problem = &Problem{File: s.file, Line: line, Text: fmt.Sprintf("want at most %d levels of brackets or parts of a key", maxNesting)}
		return
	}
	var values any
	meta, err := decodeTOML(doc, &values)
	if err != nil {
		s.problem = syntaxProblem(s.file, doc, err)
		return
	}
	var lost toml.Key
	if s.tree, lost = ordered(values.(map[string]any), meta.Keys()); lost != nil {
		problem := origin{sources: []*source{s}}.problem(shown(lost), strings.Join(lost, "."), "want each key once, but another one overwrites this")
		s.problem = &problem
	}
}

// decodeTOML makes an error of a panic of the library, so that whatever one
// file makes it do, the others are unharmed.
func decodeTOML(doc string, v any) (meta toml.MetaData, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the TOML library gave up: %v", r)
		}
	}()
	return toml.Decode(doc, v)
}

func syntaxProblem(file, doc string, err error) *Problem {
	p := Problem{File: file, Text: err.Error()}
	if e, ok := errors.AsType[toml.ParseError](err); ok {
		p.Line, p.Text = e.Position.Line, e.Message
		// Of a line that ends too early the library blames the next at times.
		if at := e.Position.Start; at >= 0 && at < len(doc) && doc[at] == '\n' {
			p.Line = 1 + strings.Count(doc[:at], "\n")
		}
		p.Line = min(p.Line, strings.Count(doc, "\n"))
	}
	if meant := unquoted(doc, p.Line); meant != "" {
		p.Text = meant
	}
	p.Text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(p.Text, "�"))
	p.Text = strings.TrimSuffix(strings.Join(strings.Fields(p.Text), " "), ".")
	if first, rest := p.Text[:1], p.Text[1:]; rest != "" && strings.ToUpper(rest[:1]) != rest[:1] {
		p.Text = strings.ToLower(first) + rest
	}
	return &p
}

// bareValue is a line that gives a key a value without quotes or brackets.
var bareValue = regexp.MustCompile(`^\s*[\w."-]+\s*=\s*([^\s"'\[{#][^"'\[\]{}#]*?)\s*(?:#.*)?$`)

// unquoted says what to write in place of a value that TOML does not know, where
// that is because there are no quotes around it; "" for any other mistake.
func unquoted(doc string, line int) string {
	lines := strings.Split(doc, "\n")
	if line < 1 || line > len(lines) {
		return ""
	}
	found := bareValue.FindStringSubmatch(lines[line-1])
	if found == nil {
		return ""
	}
	value := found[1]
	var parsed struct{ X any }
	if _, err := decodeTOML("x = "+value+"\n", &parsed); err == nil {
		return ""
	}
	switch strings.ToLower(value) {
	case "true", "yes", "on":
		return "want true, got " + value
	case "false", "no", "off":
		return "want false, got " + value
	}
	if !strings.ContainsFunc(value, unicode.IsLetter) && strings.Count(value, ".") < 2 {
		return "" // of a number something else is wrong
	}
	return fmt.Sprintf("want a text in quotes, %q, got %s", value, value)
}

// notUTF8 returns the first line that is not UTF-8, 0 where all are.
func notUTF8(doc string) int {
	if utf8.ValidString(doc) {
		return 0
	}
	line := 1
	for text := range strings.Lines(doc) {
		if !utf8.ValidString(text) {
			break
		}
		line++
	}
	return line
}

// tooDeep returns the first line with more nesting than maxNesting, 0 where
// there is none. It is asked before anything is parsed, so doc can be anything.
func tooDeep(doc string) int {
	if strings.Count(doc, "[") <= maxNesting && strings.Count(doc, "{") <= maxNesting && strings.Count(doc, ".") <= maxNesting {
		return 0 // nearly always
	}
	s := scanner{doc: doc, line: 1}
	depth, dots := 0, 0
	for s.at < len(s.doc) {
		switch c := s.next(); c {
		case '"', '\'':
			s.text()
			continue
		case '#':
			s.until("\n")
			continue
		case '[', '{':
			depth, dots = depth+1, 0
		case ']', '}':
			depth, dots = max(0, depth-1), 0
		case '.':
			dots++
		case '\n', '=', ',':
			dots = 0
		}
		if depth > maxNesting || dots > maxNesting {
			return s.line
		}
		s.skip(1)
	}
	return 0
}

// ReadFile reads a file that may be a definition: at most a megabyte, and nothing
// that is no regular file. An empty one and /dev/null have nothing.
func ReadFile(file string) ([]byte, error) { return readFile(file) }

// readFile is readDated without the time.
func readFile(file string) ([]byte, error) {
	data, _, err := readDated(file)
	return data, err
}

// readDated returns the content of a file, nothing where the file is empty or
// /dev/null, and when it last changed (ctime, inode(7)): what is copied or
// unpacked may claim any time of its last modification. It never waits for a FIFO,
// nor opens a device.
func readDated(file string) (data []byte, changed time.Time, err error) {
	// Opening a device can act on it, so it is looked at first.
	info, err := os.Stat(file)
	if err != nil {
		return nil, changed, statError(file, err)
	}
	if devNull(info) {
		return nil, changed, nil
	}
	if err := wantRegular(info); err != nil {
		return nil, changed, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		changed = time.Unix(st.Ctim.Unix())
	}
	data, err = readRegular(file)
	return data, changed, err
}

// readRegular is os.ReadFile for what is at most maxFile long, without waiting
// for a FIFO and without the poller, which regular files do not have.
func readRegular(file string) ([]byte, error) {
	fd, err := uninterrupted(func() (int, error) {
		return syscall.Open(file, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY|syscall.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	var stat syscall.Stat_t
	if err := syscall.Fstat(fd, &stat); err != nil {
		return nil, err
	}
	if stat.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return nil, errors.New("want a regular file, got another just now")
	}
	// One byte more than the file has shows its end by the first read.
	data := make([]byte, min(stat.Size, maxFile)+1)
	for n := 0; ; {
		got, err := uninterrupted(func() (int, error) { return syscall.Read(fd, data[n:]) })
		if n += got; err != nil || got <= 0 || n < len(data) {
			return data[:n], err
		}
		if n > maxFile {
			return nil, tooLarge(stat.Size)
		}
		data = append(data, make([]byte, len(data))...)
	}
}

func uninterrupted(call func() (int, error)) (n int, err error) {
	for {
		if n, err = call(); err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}

func tooLarge(size int64) error {
	return fmt.Errorf("want a file of at most %s, got %d bytes", Size(maxFile), size)
}

func devNull(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	const null = 1<<8 | 3 // character device 1:3
	return ok && info.Mode()&fs.ModeCharDevice != 0 && stat.Rdev == null
}

func wantRegular(info fs.FileInfo) error {
	kind := ""
	switch mode := info.Mode(); {
	case mode.IsRegular() && info.Size() > maxFile:
		return tooLarge(info.Size())
	case mode.IsRegular():
		return nil
	case mode.IsDir():
		kind = "a directory"
	case mode&fs.ModeNamedPipe != 0:
		kind = "a FIFO"
	case mode&fs.ModeSocket != 0:
		kind = "a socket"
	case mode&fs.ModeDevice != 0:
		kind = "a device"
	default:
		kind = "something else"
	}
	return errors.New("want a regular file, got " + kind)
}

// statError tells a dangling symlink from a file that is not there.
func statError(file string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return cause(err)
	}
	if to, linkErr := os.Readlink(file); linkErr == nil {
		return fmt.Errorf("want a file, got a symlink to %s, which does not exist", show(to))
	}
	return cause(err)
}

// cause drops the operation and path from an error of package os: a problem
// names its file already.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

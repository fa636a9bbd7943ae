package console

import "bytes"

// ring keeps the last bytes of a stream. Bytes are named by their offset from
// the start of the stream.
type ring struct {
	// buf is allocated whole, but the kernel gives its pages only as they are
	// written to.
	buf []byte
	end int64 // offset of the next byte
}

func newRing(size int) *ring { return &ring{buf: make([]byte, size)} }

// start is the offset of the oldest byte that is kept.
func (r *ring) start() int64 { return max(0, r.end-int64(len(r.buf))) }

func (r *ring) write(p []byte) {
	if skip := len(p) - len(r.buf); skip > 0 {
		r.end += int64(skip)
		p = p[skip:]
	}
	for len(p) > 0 {
		n := copy(r.buf[r.end%int64(len(r.buf)):], p)
		r.end += int64(n)
		p = p[n:]
	}
}

// read copies bytes from offset at on, which is not before start nor after
// end, and returns how many.
func (r *ring) read(at int64, p []byte) int {
	if left := r.end - at; int64(len(p)) > left {
		p = p[:left]
	}
	n := copy(p, r.buf[at%int64(len(r.buf)):])
	return n + copy(p[n:], r.buf)
}

// replayFrom is where a replay begins: the oldest byte, or, where older ones
// were overwritten, the first whole line, so that no escape sequence or
// character is cut.
func (r *ring) replayFrom() int64 {
	from := r.start()
	if from == 0 {
		return 0
	}
	var p [4096]byte // a line longer than this is cut
	if i := bytes.IndexByte(p[:r.read(from, p[:])], '\n'); i >= 0 {
		return from + int64(i) + 1
	}
	return from
}

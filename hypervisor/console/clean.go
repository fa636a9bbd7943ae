package console

import (
	"bytes"
	"strings"
)

// maxSequence is how long a control string may be; what goes on for longer is
// dropped up to there.
const maxSequence = 4096 // bytes

// cleaner removes from a terminal's input what a terminal would answer: the
// answer would be typed into the guest, long after the guest asked (device
// status and attributes, mode, colour and capability requests, ENQ). Its zero
// value is ready; a sequence may be spread over calls.
type cleaner struct {
	// history also removes what would wipe out what is on the screen already,
	// and NUL, which no terminal shows.
	history bool
	seq     []byte // an escape sequence that has begun
}

// appendTo appends what is left of p to out.
func (c *cleaner) appendTo(out, p []byte) []byte {
	for _, b := range p {
		switch {
		case b == enq, b == nul && c.history: // act even inside of a sequence
		case len(c.seq) == 0 && b != esc && b != c1Lead:
			out = append(out, b)
		case b == can || b == sub || restarts(c.seq, b):
			c.seq = c.seq[:0] // what had begun has no effect
			if b == esc {
				c.seq = append(c.seq, b)
			}
		default:
			c.seq = append(c.seq, b)
			done := complete(c.seq)
			if !done && len(c.seq) < maxSequence {
				continue
			}
			if done && !asks(c.seq) && !(c.history && wipes(c.seq)) {
				out = append(out, c.seq...)
			}
			c.seq = c.seq[:0]
		}
	}
	return out
}

// restarts says whether b, an ESC, ends the sequence and begins another. In a
// string it may be half of the string's end (ST, ESC \).
func restarts(seq []byte, b byte) bool {
	return b == esc && len(seq) > 0 && seq[0] == esc && !isString(seq)
}

// isString says whether a sequence is one with a string in it: OSC, DCS, SOS,
// PM or APC.
func isString(seq []byte) bool {
	return len(seq) > 1 && bytes.IndexByte([]byte("]PX^_"), seq[1]) >= 0
}

// flush appends a sequence that has begun, because what follows is passed on
// as it is.
func (c *cleaner) flush(out []byte) []byte {
	out, c.seq = append(out, c.seq...), nil
	return out
}

const (
	nul = 0x00
	enq = 0x05
	bel = 0x07
	can = 0x18
	sub = 0x1a
	esc = 0x1b
	// c1Lead is the first byte in UTF-8 of the C1 control characters (U+0080
	// to U+009F), and of Latin-1's printable ones.
	c1Lead = 0xc2
)

// complete says whether a sequence (ECMA-48, section 5) is whole.
func complete(seq []byte) bool {
	if len(seq) < 2 {
		return false
	}
	last := seq[len(seq)-1]
	if seq[0] == c1Lead {
		return true
	}
	switch {
	case seq[1] == '[': // CSI parameters intermediates final
		return len(seq) > 2 && last >= 0x40 && last <= 0x7e
	case isString(seq): // up to BEL, or ESC and, if all is well, a backslash
		return last == bel || len(seq) > 3 && seq[len(seq)-2] == esc
	default: // ESC intermediates final
		return last < 0x20 || last > 0x2f
	}
}

// asks says whether a whole sequence has an answer (xterm's "Control
// Sequences", and kitty's keyboard and graphics protocols).
func asks(seq []byte) bool {
	body := seq[2:]
	switch {
	case seq[0] == c1Lead:
		return seq[1] < 0xa0 // the eight-bit forms of all below
	case seq[1] == 'Z': // DECID
		return true
	case seq[1] == ']': // OSC: a parameter that begins with "?"
		return bytes.Contains(body, []byte(";?"))
	case seq[1] == 'P': // DCS: DECRQSS, XTGETTCAP
		return bytes.HasPrefix(body, []byte("$q")) || bytes.HasPrefix(body, []byte("+q"))
	case seq[1] == '_': // APC: kitty's graphics answer every command
		return true
	case seq[1] == '[':
		return asksCSI(body[:len(body)-1], body[len(body)-1])
	}
	return false
}

func asksCSI(params []byte, final byte) bool {
	has := func(s string) bool { return bytes.ContainsAny(params, s) }
	switch final {
	case 'n', 'c', 'x': // DSR, DA, DECREQTPARM
		return true
	case 'p', 'w', 'u': // DECRQM, DECRQPSR; DECRQTSR; DECRQUPSS, kitty's keyboard
		return has("$&?")
	case 'y': // DECRQCRA
		return has("*")
	case 'q': // XTVERSION
		return has(">")
	case 'S', 'm': // XTSMGRAPHICS, XTQMODKEYS
		return has("?")
	case 't': // window reports
		return len(params) == 2 && params[0] >= '1' && params[0] <= '2' && string(params) != "22" && string(params) != "23"
	}
	return false
}

// wipes says whether a whole sequence makes room on the screen, as firmware and
// getty do at their start: it clears the screen, puts the cursor where it
// begins, or (SeaBIOS) ends the wrapping of lines.
func wipes(seq []byte) bool {
	switch {
	case seq[0] != esc:
		return false
	case seq[1] == 'c': // RIS
		return true
	case seq[1] != '[':
		return false
	}
	params, final := string(seq[2:len(seq)-1]), seq[len(seq)-1]
	switch final {
	case 'J': // ED, but for what is above the cursor
		return params != "1" && params != "?1"
	case 'H', 'f': // CUP, HVP: home is 1;1, which may be left out
		for p := range strings.SplitSeq(params, ";") {
			if p = strings.TrimLeft(p, "0"); p != "" && p != "1" {
				return false
			}
		}
		return true
	case 'l': // DECAWM
		return params == "?7"
	}
	return false
}

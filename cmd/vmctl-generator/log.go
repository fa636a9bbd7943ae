package main

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// log says what is wrong. A generator has no logger: there is only the
// kernel's log, from which the journal takes it.
type log struct {
	out    io.Writer
	kernel bool // out is the kernel's log
	failed bool // an error was logged
}

// maxLine bounds a line, in bytes; the kernel cuts at about 1000.
const maxLine = 900

// newLog logs to the kernel's log, or to stderr where that is not wanted or
// cannot be written (in a container). systemd gives the system's generators no
// stderr.
func newLog(kernel bool) *log {
	if kernel {
		if kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
			return &log{out: kmsg, kernel: true}
		}
	}
	return &log{out: os.Stderr}
}

func (l *log) error(text string) {
	l.failed = true
	l.line(3, text)
}

func (l *log) warning(text string) { l.line(4, text) }

// line writes each line of text with its priority (syslog(3)), in one write
// each: the kernel makes one record of a write.
func (l *log) line(priority int, text string) {
	for line := range strings.Lines(text) {
		line = strings.ToValidUTF8(strings.TrimSuffix(line, "\n"), "?")
		if l.kernel {
			if len(line) > maxLine {
				line = strings.ToValidUTF8(line[:maxLine], "") + "…"
			}
			fmt.Fprintf(l.out, "<%d>vmctl-generator[%d]: %s\n", priority, os.Getpid(), line)
			continue
		}
		fmt.Fprintf(l.out, "vmctl-generator: %s\n", line)
	}
}

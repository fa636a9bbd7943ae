package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/netsetup"
)

func TestNewSample(t *testing.T) {
	start := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	l := look{vm: config.VM{Name: "web"}, state: running, record: &hypervisor.Record{Machine: &config.Machine{Name: "web", CPUs: 2, Memory: 1 << 30}}}
	at := func(after time.Duration, cpu float64, bytes uint64) measured {
		return measured{look: l, at: start.Add(after), started: start, cpuSeconds: &cpu, diskRead: &bytes, received: &bytes}
	}
	s := newSample(at(time.Minute, 10, 1000), at(time.Minute+2*time.Second, 13, 5000))
	if s.Name != "web" || s.CPUs != 2 || s.MemoryBytes != 1<<30 || *s.CPUPercent != 150 || *s.DiskReadRate != 2000 || *s.RxRate != 2000 || *s.DiskReadBytes != 5000 {
		t.Errorf("got %+v", s)
	}
	if s.DiskWriteRate != nil || s.TxRate != nil || s.MemoryUsedBytes != nil {
		t.Errorf("what nobody knows is known: %+v", s)
	}
	again := at(time.Hour, 1, 10)
	again.started = start.Add(time.Minute)
	for what, s := range map[string]sample{
		"seen for the first time":  newSample(measured{}, at(time.Minute, 10, 1000)),
		"started again":            newSample(at(time.Minute, 10, 1000), again),
		"measured twice at a time": newSample(at(time.Minute, 10, 1000), at(time.Minute, 10, 1000)),
		"ended":                    newSample(at(time.Minute, 10, 1000), measured{look: l, at: start.Add(time.Hour)}),
	} {
		if s.CPUPercent != nil || s.DiskReadRate != nil || s.RxRate != nil {
			t.Errorf("%s: got %+v", what, s)
		}
	}
	// A card that was plugged out takes its numbers with it.
	if s := newSample(at(time.Minute, 10, 1000), at(2*time.Minute, 10, 500)); s.RxRate != nil || *s.CPUPercent != 0 {
		t.Errorf("got %+v", s)
	}
}

// Each card has its own numbers, but for what was not there before, or has no
// interface on the host.
func TestNewSampleOfCards(t *testing.T) {
	start := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	at := func(after time.Duration, nics ...shownNIC) measured {
		return measured{look: look{vm: config.VM{Name: "web"}}, at: start.Add(after), started: start, nics: nics}
	}
	card := func(name string, received, sent uint64) shownNIC {
		return shownNIC{Name: name, Interface: "vmt-" + name, Traffic: &netsetup.Traffic{RxBytes: received, TxBytes: sent}}
	}
	s := newSample(at(0, card("lan", 100, 10), card("gone", 1, 1)), at(2*time.Second, card("lan", 4196, 10), card("new", 7, 8), shownNIC{Name: "out"}))
	var rows []string
	for _, row := range topTable([]sample{s}, true)[2:] {
		rows = append(rows, strings.Join(row, "|"))
	}
	if got, want := strings.Join(rows, "\n"), "  lan|vmt-lan|||||2K|0B\n  new|vmt-new|||||-|-\n  out|-|||||-|-"; got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if n := len(topTable([]sample{s}, false)); n != 2 {
		t.Errorf("without --nics there are %d lines", n)
	}
	if *s.NICs[1].RxBytes != 7 || *s.NICs[1].TxBytes != 8 || s.NICs[2].RxBytes != nil {
		t.Errorf("got %+v", s.NICs)
	}
}

func TestSortSamples(t *testing.T) {
	all := []sample{
		{Name: "b", CPUPercent: new(1.0), MemoryUsedBytes: new(uint64(5)), TxRate: new(3.0)},
		{Name: "a", CPUPercent: new(1.0), DiskReadRate: new(1.0)},
		{Name: "c", CPUPercent: new(9.0), DiskReadRate: new(0.5), DiskWriteRate: new(0.6), RxRate: new(1.0)},
	}
	for order, want := range map[string]string{"cpu": "cab", "memory": "bac", "disk": "cab", "network": "bca", "name": "abc"} {
		sortSamples(all, order)
		if got := all[0].Name + all[1].Name + all[2].Name; got != want {
			t.Errorf("by %s: got %s, want %s", order, got, want)
		}
	}
}

// topOf shows a table of machines on a terminal and returns what the person sees,
// piece by piece, and how it ended.
func topOf(t *testing.T, next func(context.Context) ([]sample, error)) (person *os.File, shows func(...string), ended func() error) {
	t.Helper()
	program, person := openTerminal(t)
	before, err := term.GetState(int(program.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	s := &topScreen{in: program, out: program, order: "cpu", delay: time.Millisecond, next: next}
	result := make(chan error, 1)
	go func() { result <- s.sitDown(t.Context()) }()
	r := bufio.NewReader(person)
	shows = func(parts ...string) {
		t.Helper()
		for _, part := range parts {
			var seen strings.Builder
			for !strings.HasSuffix(seen.String(), part) {
				b, err := r.ReadByte()
				if err != nil {
					t.Fatalf("no %q in %q", part, seen.String())
				}
				seen.WriteByte(b)
			}
		}
	}
	return person, shows, func() error {
		t.Helper()
		go func() { // or it cannot write
			for {
				if _, err := r.ReadByte(); err != nil {
					return
				}
			}
		}()
		err := <-result
		after, stateErr := term.GetState(int(program.Fd()))
		if stateErr != nil || fmt.Sprint(*after) != fmt.Sprint(*before) {
			t.Errorf("the terminal is not as it was: %v", stateErr)
		}
		return err
	}
}

func TestTopScreen(t *testing.T) {
	var n uint64
	person, shows, ended := topOf(t, func(context.Context) ([]sample, error) {
		n++
		var all []sample
		for _, name := range []string{"aa", "bb", "cc", "dd"} {
			all = append(all, sample{Name: name, State: running, MemoryUsedBytes: new(n << 20)})
		}
		all[3].CPUPercent = new(12.34)
		return all, nil
	})
	shows("\x1b[?1049h", "4 VMs, by cpu", "NAME", "dd ", "12.3%", "aa ", "bb ", "2M") // drawn again
	person.WriteString("a")
	shows("by name", "aa ", "bb ", "cc ", "dd ")
	size := &unix.Winsize{Row: 4, Col: 12}
	if err := unix.IoctlSetWinsize(int(person.Fd()), unix.TIOCSWINSZ, size); err != nil {
		t.Fatal(err)
	}
	shows("4 VMs, by na\x1b[K\r\n\x1b[K\r\nNAME  STATE \x1b[K\r\naa    runnin\x1b[K\x1b[J")
	person.WriteString("xq")
	if err := ended(); err != nil {
		t.Error(err)
	}
}

// Ctrl-C leaves too, and an error is not lost with the screen.
func TestTopScreenEnds(t *testing.T) {
	person, shows, ended := topOf(t, func(context.Context) ([]sample, error) { return nil, nil })
	shows("0 VMs")
	person.WriteString("\x03")
	if err := ended(); err != nil {
		t.Error(err)
	}
	broken := errors.New("lost")
	_, _, ended = topOf(t, func(context.Context) ([]sample, error) { return nil, broken })
	if err := ended(); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestTopOfWhatIsNoOption(t *testing.T) {
	a := &app{ui: &ui{format: jsonFormat}}
	for want, opts := range map[string]topOptions{
		`--sort: want cpu, memory, disk, network or name, got "size"`: {sort: "size", delay: span(time.Second)},
		"--delay: want at least 100ms":                                {sort: "cpu", delay: span(time.Millisecond)},
		"--count: want a number of samples":                           {sort: "cpu", delay: span(time.Second), count: -1},
		"--count: with -o json there is one sample":                   {sort: "cpu", delay: span(time.Second), count: 2},
	} {
		if err := runTop(t.Context(), a, opts, nil); err == nil || err.Error() != want || exitStatus(err) != exitUsage {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vmctl/vmctl/units/bus"
)

// topOptions are the flags of vmctl top.
type topOptions struct {
	delay span
	count int
	sort  string
	nics  bool // a line for each card too
}

// minDelay is the shortest time between two samples: systemd, the hypervisors and
// vmctl itself take some for each.
const minDelay = 100 * time.Millisecond

func newTopCommand(a *app) *cobra.Command {
	opts := topOptions{delay: span(2 * time.Second)}
	cmd := &cobra.Command{
		Use:   "top [NAME...]",
		Short: "Show what VMs use: CPU, memory, disks, network",
		Long: `Show what VMs use, those that run or those named: CPU (100%: all of one CPU of the
host), memory of the host, and what the guest reads, writes, receives and sends
a second. A dash is what is not known, such as the network of user mode.

On a terminal the table is renewed until q is typed; c, m, d, n and a sort it by
CPU, memory, disk, network and name. Elsewhere, and with -o json, there is one
sample, or --count of them as text, each over the time of --delay.`,
		Example: `  vmctl top
  vmctl top --sort memory web db
  vmctl top --nics --sort network
  vmctl top --delay 10s --count 6 | tee usage.txt
  vmctl top -o json | jq -r 'max_by(.cpu_percent).name'`,
		GroupID:           groupLook,
		ValidArgsFunction: a.completeNames,
		RunE:              func(cmd *cobra.Command, args []string) error { return runTop(cmd.Context(), a, opts, args) },
	}
	cmd.Flags().VarP(&opts.delay, "delay", "d", "time from one sample to the next")
	cmd.Flags().IntVarP(&opts.count, "count", "n", 0, "print `N` samples as text, also on a terminal")
	cmd.Flags().StringVar(&opts.sort, "sort", "cpu", "sort by cpu, memory, disk, network or name")
	cmd.Flags().BoolVar(&opts.nics, "nics", false, "show each network card below its VM, with its interface of the host")
	// Only an unknown flag fails here.
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions([]cobra.Completion{"cpu", "memory", "disk", "network", "name"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("delay", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("count", cobra.NoFileCompletions)
	return cmd
}

// topOrders are the orders of the table; the key that chooses each is its first
// letter, but for that of the name.
var topOrders = map[string]struct {
	key   byte
	value func(sample) float64 // the most goes first
}{
	"cpu":     {'c', func(s sample) float64 { return known(s.CPUPercent) }},
	"memory":  {'m', func(s sample) float64 { return known(s.MemoryUsedBytes) }},
	"disk":    {'d', func(s sample) float64 { return known(s.DiskReadRate) + known(s.DiskWriteRate) }},
	"network": {'n', func(s sample) float64 { return known(s.RxRate) + known(s.TxRate) }},
	"name":    {'a', func(sample) float64 { return 0 }},
}

// known is a number, 0 where it is not known.
func known[T uint64 | float64](n *T) float64 {
	if n == nil {
		return 0
	}
	return float64(*n)
}

// sortSamples sorts in one of the orders, those that are equal by name.
func sortSamples(all []sample, order string) {
	value := topOrders[order].value
	slices.SortFunc(all, func(x, y sample) int { return cmp.Or(cmp.Compare(value(y), value(x)), strings.Compare(x.Name, y.Name)) })
}

func runTop(ctx context.Context, a *app, opts topOptions, names []string) error {
	switch {
	case topOrders[opts.sort].value == nil:
		return usageError{fmt.Errorf("--sort: want cpu, memory, disk, network or name, got %q", opts.sort)}
	case time.Duration(opts.delay) < minDelay:
		return usageError{fmt.Errorf("--delay: want at least %v", minDelay)}
	case opts.count < 0:
		return usageError{errors.New("--count: want a number of samples")}
	case opts.count > 0 && a.ui.format == jsonFormat:
		return usageError{errors.New("--count: with -o json there is one sample")}
	}
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	m := &meter{app: a, conn: conn, names: names}
	if a.ui.format == textFormat && opts.count == 0 && isTerminal(a.ui.in) && isTerminal(a.ui.out) {
		screen := &topScreen{in: a.ui.in, out: a.ui.out.(*os.File), order: opts.sort, nics: opts.nics, delay: time.Duration(opts.delay), next: m.next}
		return screen.sitDown(ctx)
	}
	return a.printTop(ctx, opts, m)
}

// meter measures the same machines again and again.
type meter struct {
	app   *app
	conn  *bus.Conn
	names []string // "" for all that run
	last  []measured
}

// next is what they use since the last time.
func (m *meter) next(ctx context.Context) ([]sample, error) {
	looks, err := m.app.lookForTop(ctx, m.conn, m.names)
	if err != nil {
		return nil, err
	}
	now := m.app.measure(ctx, ctx, m.conn, looks, askDisks)
	samples := newSamples(m.last, now)
	m.last = now
	return samples, nil
}

// lookForTop finds out about the machines named, or all that run.
func (a *app) lookForTop(ctx context.Context, conn *bus.Conn, names []string) ([]look, error) {
	if len(names) == 0 {
		all, _, err := a.lookAll(ctx, conn)
		return slices.DeleteFunc(all, func(l look) bool { return !l.active() }), err
	}
	var looks []look
	for _, name := range names {
		l, err := a.lookAt(ctx, conn, name)
		if err != nil {
			return nil, err
		}
		looks = append(looks, l)
	}
	return looks, nil
}

// printTop prints samples one after another.
func (a *app) printTop(ctx context.Context, opts topOptions, m *meter) error {
	if _, err := m.next(ctx); err != nil {
		return err
	}
	for i := range max(opts.count, 1) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(opts.delay)):
		}
		samples, err := m.next(ctx)
		if err != nil {
			return err
		}
		sortSamples(samples, opts.sort)
		if a.ui.format == jsonFormat {
			return a.ui.json(samples)
		}
		if i > 0 {
			a.ui.printf("")
		}
		if err := writeTable(a.ui.out, topTable(samples, opts.nics)); err != nil {
			return err
		}
	}
	return nil
}

func topTable(samples []sample, nics bool) [][]string {
	table := [][]string{{"NAME", "STATE", "CPU", "MEMORY", "READ/s", "WRITTEN/s", "RECEIVED/s", "SENT/s"}}
	for _, s := range samples {
		percent := "-"
		if s.CPUPercent != nil {
			percent = strconv.FormatFloat(*s.CPUPercent, 'f', 1, 64) + "%"
		}
		memory := "-"
		if s.MemoryUsedBytes != nil {
			memory = sizeText(int64(*s.MemoryUsedBytes))
		}
		table = append(table, []string{
			s.Name, string(s.State), percent, memory, rateText(s.DiskReadRate), rateText(s.DiskWriteRate), rateText(s.RxRate), rateText(s.TxRate),
		})
		for _, n := range s.NICs {
			if nics {
				table = append(table, []string{"  " + n.Name, cmp.Or(n.Interface, "-"), "", "", "", "", rateText(n.RxRate), rateText(n.TxRate)})
			}
		}
	}
	return table
}

func rateText(bytes *float64) string {
	if bytes == nil {
		return "-"
	}
	return sizeText(int64(*bytes))
}

// topScreen is the table on a terminal.
type topScreen struct {
	in, out *os.File
	order   string
	nics    bool
	delay   time.Duration
	next    func(context.Context) ([]sample, error)

	samples []sample
}

// sitDown shows the table until the person leaves, and gives the terminal back as
// it was.
func (s *topScreen) sitDown(ctx context.Context) error {
	old, err := term.MakeRaw(int(s.in.Fd()))
	if err != nil {
		return err
	}
	defer term.Restore(int(s.in.Fd()), old)
	// The other screen, without cursor.
	fmt.Fprint(s.out, "\x1b[?1049h\x1b[?25l")
	defer fmt.Fprint(s.out, "\x1b[?25h\x1b[?1049l")
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	return s.run(ctx, typedKeys(s.in), resized)
}

// typedKeys are the bytes that a person types, until the terminal is gone.
func typedKeys(in *os.File) <-chan byte {
	keys := make(chan byte)
	go func() {
		defer close(keys)
		b := make([]byte, 16)
		for {
			n, err := in.Read(b)
			for _, key := range b[:n] {
				keys <- key
			}
			if err != nil {
				return
			}
		}
	}()
	return keys
}

// Keys that end it: q, and Ctrl-C, which is no signal while the terminal is raw.
const quitKeys = "qQ\x03"

func (s *topScreen) run(ctx context.Context, keys <-chan byte, resized <-chan os.Signal) error {
	type result struct {
		samples []sample
		err     error
	}
	results := make(chan result, 1)
	ask := func() {
		samples, err := s.next(ctx)
		results <- result{samples, err}
	}
	go ask()
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-results:
			if r.err != nil {
				return r.err
			}
			s.samples = r.samples
			time.AfterFunc(s.delay, ask)
		case <-resized:
		case key, open := <-keys:
			if !open || strings.IndexByte(quitKeys, key) >= 0 {
				return nil
			}
			for order, o := range topOrders {
				if o.key == key {
					s.order = order
				}
			}
		}
		if err := s.draw(); err != nil {
			return nil // the terminal is gone
		}
	}
}

// draw draws as much as there is room for, without a moment in which nothing is
// there.
func (s *topScreen) draw() error {
	width, height, err := term.GetSize(int(s.out.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		width, height = 80, 24 // of one that does not say
	}
	sortSamples(s.samples, s.order)
	var text bytes.Buffer
	fmt.Fprintf(&text, "%s, by %s. Sort: c CPU, m memory, d disk, n network, a name. q leaves.\n\n", count(len(s.samples), "VM"), s.order)
	if err := writeTable(&text, topTable(s.samples, s.nics)); err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	var b strings.Builder
	b.WriteString("\x1b[H")
	for i, line := range lines[:min(len(lines), height)] {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(string([]rune(line)[:min(len([]rune(line)), width)]) + "\x1b[K")
	}
	b.WriteString("\x1b[J")
	_, err = s.out.WriteString(b.String())
	return err
}

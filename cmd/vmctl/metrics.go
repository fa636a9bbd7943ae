package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/spf13/cobra"
	"golang.org/x/net/netutil"

	"github.com/vmctl/vmctl/hypervisor/access"
)

// metricsOptions are the flags of vmctl metrics.
type metricsOptions struct {
	file  string
	serve bool
	idle  span
}

func newMetricsCommand(a *app) *cobra.Command {
	opts := metricsOptions{idle: span(time.Minute)}
	cmd := &cobra.Command{
		Use:   "metrics",
		Short: "Print what a monitoring system wants to know, in OpenMetrics text",
		Long: `Print what a monitoring system such as Prometheus wants to know: of each VM its
state, restarts, CPU, memory, disks and network, and of this host its load,
memory and storage.

With --file they go into a file, in the older text format that node_exporter's
textfile collector reads: vmctl-metrics.timer does that each half minute. With
--serve they are served over HTTP at /metrics, on a socket that systemd has made:
vmctl-metrics.socket does that, on port 9768 of the loopback. Both are off unless
enabled.

What is not known is left out, such as the network of user mode, or the disks of
a hypervisor that does not answer (vmctl_vm_answers is 0 then).`,
		Example: `  vmctl metrics
  systemctl enable --now vmctl-metrics.socket && curl http://127.0.0.1:9768/metrics
  systemctl enable --now vmctl-metrics.timer
  vmctl metrics -o json | jq '.[] | select(.name == "vmctl_vm_cpu_seconds").samples'`,
		GroupID:           groupLook,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runMetrics(cmd.Context(), a, opts) },
	}
	cmd.Flags().StringVar(&opts.file, "file", "", "write them to this `FILE`, whole or not at all")
	cmd.Flags().BoolVar(&opts.serve, "serve", false, "serve them over HTTP, on a socket of systemd's")
	cmd.Flags().Var(&opts.idle, "idle", "with --serve: end when nobody has asked for so long")
	cmd.MarkFlagsMutuallyExclusive("file", "serve")
	// Only an unknown flag fails here.
	_ = cmd.RegisterFlagCompletionFunc("idle", cobra.NoFileCompletions)
	return cmd
}

func runMetrics(ctx context.Context, a *app, opts metricsOptions) error {
	if opts.serve {
		return a.serveMetrics(ctx, time.Duration(opts.idle))
	}
	families, err := a.collectMetrics(ctx)
	switch {
	case err != nil:
		return err
	case opts.file != "":
		return writeMetricsFile(opts.file, families)
	case a.ui.format == jsonFormat:
		return a.ui.json(families)
	}
	_, err = a.ui.out.Write(openMetrics(families))
	return err
}

// writeMetricsFile writes metrics where a collector finds either those of before
// or these.
func writeMetricsFile(file string, families []family) error {
	err := access.WriteFile(file, prometheusText(families), 0o644, false)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("--file: want a file in a directory that exists, %s does not", filepath.Dir(file))
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return nil
}

// serveMetrics serves metrics on the sockets that systemd has opened.
func (a *app) serveMetrics(ctx context.Context, idle time.Duration) error {
	listeners, err := activation.Listeners()
	if err != nil {
		return fmt.Errorf("taking over the sockets of systemd: %w", err)
	}
	if len(listeners) != 1 || listeners[0] == nil {
		return withHint(usageError{fmt.Errorf("--serve: want one stream socket from systemd, got %d", len(listeners))},
			"systemctl start vmctl-metrics.socket")
	}
	e := &exporter{collect: a.collectMetrics, warn: a.ui.warnf}
	return e.serve(ctx, listeners[0], idle)
}

// exporter serves metrics over HTTP.
type exporter struct {
	collect func(context.Context) ([]family, error)
	warn    func(string, ...any)

	mu   sync.Mutex // one collection at a time
	last []family
	at   time.Time
}

// freshness is for how long what was collected is given to others who ask too.
const freshness = time.Second

// get collects, or takes what somebody else has just had collected.
func (e *exporter) get(ctx context.Context) ([]family, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.at) < freshness {
		return e.last, nil
	}
	families, err := e.collect(ctx)
	if err == nil {
		e.last, e.at = families, time.Now()
	}
	return families, err
}

func (e *exporter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path != "/metrics":
		http.Error(w, "vmctl's metrics are at /metrics", http.StatusNotFound)
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "metrics can only be read", http.StatusMethodNotAllowed)
		return
	}
	families, err := e.get(r.Context())
	if err != nil {
		e.warn("%v", err)
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	text, kind := prometheusText(families), "text/plain; version=0.0.4; charset=utf-8"
	if strings.Contains(r.Header.Get("Accept"), "application/openmetrics-text") {
		text, kind = openMetrics(families), "application/openmetrics-text; version=1.0.0; charset=utf-8"
	}
	w.Header().Set("Content-Type", kind)
	// Whoever asked may have gone.
	_, _ = w.Write(text)
}

// mostScrapers is how many may be connected at once; further ones wait.
const mostScrapers = 64

// serve serves until the context ends, or nobody has been connected for idle.
// Whoever connects later has systemd start it again.
func (e *exporter) serve(ctx context.Context, l net.Listener, idle time.Duration) error {
	var mu sync.Mutex
	connected := 0
	ended := make(chan struct{})
	var once sync.Once
	end := func() { once.Do(func() { close(ended) }) }
	timer := time.AfterFunc(idle, end)
	server := &http.Server{
		Handler: e,
		// A body that nobody asked for, and that never comes, is waited for too.
		ReadTimeout:    10 * time.Second,
		WriteTimeout:   time.Minute,
		MaxHeaderBytes: 64 << 10,
		ConnState: func(_ net.Conn, s http.ConnState) {
			mu.Lock()
			defer mu.Unlock()
			switch s {
			case http.StateNew:
				connected++
				timer.Stop()
			case http.StateClosed:
				if connected--; connected == 0 {
					timer.Reset(idle)
				}
			}
		},
	}
	// A connection that is kept open would keep the process.
	server.SetKeepAlivesEnabled(false)
	done := make(chan error, 1)
	go func() {
		select {
		case <-ctx.Done():
		case <-ended:
		}
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		done <- server.Shutdown(stop)
	}()
	if err := server.Serve(netutil.LimitListener(l, mostScrapers)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving metrics: %w", err)
	}
	return <-done
}

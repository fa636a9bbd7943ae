// Package standin stands in for cloud-hypervisor v53, for tests on machines where
// the real one cannot run: what it does towards who runs it was seen of that. There
// is no guest but a few words on the console that do what a guest would: "off",
// "reboot", "crash", "panic", "deaf" (to the power button), and the rest comes back.
package standin

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"
)

type vmm struct {
	mu     sync.Mutex
	state  string
	deaf   bool
	events *os.File
	start  time.Time
}

// Called says whether this process was executed as cloud-hypervisor.
func Called() bool { return filepath.Base(os.Args[0]) == "cloud-hypervisor" }

// Main is the program. It does not return, but where it is asked for its version.
func Main() {
	if slices.Contains(os.Args, "--version") {
		fmt.Println("cloud-hypervisor v53.0\nMigration Protocol Versions: 1\nEnabled features: [\"io_uring\", \"kvm\"]")
		return
	}
	v := &vmm{start: time.Now(), events: os.NewFile(number("--event-monitor"), "events")}
	v.log("main", "INFO", "v53.0 starting")
	v.event("vmm", "starting")
	if !term.IsTerminal(0) || !term.IsTerminal(1) || os.Getenv("MALLOC_ARENA_MAX") != "1" {
		fatal("want a terminal and one arena")
	}
	l, err := net.FileListener(os.NewFile(number("--api-socket"), "api"))
	if err != nil {
		fatal(err.Error())
	}
	for _, disk := range valuesOf("--disk") {
		v.open(disk)
	}
	go http.Serve(l, v)
	go v.signals()
	v.event("vm", "booting")
	v.boot()
	v.event("vm", "booted")
	v.guest()
}

// number is that of a descriptor, in an option.
func number(name string) uintptr {
	n, err := strconv.Atoi(strings.TrimPrefix(valuesOf(name)[0], "fd="))
	if err != nil {
		fatal(err.Error())
	}
	return uintptr(n)
}

func valuesOf(name string) (values []string) {
	i := slices.Index(os.Args, name)
	for i >= 0 && i+1 < len(os.Args) && !strings.HasPrefix(os.Args[i+1], "-") {
		i++
		values = append(values, os.Args[i])
	}
	return values
}

func fatal(text string) {
	fmt.Fprintln(os.Stderr, "Error: Cloud Hypervisor exited with the following error:\n  "+text)
	os.Exit(1)
}

// open locks a disk as QEMU and cloud-hypervisor do.
func (v *vmm) open(disk string) {
	options := map[string]string{}
	for option := range strings.SplitSeq(disk, ",") {
		key, value, _ := strings.Cut(option, "=")
		options[key] = value
	}
	mode, lock := os.O_RDWR, int16(syscall.F_WRLCK)
	if options["readonly"] == "on" {
		mode, lock = os.O_RDONLY, syscall.F_RDLCK
	}
	f, err := os.OpenFile(options["path"], mode, 0)
	if err != nil {
		fatal(err.Error())
	}
	const setOFDLock = 37
	if err := syscall.FcntlFlock(f.Fd(), setOFDLock, &syscall.Flock_t{Type: lock}); err != nil {
		fatal("Failed to get Write lock for disk image: already locked: " + options["path"])
	}
}

func (v *vmm) log(thread, level, text string) {
	fmt.Fprintf(os.Stderr, "cloud-hypervisor: %.6fs: <%s> %s:vmm/src/lib.rs:1 -- %s\n", time.Since(v.start).Seconds(), thread, level, text)
}

func (v *vmm) event(source, event string, properties ...string) {
	e := struct {
		Timestamp  map[string]int64  `json:"timestamp"`
		Source     string            `json:"source"`
		Event      string            `json:"event"`
		Properties map[string]string `json:"properties"`
	}{map[string]int64{"secs": 0, "nanos": 1}, source, event, nil}
	if len(properties) == 2 {
		e.Properties = map[string]string{properties[0]: properties[1]}
	}
	b, _ := json.MarshalIndent(e, "", "  ")
	v.events.Write(append(b, "\n\n"...))
}

func (v *vmm) end() {
	v.event("vm", "deleted")
	v.event("vmm", "shutdown")
	time.Sleep(20 * time.Millisecond)
	os.Exit(0)
}

func (v *vmm) exit() {
	v.log("vmm", "INFO", "VM exit event")
	v.end()
}

func (v *vmm) signals() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	<-c
	v.exit()
}

func (v *vmm) boot() {
	v.mu.Lock()
	v.state = "Running"
	v.mu.Unlock()
	fmt.Print("guest up\r\n")
}

func (v *vmm) reboot() {
	v.event("vm", "rebooting")
	v.boot()
	v.event("vm", "rebooted")
}

func (v *vmm) guest() {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch in.Text() {
		case "off":
			v.powerOff()
		case "reboot":
			v.log("vcpu0", "INFO", "ACPI Reboot signalled")
			v.reboot()
		case "crash":
			v.log("vcpu0", "ERROR", "VCPU generated error: VcpuRun(Internal error)")
			v.exit()
		case "panic":
			v.event("guest", "panic", "event", "panic")
		case "deaf":
			v.mu.Lock()
			v.deaf = true
			v.mu.Unlock()
			fmt.Print("deaf\r\n")
		default:
			fmt.Printf("you said %s\r\n", in.Text())
		}
	}
	select {} // nobody at the other end of the terminal
}

func (v *vmm) powerOff() {
	v.log("vcpu0", "INFO", "ACPI Shutdown signalled")
	v.exit()
}

func (v *vmm) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	become := func(from, to, event string) {
		if v.state != from {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprintf(w, `["Error from API","Invalid transition: InvalidStateTransition(%s, %s)"]`, v.state, to)
			return
		}
		v.state = to
		if event != "" {
			v.event("vm", event)
		}
		w.WriteHeader(http.StatusNoContent)
	}
	switch r.Method + " " + strings.TrimPrefix(r.URL.Path, "/api/v1/") {
	case "GET vmm.ping":
		fmt.Fprintf(w, `{"build_version":"v53.0","version":"53.0.0","pid":%d,"features":["io_uring","kvm"]}`, os.Getpid())
	case "GET vm.info":
		fmt.Fprintf(w, `{"config":{},"state":%q,"memory_actual_size":0,"device_tree":null}`, v.state)
	case "GET vm.counters":
		fmt.Fprint(w, `{}`)
	case "PUT vm.pause":
		become("Running", "Paused", "paused")
	case "PUT vm.resume":
		become("Paused", "Running", "resumed")
	case "PUT vm.power-button":
		become("Running", "Running", "")
		if v.state == "Running" && !v.deaf {
			go v.powerOff()
		}
	case "PUT vm.reboot":
		become("Running", "Running", "")
		go v.reboot()
	case "PUT vmm.shutdown":
		v.log("vmm", "INFO", "API request event: VmmShutdown")
		go v.end()
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

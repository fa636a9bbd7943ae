// Package standin stands in for cloud-hypervisor v53, for tests on machines where
// the real one cannot run: what it does towards who runs it was seen of that. There
// is no guest but a few words on the console that do what a guest would: "off",
// "reboot", "crash", "panic", "deaf" (to the power button, and to who asks it to let go
// of a device) and "willing" again, "keep TEXT" in its memory and "what" that is, and
// "ready", which tells that it has booted. The rest comes back.
package standin

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

	config config
	tree   map[string]bool       // devices that the guest has not let go of
	files  map[string][]*os.File // by their device
	passed []*os.File            // with a request
	beside []io.Closer           // connections to what runs beside it
	kept   string                // what the guest keeps in its memory
}

// Called says whether this process was executed as cloud-hypervisor.
func Called() bool { return filepath.Base(os.Args[0]) == "cloud-hypervisor" }

// Main is the program. It does not return, but where it is asked for its version.
func Main() {
	if slices.Contains(os.Args, "--version") {
		fmt.Println("cloud-hypervisor v53.0\nMigration Protocol Versions: 1\nEnabled features: [\"io_uring\", \"kvm\"]")
		return
	}
	v := &vmm{
		start: time.Now(), events: os.NewFile(number("--event-monitor"), "events"),
		tree: map[string]bool{}, files: map[string][]*os.File{},
	}
	v.log("main", "INFO", "v53.0 starting")
	v.event("vmm", "starting")
	if !term.IsTerminal(0) || !term.IsTerminal(1) || os.Getenv("MALLOC_ARENA_MAX") != "1" {
		fatal("want a terminal and one arena")
	}
	l, err := net.FileListener(os.NewFile(number("--api-socket"), "api"))
	if err != nil {
		fatal(err.Error())
	}
	go v.signals()
	if from := valuesOf("--restore"); from != nil {
		v.event("vm", "restoring")
		v.restore(parse(from[0])["source_url"])
		go http.Serve(listener{l, v}, v)
		v.event("vm", "restored")
		v.guest()
	}
	v.use(given())
	go http.Serve(listener{l, v}, v)
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
	if err := v.connectBeside(); err != nil {
		fatal(err.Error())
	}
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
		word, rest, _ := strings.Cut(in.Text(), " ")
		switch word {
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
		case "deaf", "willing":
			v.mu.Lock()
			v.deaf = word == "deaf"
			v.mu.Unlock()
			fmt.Print(word + "\r\n")
		case "keep":
			v.mu.Lock()
			v.kept = rest
			v.mu.Unlock()
			fmt.Print("kept\r\n")
		case "ready":
			v.tellReady()
		case "what":
			fmt.Printf("it is %s\r\n", v.kept)
		default:
			fmt.Printf("you said %s\r\n", in.Text())
		}
	}
	select {} // nobody at the other end of the terminal
}

// tellReady does what the guest's systemd does once it has booted.
func (v *vmm) tellReady() {
	_, port, _ := strings.Cut(parse(valuesOf("--platform")[0])["oem_strings"], "=vsock-stream:2:")
	conn, err := net.Dial("unix", parse(valuesOf("--vsock")[0])["socket"]+"_"+strings.TrimSuffix(port, "]"))
	if err != nil {
		fmt.Printf("nobody listens: %v\r\n", err)
		return
	}
	defer conn.Close()
	fmt.Fprint(conn, "STATUS=Up\nREADY=1\n")
	fmt.Print("told\r\n")
}

func (v *vmm) powerOff() {
	v.log("vcpu0", "INFO", "ACPI Shutdown signalled")
	v.exit()
}

// request is what any request has in it.
type request struct {
	URL     string `json:"destination_url"`
	ID      string `json:"id"`
	Size    int64  `json:"desired_size"`
	CPUs    int64  `json:"desired_vcpus"`
	RAM     int64  `json:"desired_ram"`
	Balloon *int64 `json:"desired_balloon"`
}

func (v *vmm) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	var q request
	var device map[string]any
	if len(body) > 0 {
		err = errors.Join(err, json.Unmarshal(body, &q), json.Unmarshal(body, &device))
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	become := func(from, to, event string) error {
		if v.state != from {
			return fmt.Errorf("Invalid transition: InvalidStateTransition(%s, %s)", v.state, to)
		}
		v.state = to
		if event != "" {
			v.event("vm", event)
		}
		return nil
	}
	name := strings.TrimPrefix(r.URL.Path, "/api/v1/")
	switch r.Method + " " + name {
	case "GET vmm.ping":
		v.log("vmm", "INFO", "API request event: VmmPing")
		fmt.Fprintf(w, `{"build_version":"v53.0","version":"53.0.0","pid":%d,"features":["io_uring","kvm"]}`, os.Getpid())
		return
	case "GET vm.info":
		v.log("vmm", "INFO", "API request event: VmInfo")
		v.info(w)
		return
	case "GET vm.counters":
		v.log("vmm", "INFO", "API request event: VmCounters")
		fmt.Fprint(w, `{}`)
		return
	case "PUT vm.pause":
		err = become("Running", "Paused", "paused")
	case "PUT vm.resume":
		err = become("Paused", "Running", "resumed")
	case "PUT vm.power-button":
		if err = become("Running", "Running", ""); err == nil && !v.deaf {
			go v.powerOff()
		}
	case "PUT vm.reboot":
		if err = become("Running", "Running", ""); err == nil {
			go v.reboot()
		}
	case "PUT vm.snapshot":
		if err = become("Paused", "Paused", "snapshotting"); err == nil {
			err = v.snapshot(q.URL)
		}
	case "PUT vm.add-disk":
		err = v.add(device, &v.config.Disks)
	case "PUT vm.add-net":
		err = v.add(device, &v.config.Net)
	case "PUT vm.remove-device":
		err = v.remove(q.ID)
	case "PUT vm.resize":
		err = v.resize(q.CPUs, q.RAM, q.Balloon)
	case "PUT vm.resize-disk":
		if f := v.files[q.ID]; f != nil {
			err = f[0].Truncate(q.Size)
		} else {
			err = errors.New("Unknown device id: " + q.ID)
		}
	case "PUT vmm.shutdown":
		v.log("vmm", "INFO", "API request event: VmmShutdown")
		go v.end()
	default:
		w.WriteHeader(http.StatusNotFound)
		return
	}
	switch {
	case err != nil:
		w.WriteHeader(http.StatusInternalServerError)
		json.NewEncoder(w).Encode([]string{"Error from API", err.Error()})
	case strings.HasPrefix(name, "vm.add-"):
		fmt.Fprintf(w, `{"id":%q,"bdf":"0000:00:09.0"}`, q.ID)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// info tells of the devices twice: what the configuration has, and what the guest
// still has.
func (v *vmm) info(w http.ResponseWriter) {
	actual := v.config.Memory.Size + v.config.Memory.Hotplugged
	if v.config.Balloon != nil {
		actual -= v.config.Balloon.Size
	}
	tree := map[string]any{}
	for id := range v.tree {
		tree[id] = map[string]any{"id": id}
	}
	json.NewEncoder(w).Encode(map[string]any{"config": v.config, "state": v.state, "memory_actual_size": actual, "device_tree": tree})
}

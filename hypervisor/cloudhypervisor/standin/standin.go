// Package standin stands in for cloud-hypervisor v53, for tests on machines where
// the real one cannot run: what it does towards who runs it was seen of that. There
// is no guest, but what the console has does what [hypervisortest.Guest] would; and
// so do a few lines for what that cannot: "crash" of the hypervisor, "deaf" to who asks
// it to let go of a device and "willing" again, and "ready", which tells that it has
// booted.
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

	"github.com/vmctl/vmctl/hypervisor/hypervisortest"
)

type vmm struct {
	mu     sync.Mutex
	state  string
	deaf   bool // to who asks it to let go of a device
	heeds  bool // its power button
	events *os.File
	start  time.Time

	config config
	tree   map[string]bool        // devices that the guest has not let go of
	files  map[string][]*os.File  // by their device
	passed []*os.File             // with a request
	beside map[string][]io.Closer // connections to what runs beside it, by their device
	kept   byte                   // what the guest keeps in its memory
}

// Called says whether this process was executed as cloud-hypervisor.
func Called() bool { return filepath.Base(os.Args[0]) == "cloud-hypervisor" }

// Main is the program. It does not return, but where it is asked for its version.
func Main() {
	if slices.Contains(os.Args, "--version") {
		fmt.Println("cloud-hypervisor v53.0\nMigration Protocol Versions: 1\nEnabled features: [\"io_uring\", \"kvm\"]")
		return
	}
	checkOptions()
	v := &vmm{
		start: time.Now(), events: os.NewFile(number("--event-monitor"), "events"),
		tree: map[string]bool{}, files: map[string][]*os.File{}, beside: map[string][]io.Closer{},
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

// The options that are taken: those of the process, those that say what the machine
// boots, without which none of its others may be there, and those.
var (
	ofProcess = []string{"--api-socket", "--event-monitor", "-v", "--seccomp", "--restore"}
	ofPayload = []string{"--kernel", "--firmware", "--initramfs", "--cmdline"}
	ofMachine = []string{
		"--landlock", "--landlock-rules", "--platform", "--cpus", "--memory", "--serial", "--console", "--pvpanic", "--rng", "--watchdog",
		"--balloon", "--vsock", "--tpm", "--disk", "--net", "--fs", "--device",
	}
)

// checkOptions ends the program where it is given others than it takes.
func checkOptions() {
	refuse := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "error: "+format+"\n", args...)
		os.Exit(2)
	}
	given := map[string]bool{}
	for _, arg := range os.Args[1:] {
		name, _, _ := strings.Cut(arg, "=")
		if strings.HasPrefix(arg, "-") && !slices.Contains(slices.Concat(ofProcess, ofPayload, ofMachine), name) {
			refuse("unexpected argument '%s' found", arg)
		}
		given[name] = true
	}
	is := func(name string) bool { return given[name] }
	if slices.ContainsFunc(ofMachine, is) && !slices.ContainsFunc(ofPayload, is) {
		refuse("the following required arguments were not provided:\n  <--firmware <firmware>|--kernel <kernel>>")
	}
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
	v.state, v.heeds, v.kept = "Running", false, '?'
	v.mu.Unlock()
	fmt.Print(hypervisortest.GuestUp)
}

func (v *vmm) reboot() {
	v.event("vm", "rebooting")
	v.boot()
	v.event("vm", "rebooted")
}

// guest reads the console, and does what it has.
func (v *vmm) guest() {
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			select {} // nobody at the other end of the terminal
		}
		v.whileRunning()
		switch word := strings.TrimSpace(line); word {
		case "crash":
			v.log("vcpu0", "ERROR", "VCPU generated error: VcpuRun(Internal error)")
			v.exit()
		case "deaf", "willing":
			v.mu.Lock()
			v.deaf = word == "deaf"
			v.mu.Unlock()
			fmt.Print(word + "\r\n")
		case "ready":
			v.tellReady()
		default:
			for rest := []byte(line); len(rest) > 0; {
				rest = v.obey(rest[0], rest[1:])
			}
		}
	}
}

// whileRunning waits until the guest's CPUs run.
func (v *vmm) whileRunning() {
	for ; ; time.Sleep(10 * time.Millisecond) {
		v.mu.Lock()
		running := v.state == "Running"
		v.mu.Unlock()
		if running {
			return
		}
	}
}

// obey does what [hypervisortest.Guest] does with a byte that it is sent, and returns
// what is left of those after it.
func (v *vmm) obey(b byte, rest []byte) []byte {
	switch b {
	case 'p':
		v.powerOff()
	case 'r':
		v.log("vcpu0", "INFO", "ACPI Reboot signalled")
		v.reboot()
		return rest
	case 'n':
		v.event("guest", "panic", "event", "panic")
		return rest
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch b {
	case 'b':
		v.heeds = true
	case 'k':
		v.kept, rest = rest[0], rest[1:] // the end of the line, if nothing else
		b = v.kept
	case 'w':
		b = v.kept
	}
	os.Stdout.Write([]byte{b})
	return rest
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
		if err = become("Running", "Running", ""); err == nil && v.heeds {
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
	case "PUT vm.add-fs":
		err = v.addShare(device)
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

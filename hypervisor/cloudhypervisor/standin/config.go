package standin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// config is what vm.info says, and a snapshot has of it.
type config struct {
	CPUs     cpus                `json:"cpus"`
	Memory   memory              `json:"memory"`
	Balloon  *balloon            `json:"balloon"`
	Disks    []map[string]any    `json:"disks"`
	Net      []map[string]any    `json:"net"`
	FS       []map[string]any    `json:"fs"`
	TPM      map[string]string   `json:"tpm"`
	Confined bool                `json:"landlock_enable"`
	Landlock []map[string]string `json:"landlock_rules"`
}

type cpus struct {
	Boot int `json:"boot_vcpus"`
	Max  int `json:"max_vcpus"`
}

type memory struct {
	Size       int64 `json:"size"`
	Hotplug    int64 `json:"hotplug_size"`
	Hotplugged int64 `json:"hotplugged_size"`
	Shared     bool  `json:"shared"`
}

type balloon struct {
	Size int64 `json:"size"`
}

// given is the configuration of the command line.
func given() (c config) {
	for _, disk := range valuesOf("--disk") {
		d := parse(disk)
		c.Disks = append(c.Disks, map[string]any{"id": d["id"], "path": d["path"], "readonly": d["readonly"] == "on"})
	}
	for _, card := range valuesOf("--net") {
		n := parse(card)
		c.Net = append(c.Net, map[string]any{"id": n["id"], "mac": n["mac"], "fds": n["fd"]})
	}
	for _, share := range valuesOf("--fs") {
		s := parse(share)
		c.FS = append(c.FS, map[string]any{"id": s["id"], "tag": s["tag"], "socket": s["socket"]})
	}
	for _, tpm := range valuesOf("--tpm") {
		c.TPM = parse(tpm)
	}
	c.Confined = slices.Contains(os.Args, "--landlock")
	for _, rule := range valuesOf("--landlock-rules") {
		c.Landlock = append(c.Landlock, parse(rule))
	}
	for _, value := range valuesOf("--cpus") {
		n := parse(value)
		c.CPUs.Boot, _ = strconv.Atoi(n["boot"])
		c.CPUs.Max = c.CPUs.Boot
		if most, err := strconv.Atoi(n["max"]); err == nil {
			c.CPUs.Max = most
		}
	}
	for _, value := range valuesOf("--memory") {
		n := parse(value)
		c.Memory.Size, c.Memory.Hotplug = bytesOf(n["size"]), bytesOf(n["hotplug_size"])
		c.Memory.Shared = n["shared"] == "on"
	}
	if len(valuesOf("--balloon")) > 0 {
		c.Balloon = new(balloon)
	}
	return c
}

// parse takes an option apart. Quotes take a comma its meaning.
func parse(option string) map[string]string {
	parsed := map[string]string{}
	var part strings.Builder
	quoted, depth := false, 0
	end := func() {
		key, value, _ := strings.Cut(part.String(), "=")
		parsed[key] = value
		part.Reset()
	}
	for _, c := range option {
		switch {
		case c == '"':
			quoted = !quoted
			continue
		case quoted:
		case c == '[':
			depth++
		case c == ']':
			depth--
		case c == ',' && depth == 0:
			end()
			continue
		}
		part.WriteRune(c)
	}
	end()
	return parsed
}

func bytesOf(size string) int64 {
	unit := int64(1)
	if number, mega := strings.CutSuffix(size, "M"); mega {
		size, unit = number, 1<<20
	}
	n, _ := strconv.ParseInt(size, 10, 64)
	return n * unit
}

// use opens what a configuration names.
func (v *vmm) use(c config) {
	v.config = c
	for _, disk := range c.Disks {
		if err := v.open(disk); err != nil {
			fatal(err.Error())
		}
		v.tree[fmt.Sprint(disk["id"])] = true
	}
	for _, share := range c.FS {
		v.tree[fmt.Sprint(share["id"])] = true
	}
	for _, card := range c.Net {
		id := fmt.Sprint(card["id"])
		v.tree[id] = true
		for number := range strings.SplitSeq(strings.Trim(fmt.Sprint(card["fds"]), "[]"), ",") {
			if fd, err := strconv.Atoi(number); err == nil {
				v.files[id] = append(v.files[id], os.NewFile(uintptr(fd), id))
			}
		}
	}
}

// open locks a disk as QEMU and cloud-hypervisor do.
func (v *vmm) open(disk map[string]any) error {
	mode, lock := os.O_RDWR, int16(syscall.F_WRLCK)
	if disk["readonly"] == true {
		mode, lock = os.O_RDONLY, syscall.F_RDLCK
	}
	path := fmt.Sprint(disk["path"])
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return err
	}
	const setOFDLock = 37
	if err := syscall.FcntlFlock(f.Fd(), setOFDLock, &syscall.Flock_t{Type: lock}); err != nil {
		f.Close()
		return errors.New("Failed to get Write lock for disk image: already locked: " + path)
	}
	v.files[fmt.Sprint(disk["id"])] = []*os.File{f}
	return nil
}

// mayWrite says whether the rules that it was given, or has from its state, let it.
func (v *vmm) mayWrite(path string) bool {
	return !v.config.Confined ||
		slices.ContainsFunc(v.config.Landlock, func(rule map[string]string) bool {
			return rule["access"] == "rw" && (path == rule["path"] || strings.HasPrefix(path, rule["path"]+"/"))
		})
}

// The files of a snapshot.
const configFile, stateFile, memoryFile = "config.json", "state.json", "memory-ranges"

// snapshot writes a directory, in which nothing may be yet.
func (v *vmm) snapshot(url string) error {
	dir := strings.TrimPrefix(url, "file://")
	if !v.mayWrite(dir) {
		return errors.New("Permission denied (os error 13)")
	}
	text, err := json.Marshal(v.config)
	if err != nil {
		return err
	}
	memory := append([]byte{v.kept}, make([]byte, 1<<20)...)
	for name, content := range map[string][]byte{configFile: text, stateFile: []byte("{}"), memoryFile: memory} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(content)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// restore goes on from such a directory.
func (v *vmm) restore(url string) {
	dir := strings.TrimPrefix(url, "file://")
	text, err := os.ReadFile(filepath.Join(dir, configFile))
	memory, memoryErr := os.ReadFile(filepath.Join(dir, memoryFile))
	var c config
	if err := errors.Join(err, memoryErr, json.Unmarshal(text, &c)); err != nil {
		fatal(err.Error())
	}
	v.use(c)
	v.kept = memory[0]
	v.state = "Paused"
}

// add plugs a device in; list is where the configuration has those of its kind.
func (v *vmm) add(device map[string]any, list *[]map[string]any) error {
	id := fmt.Sprint(device["id"])
	if v.tree[id] {
		return errors.New("Identifier " + id + " is not unique")
	}
	if path := device["path"]; path != nil {
		if !v.mayWrite(fmt.Sprint(path)) {
			return errors.New("Permission denied (os error 13)")
		}
		if err := v.open(device); err != nil {
			return err
		}
	}
	if socket, hasPeer := device["vhost_socket"].(string); hasPeer && device["vhost_user"] == true {
		peer, err := net.Dial("unix", socket)
		if err != nil {
			return err
		}
		peer.Close()
	} else if queues, isCard := device["num_queues"].(float64); isCard && device["mac"] != nil {
		if int(queues) != 2*len(v.passed) {
			return fmt.Errorf("%v queues, and %d descriptors", queues, len(v.passed))
		}
		v.files[id], v.passed = v.passed, nil
	}
	*list = append(*list, device)
	v.tree[id] = true
	return nil
}

// addShare plugs a share in, whose server maps the guest's memory.
func (v *vmm) addShare(share map[string]any) error {
	id := fmt.Sprint(share["id"])
	if v.tree[id] {
		return errors.New("Identifier " + id + " is not unique")
	}
	if !v.config.Memory.Shared {
		return errors.New("Using vhost-user requires using shared memory")
	}
	if err := v.connectShare(share); err != nil {
		return err
	}
	return v.add(share, &v.config.FS)
}

// listener takes descriptors that come with requests.
type listener struct {
	net.Listener
	v *vmm
}

func (l listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return taker{conn.(*net.UnixConn), l.v}, nil
}

type taker struct {
	*net.UnixConn
	v *vmm
}

func (t taker) Read(p []byte) (int, error) {
	oob := make([]byte, 1024)
	n, oobn, _, _, err := t.ReadMsgUnix(p, oob)
	messages, _ := syscall.ParseSocketControlMessage(oob[:oobn])
	for _, m := range messages {
		fds, _ := syscall.ParseUnixRights(&m)
		t.v.mu.Lock()
		for _, fd := range fds {
			t.v.passed = append(t.v.passed, os.NewFile(uintptr(fd), "queue"))
		}
		t.v.mu.Unlock()
	}
	return n, err
}

// remove takes a device out of the configuration, and out of a guest that is willing.
func (v *vmm) remove(id string) error {
	is := func(d map[string]any) bool { return fmt.Sprint(d["id"]) == id }
	if !slices.ContainsFunc(slices.Concat(v.config.Disks, v.config.Net, v.config.FS), is) {
		return errors.New("Unknown device id: " + id)
	}
	v.config.Disks = slices.DeleteFunc(v.config.Disks, is)
	v.config.Net = slices.DeleteFunc(v.config.Net, is)
	v.config.FS = slices.DeleteFunc(v.config.FS, is)
	go func() {
		for !v.letGo(id) {
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return nil
}

// letGo is the guest's part of that.
func (v *vmm) letGo(id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.deaf {
		return false
	}
	delete(v.tree, id)
	for _, f := range v.files[id] {
		f.Close()
	}
	delete(v.files, id)
	v.disconnect(id)
	return true
}

// resize changes what is not 0, and a balloon that is given.
func (v *vmm) resize(cpus, memory int64, size *int64) error {
	switch {
	case int(cpus) > v.config.CPUs.Max:
		return errors.New("Desired vCPU count exceeds maximum")
	case memory > v.config.Memory.Size+v.config.Memory.Hotplug:
		return errors.New("Requested memory is more than there is room for")
	case memory > 0 && memory < v.config.Memory.Size:
		return errors.New("Resize below boot size")
	case size != nil && v.config.Balloon == nil:
		return errors.New("Missing virtio-balloon")
	}
	if cpus > 0 {
		v.config.CPUs.Boot = int(cpus)
	}
	if memory > 0 {
		v.config.Memory.Hotplugged = memory - v.config.Memory.Size
	}
	if size != nil {
		v.config.Balloon.Size = *size
	}
	return nil
}

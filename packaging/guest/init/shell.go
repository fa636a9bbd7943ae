package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const busybox = "/bin/busybox"

// command is what the shell can do by itself.
type command struct {
	name, args, doc string
	run             func(g *guest, args []string) error
}

func commands() []command {
	return []command{
		{"help", "", "this list", (*guest).help},
		{"info", "", "processors, memory and devices", (*guest).info},
		{"disks", "", "block devices", (*guest).listDisks},
		{"net", "", "network cards", (*guest).showCards},
		{"dhcp", "CARD", "get an address for a card, in place of the one that it has", (*guest).dhcp},
		{"dhcp6", "CARD", "get an address by DHCPv6 too", (*guest).dhcp6},
		{"frame", "CARD HEX", "send a frame by a card as it is", (*guest).sendFrame},
		{"seed", "", "what cloud-init was given", func(g *guest, _ []string) error { g.printSeed(); return nil }},
		{"cat", "FILE", "print a file", (*guest).cat},
		{"write", "DISK TEXT", "write a text to the first sector of a disk", (*guest).write},
		{"read", "DISK", "print the text in the first sector of a disk", (*guest).read},
		{"tpm", "", "version of the TPM, and its own key", (*guest).tpm},
		{"tpm-write", "TEXT", "write a text to the TPM", (*guest).tpmWrite},
		{"tpm-read", "", "print the text in the TPM", (*guest).tpmRead},
		{"poweroff", "", "power off", func(g *guest, _ []string) error { g.powerOff(); return nil }},
		{"reboot", "", "restart", func(g *guest, _ []string) error { g.reboot(); return nil }},
		{"panic", "", "make the kernel panic", (*guest).panic},
		{"ignore-power", "", "do not answer the power button any more", (*guest).stopAnswering},
		{"agent", "", "answer as the guest agent would", func(g *guest, _ []string) error { go g.serveAgent(); return nil }},
		{"watchdog", "", "start the watchdog, and never feed it", (*guest).watchdog},
		{"spam", "N", "print N lines", (*guest).spam},
		{"hang", "", "do nothing any more, whatever happens", (*guest).hang},
	}
}

// shell reads commands from the console, for ever.
func (g *guest) shell() {
	lines := bufio.NewReader(g.console)
	for {
		name, err := os.Hostname()
		if err != nil {
			name = err.Error()
		}
		g.print("%s# ", name)
		line, err := lines.ReadString('\n')
		if err != nil {
			g.say("reading the console: %v", err)
			select {} // the power button still works
		}
		if words := strings.Fields(line); len(words) > 0 {
			if err := g.runLine(words, strings.TrimSpace(line)); err != nil {
				g.say("%s: %v", words[0], err)
			}
		}
	}
}

func (g *guest) runLine(words []string, line string) error {
	for _, c := range commands() {
		if c.name != words[0] {
			continue
		}
		if len(words)-1 < len(strings.Fields(c.args)) {
			return fmt.Errorf("wants %s", c.args)
		}
		return c.run(g, words[1:])
	}
	if _, err := os.Stat(busybox); err != nil {
		return fmt.Errorf("no such command; type help")
	}
	if line == "sh" {
		return g.runProgram(busybox, "sh")
	}
	return g.runProgram(busybox, "sh", "-c", line)
}

// runProgram gives the console to a program until it ends. The session stays
// ours: the end of one that a program leads would hang up the console for all.
func (g *guest) runProgram(argv ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = g.console, g.console, g.console
	cmd.SysProcAttr = &syscall.SysProcAttr{Foreground: true, Ctty: int(g.console.Fd())}
	err := cmd.Run()
	return errors.Join(err, unix.IoctlSetPointerInt(int(g.console.Fd()), unix.TIOCSPGRP, unix.Getpgrp()))
}

func (g *guest) help([]string) error {
	for _, c := range commands() {
		g.print("  %-22s %s\n", c.name+" "+c.args, c.doc)
	}
	if _, err := os.Stat(busybox); err == nil {
		g.print("  anything else is run by busybox; sh starts its shell\n")
	}
	return nil
}

func (g *guest) info([]string) error {
	var s unix.Sysinfo_t
	if err := unix.Sysinfo(&s); err != nil {
		return err
	}
	g.say("cpus %d", runtime.NumCPU())
	g.say("memory %d", s.Totalram*uint64(s.Unit))
	g.say("uuid %s", readLine("/sys/class/dmi/id/product_uuid"))
	g.say("rng %s", readLine("/sys/class/misc/hw_random/rng_current"))
	g.say("vsock cid %s", localCID())
	for _, dir := range glob("/sys/class/virtio-ports/*") {
		g.say("port %s", readLine(dir+"/name"))
	}
	for _, dir := range glob("/sys/class/watchdog/*") {
		g.say("watchdog %s", readLine(dir+"/identity"))
	}
	for _, dir := range glob("/sys/bus/virtio/devices/*") {
		g.say("virtio %s driver=%s", readLine(dir+"/device"), driver(dir))
	}
	for _, dir := range glob("/sys/bus/pci/devices/*") {
		g.say("pci %s %s:%s driver=%s", filepath.Base(dir), readLine(dir+"/vendor"), readLine(dir+"/device"), driver(dir))
	}
	return nil
}

// localCID returns the machine's vsock address.
func localCID() string {
	const getLocalCID = 0x7b9 // IOCTL_VM_SOCKETS_GET_LOCAL_CID
	f, err := os.Open("/dev/vsock")
	if err != nil {
		return "none"
	}
	defer f.Close()
	cid, err := unix.IoctlGetUint32(int(f.Fd()), getLocalCID)
	if err != nil {
		return err.Error()
	}
	return strconv.FormatUint(uint64(cid), 10)
}

func (g *guest) listDisks([]string) error {
	for _, d := range disks() {
		g.say("%s", d)
	}
	g.say("disks done")
	return nil
}

func (g *guest) cat(args []string) error {
	content, err := os.ReadFile(args[0])
	g.print("%s\n", strings.TrimRight(string(content), "\n"))
	return err
}

func (g *guest) write(args []string) error {
	if err := writeMarker(args[0], strings.Join(args[1:], " ")); err != nil {
		return err
	}
	g.say("wrote %s", args[0])
	return nil
}

func (g *guest) read(args []string) error {
	text, err := readMarker(args[0])
	if err != nil {
		return err
	}
	g.say("%s holds %q", args[0], text)
	return nil
}

func (g *guest) panic([]string) error {
	drain(g.console)
	return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
}

func (g *guest) stopAnswering([]string) error {
	g.ignorePower.Store(true)
	g.say("ignoring the power button")
	return nil
}

func (g *guest) watchdog([]string) error {
	f, err := os.OpenFile("/dev/watchdog", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	g.say("watchdog %s runs", f.Name())
	go func() { // keeps it open
		defer f.Close()
		select {}
	}()
	return nil
}

func (g *guest) spam(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	out := bufio.NewWriter(g.console)
	for i := range n {
		fmt.Fprintf(out, "spam %d of %d: the quick brown fox jumps over the lazy dog\n", i+1, n)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	g.say("spam done")
	return nil
}

func (g *guest) hang([]string) error {
	g.ignorePower.Store(true)
	g.say("hanging")
	select {}
}

// The init program of vmctl's little guest: process 1 of a machine that has
// nothing but a kernel and an initial RAM disk, as started by the demo and by
// the end-to-end tests.
//
// It loads the drivers that the machine's devices ask for, says what it was
// given (cloud-init seed, systemd credentials, disks, cards), answers the
// power button, serves a greeting on TCP port 7, and runs a shell with a few
// commands of its own on the console. Everything it has to say about itself is
// one line that begins with "vmctl-guest: ", the last one at start being
// "vmctl-guest: ready".
//
// The kernel's command line can change what it does:
//
//	guest.quiet         do not print the content of seed and credentials
//	guest.ignore-power  do not answer the power button
//	guest.agent         answer as the QEMU guest agent would
//	MODULE.NAME=VALUE   parameters of kernel modules
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// guest is the machine from within.
type guest struct {
	console     *os.File
	cmdline     []string
	ignorePower atomic.Bool
}

func main() {
	g := &guest{}
	errs := mountAll()
	g.cmdline = strings.Fields(readLine("/proc/cmdline"))
	g.ignorePower.Store(g.option("guest.ignore-power"))

	errs = append(errs, loadModules(g.cmdline)...)
	g.console = openConsole()
	if err := leadSession(g.console); err != nil {
		errs = append(errs, fmt.Errorf("taking the console: %w", err))
	}
	for _, err := range errs {
		g.say("%v", err)
	}

	g.banner()
	g.applySeed()
	g.showCredentials()
	g.startNetwork()
	g.watchPower()
	if g.option("guest.agent") {
		go g.serveAgent()
	}
	g.say("ready")
	g.shell()
}

func (g *guest) option(name string) bool { return slices.Contains(g.cmdline, name) }

// say prints one line that others look for.
func (g *guest) say(format string, args ...any) {
	g.print("vmctl-guest: "+format+"\n", args...)
}

func (g *guest) print(format string, args ...any) { fmt.Fprintf(g.console, format, args...) }

func (g *guest) banner() {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		g.say("reading the kernel's version: %v", err)
	}
	g.print("\n  vmctl's little guest. Type help for what it can do.\n\n")
	g.say("kernel %s", unix.ByteSliceToString(u.Release[:]))
	g.say("machine %s %s", readLine("/sys/class/dmi/id/sys_vendor"), readLine("/sys/class/dmi/id/product_name"))
}

func mountAll() []error {
	var errs []error
	for _, m := range []struct{ kind, where string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"},
	} {
		if err := unix.Mount(m.kind, m.where, m.kind, 0, ""); err != nil {
			errs = append(errs, fmt.Errorf("mounting %s: %w", m.where, err))
		}
	}
	return errs
}

// openConsole opens what the kernel uses as its console, which for a virtio
// console exists only once the driver is loaded; without console= it takes the
// first there is.
func openConsole() *os.File {
	active := strings.Fields(readLine("/sys/class/tty/console/active"))
	slices.Reverse(active) // /dev/console is the last one
	for _, name := range append(active, "hvc0", "ttyS0", "console") {
		// Blocking, since programs that we start share it.
		fd, err := unix.Open("/dev/"+name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), name)
		}
	}
	return os.Stderr
}

// leadSession makes the console the terminal of a session of ours, so that
// programs can have it in turn, with Ctrl-C and all.
func leadSession(console *os.File) error {
	signal.Ignore(unix.SIGTTOU) // of taking it back
	if _, err := unix.Setsid(); err != nil {
		return err
	}
	return unix.IoctlSetInt(int(console.Fd()), unix.TIOCSCTTY, 0)
}

// readLine returns the first line of a small file, "" where there is none.
func readLine(file string) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(content), "\n")
	return strings.TrimSpace(line)
}

// glob returns the files that match, none where the pattern is no pattern.
func glob(pattern string) []string {
	files, _ := filepath.Glob(pattern)
	return files
}

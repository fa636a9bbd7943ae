package main

import (
	"encoding/binary"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// watchPower answers the power button, and Ctrl-Alt-Del.
func (g *guest) watchPower() {
	for _, dir := range glob("/sys/class/input/event*") {
		if readLine(dir+"/device/name") == "Power Button" {
			go g.watchButton("/dev/input/" + filepath.Base(dir))
		}
	}

	// Without this, the kernel restarts at once instead of telling process 1.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		g.say("taking Ctrl-Alt-Del from the kernel: %v", err)
		return
	}
	pressed := make(chan os.Signal, 1)
	signal.Notify(pressed, unix.SIGINT)
	go func() {
		<-pressed
		g.say("ctrl-alt-del pressed")
		g.reboot()
	}()
}

// watchButton reads input events: two machine words of time, then type, code
// (16 bits each) and value (32 bits); see linux/input.h.
func (g *guest) watchButton(device string) {
	const size, at = 24, 16
	const typeKey, keyPower, press = 1, 116, 1
	f, err := os.Open(device)
	if err != nil {
		g.say("opening the power button: %v", err)
		return
	}
	event := make([]byte, size)
	for {
		if _, err := f.Read(event); err != nil {
			g.say("reading the power button: %v", err)
			return
		}
		kind := binary.LittleEndian.Uint16(event[at:])
		code := binary.LittleEndian.Uint16(event[at+2:])
		value := binary.LittleEndian.Uint32(event[at+4:])
		if kind != typeKey || code != keyPower || value != press {
			continue
		}
		if g.ignorePower.Load() {
			g.say("power button pressed, and ignored")
			continue
		}
		g.say("power button pressed")
		g.powerOff()
	}
}

func (g *guest) powerOff() {
	g.say("powering off")
	g.end(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func (g *guest) reboot() {
	g.say("rebooting")
	g.end(unix.LINUX_REBOOT_CMD_RESTART)
}

func (g *guest) end(how int) {
	unix.Sync()
	drain(g.console)
	if err := unix.Reboot(how); err != nil {
		g.say("%v", err)
	}
}

// drain waits until what was printed has left the machine.
func drain(f *os.File) {
	// TCSBRK with an argument that is not zero is tcdrain(3).
	unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1)
}

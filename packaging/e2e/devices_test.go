//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// greets waits until the little guest's service behind a port of the host says
// hello: its card and the service need not be up when its shell is.
func (v *vm) greets(port, hello string) {
	v.t.Helper()
	eventually(v.t, "the guest says "+hello+" behind "+port, func() bool { return strings.HasPrefix(greeting(port), hello) })
}

// greeting is the first line of that service.
func greeting(port string) string {
	conn, err := net.Dial("tcp", port)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	// passt accepts a connection before the guest does.
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err.Error()
	}
	line := make([]byte, 100)
	n, err := conn.Read(line)
	if err != nil && err != io.EOF {
		return err.Error()
	}
	return string(line[:n])
}

// answer is the same, but the client speaks first: with Debian 12's passt, no
// connection to the guest begins before that.
func answer(port string) string {
	conn, err := net.DialTimeout("tcp", port, 10*time.Second)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err.Error()
	}
	line := make([]byte, 100)
	n := 0
	if _, err = conn.Write([]byte("\n")); err == nil {
		n, err = conn.Read(line)
	}
	if err != nil && err != io.EOF {
		return err.Error()
	}
	return string(line[:n])
}

// A guest has every device that it was given, its seed and its credentials.
func TestDevices(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "devices")
	writeFile(t, dir+"/token", "a token\nof two lines")
	v := newVMFrom(t, "devices", littleGuest("generic", "")+fmt.Sprintf(`
cpus = 2
uuid = "12345678-1234-4234-8234-123456789abc"
[nic.lan]
user = true
mac = "52:54:00:12:34:56"
mtu = 1400
forward = ["127.0.0.1:7007:7/tcp"]
[watchdog]
enabled = true
[cloud_init]
hostname = "named-by-seed"
user_data = "#cloud-config\n# user data as it is\n"
meta_data = "instance-id: i-1\nlocal-hostname: named-by-seed\n"
network_config = "version: 2\n"
vendor_data = "#cloud-config\n# vendor\n"
[credentials]
"e2e.text" = "plain, with = and \" in it"
"e2e.file" = { file = %q }
`, dir+"/token"))
	v.start()
	v.expect(`hostname named-by-seed`)
	for _, file := range []string{"meta-data", "network-config", "user-data", "vendor-data"} {
		v.expect(`--- ` + file)
	}
	v.expect(`credential e2e.file = "a token\\nof two lines"`)
	v.expect(`card \S+ mac 52:54:00:12:34:56 mtu 1400 driver virtio_net`)
	v.expectReady()
	contains(t, v.shown(), "# user data as it is", "instance-id: i-1", `credential e2e.text = "plain, with = and \" in it"`)

	v.typeLine("info")
	v.expect(`cpus 2`)
	v.expect(`uuid 12345678-1234-4234-8234-123456789abc`)
	v.expect(`rng virtio_rng`)
	v.expect(`port org.qemu.guest_agent.0`)
	v.expect(`watchdog i6300ESB`)
	v.expect(`virtio 0x0005 driver=virtio_balloon`)
	v.typeLine("grep -h . /sys/bus/acpi/devices/*/hid")
	v.expect(`(?i)VMGENCTR|QEMUVGID`)
	v.greets("127.0.0.1:7007", "hello from named-by-seed\n")
	if got := run(t, "stat", "-c", "%a", v.runtimeDir()+"/cloudinit.iso"); got != "600" {
		t.Errorf("mode of the seed: %s, want 600", got)
	}

	// A guest that feeds its watchdog no more is reset, by the same process.
	pid := v.mainPID()
	v.typeLine("watchdog")
	v.expect(`watchdog /dev/watchdog runs`)
	v.expectReady()
	if got := v.mainPID(); got != pid {
		t.Errorf("process %d after the watchdog's reset, was %d", got, pid)
	}
	run(t, "systemctl", "stop", v.unit())
}

// UEFI boots, and what it writes is the machine's own, and stays.
func TestUEFI(t *testing.T) {
	t.Parallel()
	v := newVM(t, "uefi", `boot.firmware = "uefi"`)
	v.boot()
	v.typeLine("ls /sys/firmware/efi")
	v.expect(`runtime`)
	stores, err := filepath.Glob(v.stateDir() + "/nvram.*")
	if err != nil || len(stores) != 1 {
		t.Fatalf("variable stores: %v, %v; want one", stores, err)
	}
	before := nvram(t, stores[0])
	if before.uid == 0 {
		t.Error("the variable store is root's")
	}
	run(t, "systemctl", "stop", v.unit())
	// A mark in the part that the firmware leaves alone.
	mark(t, stores[0])
	v.start()
	v.expectReady()
	run(t, "systemctl", "stop", v.unit())
	if got := nvram(t, stores[0]); !got.marked || got.inode != before.inode {
		t.Errorf("the variable store was made anew: %+v, was %+v", got, before)
	}
}

// Secure Boot is on from the first start, with keys of its own, and the firmware
// starts nothing that they do not vouch for: Debian's kernel as it comes, without
// the shim that Microsoft has signed.
func TestSecureBoot(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "secure-boot")
	kernel := filepath.Join(os.Getenv("VMCTL_GUEST"), "cloud", "vmlinuz")
	run(t, "install", "-D", kernel, dir+"/esp/EFI/BOOT/BOOTX64.EFI")
	run(t, "qemu-img", "convert", "-O", "raw", "fat:"+dir+"/esp", dir+"/esp.raw")
	esp := "[disk.esp]\npath = \"" + dir + "/esp.raw\"\n"
	secure := "boot.firmware = \"uefi\"\nboot.secure_boot = true\n"
	v := newVMFrom(t, "secure-boot", secure+esp)
	v.start()
	v.expect(`failed to load Boot\d+ .*: Access Denied`)
	run(t, "vmctl", "kill", v.name)

	// Without, the same disk is started; with it again, not.
	v.define("boot.firmware = \"uefi\"\n" + esp)
	v.start()
	v.expect(`starting Boot\d+`)
	run(t, "vmctl", "kill", v.name)
	v.define(secure + esp)
	v.start()
	v.expect(`failed to load Boot\d+ .*: Access Denied`)
	run(t, "vmctl", "kill", v.name)

	// A kernel that the definition names is started, and knows.
	v.define(littleGuest("cloud", "") + secure)
	v.boot()
	contains(t, v.typed("dmesg | grep -i 'secure boot'"), "Secure boot enabled")
	run(t, "test", "-e", v.stateDir()+"/nvram.fd", "-a", "-e", v.stateDir()+"/nvram-secure.fd")
	run(t, "systemctl", "stop", v.unit())
}

// store is a file with UEFI variables.
type store struct {
	inode  string
	uid    uint32
	marked bool
}

const storeMark = "vmctl-e2e was here"

func nvram(t *testing.T, path string) store {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var uid uint32
	if _, err := fmt.Sscan(run(t, "stat", "-c", "%u", path), &uid); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "stat", "-c", "%a", path); got != "600" {
		t.Errorf("%s: mode %s, want 600", path, got)
	}
	return store{run(t, "stat", "-c", "%i", path), uid, bytes.Contains(content, []byte(storeMark))}
}

// mark writes into the end of the store, which holds the spare block of its
// fault-tolerant writes.
func mark(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	end, err := f.Seek(-int64(len(storeMark)), io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(storeMark), end); err != nil {
		t.Fatal(err)
	}
}

// The small board boots a kernel. What it lacks without KVM, which nothing here
// has, is said, and it is ended nevertheless.
func TestMicrovm(t *testing.T) {
	t.Parallel()
	v := newVM(t, "micro", `
machine = "microvm"
lifecycle.stop_timeout = "1s"
`)
	const warning = `machine = "microvm" without KVM`
	contains(t, run(t, "vmctl", "check", v.name), warning)
	v.boot()
	contains(t, v.journal(), warning)
	v.typeLine("echo it is $(cat /proc/meminfo | head -n 1)")
	v.expect(`it is MemTotal`)
	run(t, "vmctl", "stop", v.name)
	if got := v.exitReason(); got != "stop timed out" {
		t.Errorf("reason %q, want stop timed out", got)
	}
}

// A disk is booted by BIOS, without a kernel from the host: a boot sector that
// says so.
func TestBIOSBootsDisk(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "sector")
	v := newVMFrom(t, "sector", hollow+diskTable("root", bootSector(t, dir+"/boot.img", "booted by BIOS")))
	v.start()
	v.expect("booted by BIOS")
}

// bootSector makes a disk whose boot sector writes a text to the serial port.
func bootSector(t *testing.T, path, text string) string {
	t.Helper()
	code := []byte{
		0xfa,       // cli
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xbe, 0x15, 0x7c, // mov si, text
		0xfc,       // cld
		0xac,       // next: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x03, // jz stop
		0xee,       // out dx, al
		0xeb, 0xf8, // jmp next
		0xf4, // stop: hlt
		// 0x7c15: text
	}
	sector := make([]byte, 512)
	copy(sector[copy(sector, code):], text+"\r\n")
	sector[510], sector[511] = 0x55, 0xaa
	image(t, path, string(sector), megabyte)
	return path
}

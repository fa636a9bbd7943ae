package hostdevice

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// fake is a host whose /sys is a tree of files, and whose kernel binds devices as
// it is asked to.
type fake struct {
	Host
	t       *testing.T
	natural map[string]string // driver that takes a device by itself
	module  bool              // vfio-pci is there
	broken  string            // a file that cannot be written to
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{t: t, natural: map[string]string{}, module: true}
	f.Host = New(config.SystemPaths(t.TempDir()))
	f.Host.write = f.kernel
	if err := os.MkdirAll(f.paths.Runtime, 0o755); err != nil {
		t.Fatal(err)
	}
	f.file("/sys/bus/pci/drivers_probe", "")
	return f
}

func (f *fake) at(path string) string { return f.paths.Root + path }

func (f *fake) file(path, content string) {
	f.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(f.at(path)), 0o755), os.WriteFile(f.at(path), []byte(content), 0o644)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) link(path, to string) {
	f.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(f.at(path)), 0o755), os.Symlink(to, f.at(path))); err != nil {
		f.t.Fatal(err)
	}
}

// pciDevice adds a device; group is "" without an IOMMU, driver "" for none.
func (f *fake) pciDevice(address, class, group, driver string) {
	dir := pciDir + address
	f.file(dir+"/class", class+"\n")
	f.file(dir+"/driver_override", "(null)\n")
	if group != "" {
		f.link(dir+"/iommu_group", "../../../kernel/iommu_groups/"+group)
		f.link("/sys/kernel/iommu_groups/"+group+"/devices/"+address, "../../../../devices/"+address)
	}
	f.natural[address] = driver
	f.bindTo(address, driver)
}

func (f *fake) bindTo(address, driver string) {
	if driver == "" {
		return
	}
	f.file("/sys/bus/pci/drivers/"+driver+"/unbind", "")
	f.link(pciDir+address+"/driver", "../../../bus/pci/drivers/"+driver)
}

func (f *fake) usbDevice(name, vendor, product, bus, device, port, class string) {
	dir := usbDir + "/" + name
	f.file(usbDir+"/"+name+":1.0/bInterfaceClass", "03\n")
	for file, content := range map[string]string{"idVendor": vendor, "idProduct": product, "busnum": bus, "devnum": device, "devpath": port, "bDeviceClass": class} {
		f.file(dir+"/"+file, content+"\n")
	}
}

// kernel does what the kernel would with what is written into its files.
func (f *fake) kernel(file, text string) error {
	file = strings.TrimPrefix(file, f.paths.Root)
	if f.broken != "" && strings.HasSuffix(file, f.broken) {
		return errors.New("no such device")
	}
	switch {
	case strings.HasSuffix(file, "/driver_override"):
		if text == "\n" {
			text = "(null)\n"
		}
		f.file(file, text)
	case strings.HasSuffix(file, "/unbind"):
		return os.Remove(f.at(pciDir + text + "/driver"))
	case strings.HasSuffix(file, "/drivers_probe"):
		driver := f.natural[text]
		if f.read(pciDir+text+"/driver_override") == vfio {
			if driver = vfio; !f.module {
				return nil // as the kernel, which finds none
			}
		}
		f.bindTo(text, driver)
	default:
		return fmt.Errorf("nobody writes to %s", file)
	}
	return nil
}

func (f *fake) driver(address string) string { return f.target(pciDir + address + "/driver") }

func plan(devices ...string) *hypervisor.Plan {
	p := &hypervisor.Plan{}
	for _, d := range devices {
		parts := strings.Split(d, " ")
		switch len(parts) {
		case 1:
			p.PCI = append(p.PCI, hypervisor.HostPCI{Key: "pci.x.address", Address: d})
		case 2:
			p.USB = append(p.USB, hypervisor.HostUSB{Key: "usb.x", Vendor: parts[0], Product: parts[1]})
		case 3:
			p.USB = append(p.USB, hypervisor.HostUSB{Key: "usb.x", Bus: 1, Port: parts[2]})
		}
	}
	return p
}

// take takes devices and returns the nodes, or the only refusal.
func (f *fake) take(vm string, devices ...string) (nodes []string, refused string) {
	f.t.Helper()
	// Of a machine that runs.
	if err := os.MkdirAll(f.paths.RuntimeDir(vm), 0o755); err != nil {
		f.t.Fatal(err)
	}
	files, refusals, err := f.Take(vm, plan(devices...))
	if err != nil {
		f.t.Fatal(err)
	}
	for _, file := range files {
		if !file.Device || !file.Write {
			f.t.Errorf("%+v", file)
		}
		nodes = append(nodes, file.Path)
	}
	var texts []string
	for _, r := range refusals {
		texts = append(texts, r.Error())
	}
	return nodes, strings.Join(texts, "; ")
}

func (f *fake) wantRefused(vm string, devices []string, want string) {
	f.t.Helper()
	if nodes, refused := f.take(vm, devices...); !strings.Contains(refused, want) || nodes != nil {
		f.t.Errorf("%v: got %q %q, want %q", devices, nodes, refused, want)
	}
	if _, err := os.Stat(f.paths.HostDevices(vm)); err == nil {
		f.t.Errorf("%v: refused, and noted", devices)
	}
}

const gpu, sound, disk = "0000:01:00.0", "0000:01:00.1", "0000:02:00.0"

func pciHost(t *testing.T) *fake {
	f := newFake(t)
	f.pciDevice("0000:00:01.0", "0x060400", "7", "pcieport")
	f.pciDevice(gpu, "0x030000", "7", "nouveau")
	f.pciDevice(sound, "0x040300", "7", "snd_hda_intel")
	f.pciDevice(disk, "0x010802", "8", "")
	return f
}

func TestPCI(t *testing.T) {
	f := pciHost(t)
	nodes, refused := f.take("a", gpu, sound, disk)
	if want := []string{"/dev/vfio/7", "/dev/vfio/8"}; !slices.Equal(nodes, want) || refused != "" {
		t.Fatalf("got %q %q, want %q", nodes, refused, want)
	}
	for _, address := range []string{gpu, sound, disk} {
		if got := f.driver(address); got != vfio {
			t.Errorf("%s has driver %q", address, got)
		}
	}
	if got := f.driver("0000:00:01.0"); got != "pcieport" {
		t.Errorf("the bridge has driver %q", got)
	}
	// Whose group it is.
	f.wantRefused("b", []string{disk}, "pci.x.address: 0000:02:00.0 is in IOMMU group 8, of which machine a has a device")
	// Started again after a crash that left the note: taken anew.
	if nodes, refused := f.take("a", disk); !slices.Equal(nodes, []string{"/dev/vfio/8"}) || f.driver(gpu) != "nouveau" {
		t.Errorf("got %q %q, and %s has driver %q", nodes, refused, gpu, f.driver(gpu))
	}
	for range 2 {
		if err := f.GiveBack("a"); err != nil {
			t.Fatal(err)
		}
	}
	for address, want := range map[string]string{gpu: "nouveau", sound: "snd_hda_intel", disk: ""} {
		if got := f.driver(address); got != want || f.read(pciDir+address+"/driver_override") != "(null)" {
			t.Errorf("%s has driver %q, want %q", address, got, want)
		}
	}
	if _, err := os.Stat(f.paths.HostDevices("a")); err == nil {
		t.Error("the note is left")
	}
	if _, refused := f.take("b", disk); refused != "" {
		t.Error(refused)
	}
}

func TestPCIRefused(t *testing.T) {
	f := pciHost(t)
	f.pciDevice("0000:03:00.0", "0x020000", "", "e1000e")
	f.wantRefused("a", []string{"0000:09:00.0"}, "want a PCI device of this host, got 0000:09:00.0, which is not there")
	f.wantRefused("a", []string{"0000:00:01.0"}, "which is a bridge")
	f.wantRefused("a", []string{"0000:03:00.0"}, "0000:03:00.0 is not")
	f.wantRefused("a", []string{gpu}, "is in IOMMU group 7 with 0000:01:00.1, which this host uses (driver snd_hda_intel)")
	if f.driver(gpu) != "nouveau" {
		t.Error("refused, and taken")
	}
	none := newFake(t)
	none.pciDevice(gpu, "0x030000", "", "nouveau")
	none.wantRefused("a", []string{gpu}, "want an IOMMU, which this host has not or which is off")
}

// Whoever had vfio-pci take a device at boot keeps it so.
func TestPCIBoundByHost(t *testing.T) {
	f := pciHost(t)
	f.pciDevice("0000:04:00.0", "0x020000", "9", vfio)
	if _, refused := f.take("a", "0000:04:00.0"); refused != "" {
		t.Fatal(refused)
	}
	if err := f.GiveBack("a"); err != nil || f.driver("0000:04:00.0") != vfio {
		t.Errorf("%v, driver %q", err, f.driver("0000:04:00.0"))
	}
}

// below adds what hangs below a device of the host, as /sys/block and /sys/class/net
// lead there.
func (f *fake) below(device, kind, name string) (dir string) {
	dir = device + "/x/" + kind + "/" + name
	f.file(dir+"/uevent", "")
	f.link(map[string]string{"block": "/sys/block/", "net": "/sys/class/net/"}[kind]+name, f.at(dir))
	return dir
}

// What the host itself lives by is not taken from it.
func TestUsedByHost(t *testing.T) {
	const nic = "0000:05:00.0"
	for what, test := range map[string]struct {
		use  func(f *fake, disk string)
		want string
	}{
		"free":    {func(*fake, string) {}, ""},
		"mounted": {func(f *fake, _ string) { f.file("/proc/self/mountinfo", "30 1 8:0 / /srv/x rw - ext4 /dev/root rw\n") }, "pci.x.address: 0000:02:00.0 has the disk sda, which the host uses: sda is mounted on /srv/x"},
		"partition": {func(f *fake, _ string) {
			f.file("/proc/self/mountinfo", "30 1 8:1 / / rw shared:1 - ext4 /dev/root rw\n")
		}, "sda1 is mounted on /"},
		"btrfs":  {func(f *fake, _ string) { f.file("/proc/self/mountinfo", "30 1 0:31 /@ / rw - btrfs /dev/sda1 rw\n") }, "sda1 is mounted on /"},
		"swap":   {func(f *fake, _ string) { f.file("/proc/swaps", "Filename Type\n/dev/sda1 partition 1 0 -2\n") }, "sda1 is swap"},
		"volume": {func(f *fake, disk string) { f.file(disk+"/sda1/holders/dm-0/x", "") }, "sda1 is part of dm-0"},
	} {
		t.Run(what, func(t *testing.T) {
			f := pciHost(t)
			d := f.below(pciDir+disk, "block", "sda")
			f.file(d+"/dev", "8:0\n")
			f.file(d+"/sda1/dev", "8:1\n")
			f.file(d+"/sda1/partition", "1\n")
			f.file("/proc/self/mountinfo", "30 1 9:1 / / rw - ext4 /dev/md1 rw\n")
			test.use(f, d)
			if test.want != "" {
				f.wantRefused("a", []string{disk}, test.want)
			} else if _, refused := f.take("a", disk); refused != "" {
				t.Error(refused)
			}
		})
	}

	f := pciHost(t)
	f.pciDevice(nic, "0x020000", "9", "e1000e")
	f.below(pciDir+nic, "net", "eno1")
	f.file("/proc/net/route", "Iface Destination Gateway\nbr0 00000000 0102A8C0 0003 0 0 0 00000000 0 0 0\neno2 00000000 0102A8C0 0003 0 0 0 0000FFFF 0 0 0\n")
	f.link("/sys/class/net/eno1/master", "../br0")
	f.wantRefused("a", []string{nic}, "pci.x.address: 0000:05:00.0 is the interface eno1, by which the host's default route goes")
	f.file("/proc/net/route", "")
	f.file("/proc/net/ipv6_route", strings.Repeat("0", 32)+" 00 "+strings.Repeat("0", 32)+" 00 fe800000000000000000000000000001 0 0 0 0 eno1\n")
	f.wantRefused("a", []string{nic}, "eno1, by which the host's default route goes")

	// A stick that is mounted, and a disk with several paths to it.
	f.usbDevice("1-2", "0951", "1666", "1", "12", "2", "00")
	f.file(f.below(usbDir+"/1-2", "block", "sdb")+"/dev", "8:16\n")
	f.file("/proc/self/mountinfo", "30 1 8:16 / /media/x rw - vfat /dev/sdb rw\n31 1 259:0 / / rw - ext4 /dev/nvme0n1 rw\n")
	f.wantRefused("a", []string{"0951 1666"}, "usb.x: 0951:1666 has the disk sdb, which the host uses: sdb is mounted on /media/x")
	f.file(pciDir+disk+"/nvme/nvme0/uevent", "")
	f.file("/sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1/dev", "259:0\n")
	f.link("/sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0", f.at(pciDir+disk+"/nvme/nvme0"))
	f.link("/sys/block/nvme0n1", f.at("/sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1"))
	f.wantRefused("a", []string{disk}, "0000:02:00.0 has the disk nvme0n1, which the host uses: nvme0n1 is mounted on /")
}

// This host's own, where its root is on a disk of a PCI device.
func TestUsedByThisHost(t *testing.T) {
	var s unix.Stat_t
	if err := unix.Stat("/", &s); err != nil {
		t.Fatal(err)
	}
	disk, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(s.Dev), unix.Minor(s.Dev)))
	address := regexp.MustCompile(`[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]`).FindAllString(disk, -1)
	if err != nil || len(address) == 0 {
		t.Skipf("NOT TRIED: / is on no disk of a PCI device: %q, %v", disk, err)
	}
	own := address[len(address)-1]
	if err := New(config.SystemPaths("")).wantUnused(own, pciDir+own); err == nil || !strings.Contains(err.Error(), "which the host uses") {
		t.Errorf("%s may be taken: %v", own, err)
	}
}

// What goes wrong half-way is undone; and after a boot the note says nothing.
func TestPCIUndone(t *testing.T) {
	f := pciHost(t)
	f.module = false
	_, _, err := f.Take("a", plan(gpu, sound))
	if err == nil || !strings.Contains(err.Error(), "does modprobe vfio-pci work?") {
		t.Errorf("got %v", err)
	}
	if f.driver(gpu) != "nouveau" || f.driver(sound) != "snd_hda_intel" {
		t.Errorf("drivers are %q and %q", f.driver(gpu), f.driver(sound))
	}
	f.module, f.broken = true, "/unbind"
	if _, _, err := f.Take("a", plan(disk, gpu, sound)); err == nil || !strings.Contains(err.Error(), "taking 0000:01:00.0 from its driver") {
		t.Errorf("got %v", err)
	}
	f.broken = ""
	if _, refused := f.take("a", gpu, sound); refused != "" {
		t.Fatal(refused)
	}
	for _, address := range []string{gpu, sound} { // the host boots
		f.file(pciDir+address+"/driver_override", "(null)\n")
		if err := os.Remove(f.at(pciDir + address + "/driver")); err != nil {
			t.Fatal(err)
		}
		f.bindTo(address, f.natural[address])
	}
	if err := f.GiveBack("a"); err != nil || f.driver(gpu) != "nouveau" {
		t.Errorf("%v, driver %q", err, f.driver(gpu))
	}
	// Plugged out meanwhile.
	if _, refused := f.take("a", disk); refused != "" {
		t.Fatal(refused)
	}
	if err := errors.Join(os.RemoveAll(f.at(pciDir+disk)), f.GiveBack("a")); err != nil {
		t.Error(err)
	}
}

func TestUSB(t *testing.T) {
	f := newFake(t)
	f.usbDevice("usb1", "1d6b", "0002", "1", "1", "0", "09")
	f.usbDevice("1-1", "046d", "c52b", "1", "5", "1", "00")
	f.usbDevice("1-2", "0951", "1666", "1", "12", "2", "00")
	f.usbDevice("1-3.4", "0951", "1666", "1", "13", "3.4", "00")
	if nodes, refused := f.take("a", "046D c52b", "bus 1 3.4"); !slices.Equal(nodes, []string{"/dev/bus/usb/001/005", "/dev/bus/usb/001/013"}) || refused != "" {
		t.Errorf("got %q %q", nodes, refused)
	}
	f.wantRefused("b", []string{"046d c52b"}, "usb.x: 046d:c52b is given to machine a, which runs")
	f.wantRefused("b", []string{"046d ffff"}, "want a USB device that is plugged in, got 046d:ffff, which is not")
	f.wantRefused("b", []string{"0951 1666"}, "0951:1666 are 2: bus 1 port 2, bus 1 port 3.4: name one by bus and port")
	f.wantRefused("b", []string{"bus 1 9"}, "got bus 1 port 9, which is not")
	f.wantRefused("b", []string{"1d6b 0002"}, "which is a hub")
	f.wantRefused("b", []string{"bus 1 2", "bus 1 2"}, "want each device once")
	// Of a machine that has ended without its clean-up.
	if err := os.RemoveAll(f.paths.RuntimeDir("a")); err != nil {
		t.Fatal(err)
	}
	if nodes, refused := f.take("b", "046d c52b"); len(nodes) != 1 || refused != "" {
		t.Errorf("got %q %q", nodes, refused)
	}
}

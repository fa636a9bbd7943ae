package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// disk is a block device as the guest sees it.
type disk struct {
	name, kind, bus, serial string
	size                    uint64 // bytes
	readonly                bool
}

func (d disk) String() string {
	mode := "rw"
	if d.readonly {
		mode = "ro"
	}
	return fmt.Sprintf("disk %s kind=%s bus=%s size=%d mode=%s serial=%q", d.name, d.kind, d.bus, d.size, mode, d.serial)
}

// disks lists the block devices, partitions left out.
func disks() []disk {
	var ds []disk
	for _, dir := range glob("/sys/block/*") {
		name := filepath.Base(dir)
		if strings.HasPrefix(name, "loop") || strings.HasPrefix(name, "ram") {
			continue
		}
		ds = append(ds, disk{
			name:     name,
			kind:     diskKind(name),
			bus:      diskBus(dir),
			serial:   diskSerial(dir),
			size:     diskSize(name),
			readonly: readLine(dir+"/ro") == "1",
		})
	}
	return ds
}

func diskKind(name string) string {
	switch {
	case strings.HasPrefix(name, "sr"):
		return "cdrom"
	case strings.HasPrefix(name, "fd"):
		return "floppy"
	}
	return "disk"
}

// diskBus returns the bus in the words of a definition: the driver of the
// nearest device above the disk that tells.
func diskBus(dir string) string {
	buses := map[string]string{
		"virtio_blk": "virtio", "virtio_scsi": "scsi", "ahci": "sata", "ata_piix": "ide", "nvme": "nvme",
		"usb-storage": "usb", "uas": "usb", "floppy": "floppy",
	}
	for _, above := range devicesAbove(dir) {
		if bus, ok := buses[driver(above)]; ok {
			return bus
		}
	}
	return "unknown"
}

// devicesAbove returns the directories of a device and of those it hangs on,
// nearest first.
func devicesAbove(dir string) []string {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil
	}
	var dirs []string
	for ; real != "/sys/devices" && real != "/"; real = filepath.Dir(real) {
		dirs = append(dirs, real)
	}
	return dirs
}

// driver returns the name of a device's driver.
func driver(dir string) string {
	link, err := os.Readlink(dir + "/driver")
	if err != nil {
		return ""
	}
	return filepath.Base(link)
}

func diskSerial(dir string) string {
	// SCSI's unit serial number page: four bytes of header, then the text.
	if page, err := os.ReadFile(dir + "/device/vpd_pg80"); err == nil && len(page) > 4 {
		return string(bytes.Trim(page[4:], " \x00"))
	}
	for _, above := range devicesAbove(dir) { // virtio: the disk, NVMe: the controller, USB: the device
		if serial := readLine(above + "/serial"); serial != "" {
			return serial
		}
	}
	return ""
}

// diskSize returns the size in bytes. A floppy's is known only once it was
// opened, an empty drive's is 0.
func diskSize(name string) uint64 {
	f, err := os.Open("/dev/" + name)
	if err == nil {
		defer f.Close()
	}
	sectors, err := strconv.ParseUint(readLine("/sys/block/"+name+"/size"), 10, 64)
	if err != nil {
		return 0
	}
	return sectors * 512
}

const markerSize = 512

// writeMarker writes a text to the first sector of a disk, and on to the host.
func writeMarker(device, text string) error {
	sector := make([]byte, markerSize)
	copy(sector, text)
	f, err := os.OpenFile("/dev/"+filepath.Base(device), os.O_WRONLY|unix.O_SYNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(sector); err != nil {
		return err
	}
	return f.Sync()
}

// readMarker returns the text in the first sector of a disk.
func readMarker(device string) (string, error) {
	f, err := os.Open("/dev/" + filepath.Base(device))
	if err != nil {
		return "", err
	}
	defer f.Close()
	sector := make([]byte, markerSize)
	if _, err := f.Read(sector); err != nil {
		return "", err
	}
	text, _, _ := bytes.Cut(sector, []byte{0})
	return string(text), nil
}

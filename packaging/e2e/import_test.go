//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// What was a domain of libvirt's boots as a machine, with the devices that it had.
func TestImportLibvirt(t *testing.T) {
	t.Parallel()
	newerSuiteOnly(t, "a definition that was imported is one like any other")
	dir := hostDir(t, "import")
	root := image(t, filepath.Join(dir, "root.img"), "of libvirt", megabyte)
	guest := filepath.Join(os.Getenv("VMCTL_GUEST"), "cloud")
	domain := filepath.Join(dir, "imported.xml")
	writeFile(t, domain, fmt.Sprintf(`<domain type='qemu'>
  <name>Imported</name>
  <uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
  <memory unit='MiB'>256</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>%s/vmlinuz</kernel>
    <initrd>%[1]s/initrd</initrd>
    <cmdline>console=ttyS0 quiet no_timer_check</cmdline>
  </os>
  <cpu mode='host-passthrough'/>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='writeback'/>
      <source file='%s'/>
      <target dev='vda' bus='virtio'/>
      <serial>of-libvirt</serial>
    </disk>
    <interface type='user'>
      <mac address='52:54:00:6b:3c:58'/>
      <model type='virtio'/>
    </interface>
    <serial type='pty'/>
    <console type='pty'/>
    <watchdog model='i6300esb' action='poweroff'/>
    <memballoon model='virtio'/>
    <sound model='ich9'/>
  </devices>
</domain>
`, guest, root))
	v := &vm{t: t, name: "imported", screen: newScreen(t, "imported")}
	t.Cleanup(v.remove)
	contains(t, run(t, "sh", "-c", "vmctl import libvirt \"$1\" 2>&1", "sh", domain), "/domain/devices/sound (model=ich9) is not carried over", "imported: created "+v.file())
	if got := v.property("ActiveState"); got != "inactive" {
		t.Errorf("the unit is %s before it was started", got)
	}
	run(t, "vmctl", "start", v.name)
	v.expect(`card \S+ mac 52:54:00:6b:3c:58 mtu 1500 driver virtio_net`)
	v.expectReady()
	if disk := v.guestDisks()["of-libvirt"]; disk.name != "vda" {
		t.Errorf("the guest's disk is %v", disk)
	}
	v.typeLine("info")
	v.expect(`cpus 2`)
	v.expect(`uuid 4dea22b3-1d52-d8f3-2516-782e98ab3fa0`)
	v.expect(`0x8086:0x25ab`) // the watchdog

	shown := v.show()
	disk := shown["disks"].([]any)[0].(map[string]any)
	card := shown["nics"].([]any)[0].(map[string]any)
	for key, pair := range map[string][2]any{
		"disk name": {disk["name"], "vda"}, "path": {disk["path"], root}, "bus": {disk["bus"], "virtio"},
		"card": {card["name"], "lan"}, "mac": {card["mac"], "52:54:00:6b:3c:58"}, "number of cards": {len(shown["nics"].([]any)), 1},
		"memory": {shown["memory_bytes"], float64(256 << 20)},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: shown is %v, want %v", key, pair[0], pair[1])
		}
	}
}

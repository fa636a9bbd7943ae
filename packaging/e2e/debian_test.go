//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A real Debian does what it is told by cloud-init, and shuts down in order
// when it is stopped.
func TestDebianGuest(t *testing.T) {
	t.Parallel()
	from := os.Getenv("VMCTL_DEBIAN")
	dir := t.TempDir()
	disk := filepath.Join(dir, "root.raw")
	run(t, "cp", "--sparse=always", filepath.Join(from, "disk.raw"), disk)
	run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "key"))
	key := run(t, "cat", filepath.Join(dir, "key.pub"))
	writeFile(t, filepath.Join(dir, "user-data"), fmt.Sprintf(`#cloud-config
users:
  - name: alice
    shell: /bin/bash
    sudo: ALL=(ALL) NOPASSWD:ALL
    ssh_authorized_keys: [%q]
write_files:
  - path: /etc/marker
    content: written by cloud-init
runcmd:
  - [sh, -c, "echo E2E: $(hostname) $(cat /etc/marker) $(ip -4 -o addr show scope global | wc -l) >/dev/console"]
`, key))

	v := newVMFrom(t, "debian", fmt.Sprintf(`
cpus = 2
memory = "768M"
[boot]
kernel = %q
initrd = %q
cmdline = "console=ttyS0 root=/dev/vda rw quiet no_timer_check systemd.show_status=1"
[disk.root]
path = %q
[nic.lan]
user = true
forward = ["127.0.0.1:2222:22/tcp"]
[cloud_init]
hostname = "deb13"
user_data = %q
`, filepath.Join(from, "vmlinuz"), filepath.Join(from, "initrd"), disk, filepath.Join(dir, "user-data")))
	v.patience = 15 * time.Minute
	v.start()
	v.expect(`E2E: deb13 written by cloud-init 1`)

	// The user and its key, and the network: one logs in.
	ssh := []string{"ssh", "-q", "-i", filepath.Join(dir, "key"), "-p", "2222", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=60", "-o", "ServerAliveInterval=30", "alice@127.0.0.1"}
	eventually(t, "alice logs in", func() bool { return try(append(ssh, "true")...).code == 0 })
	if got := run(t, append(ssh, "hostname; id -un")...); got != "deb13\nalice" {
		t.Errorf("inside: %q", got)
	}

	// Its guest agent is asked before the power button is pressed.
	eventually(t, "the guest agent runs", func() bool {
		return try(append(ssh, "systemctl is-active qemu-guest-agent")...).code == 0
	})
	reached(t, v, ssh)
	backedUpFrozen(t, v, dir, ssh)
	run(t, append(ssh, "rm written && sync")...) // and thawed
	contains(t, run(t, "vmctl", "stop", "debian"), "guest agent")
	contains(t, v.shown(), "Reached target", "Power Off", "reboot: Power down")
	if got := v.exitReason(); got != "stop requested" {
		t.Errorf("reason %q, want stop requested", got)
	}
}

// Two machines of one stored image at once, each with what cloud-init made of it.
func TestDebianFromImage(t *testing.T) {
	newerSuiteOnly(t, "stored images and cloud-init are tried on both, each for itself")
	t.Parallel()
	from := os.Getenv("VMCTL_DEBIAN")
	run(t, "vmctl", "image", "import", "--name", "e2e-debian", filepath.Join(from, "disk.raw"))
	t.Cleanup(func() { try("vmctl", "image", "delete", "--yes", "e2e-debian") })
	userData := `#cloud-config
runcmd:
  - [sh, -c, "hostname >/etc/marker; sync; echo E2E: $(cat /etc/marker) $(blockdev --getsize64 /dev/vda) >/dev/console"]
`
	var vms []*vm
	for i, name := range []string{"debian-one", "debian-two"} {
		v := newVMFrom(t, name, fmt.Sprintf(`
memory = "768M"
[boot]
kernel = %q
initrd = %q
cmdline = "console=ttyS0 root=/dev/vda rw quiet no_timer_check"
[disk.root]
image = "e2e-debian"
size = "%dG"
[cloud_init]
user_data = %q
`, filepath.Join(from, "vmlinuz"), filepath.Join(from, "initrd"), 8+i, userData))
		v.patience = 30 * time.Minute
		vms = append(vms, v)
	}
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "start", vms[0].unit(), vms[1].unit())
	for i, v := range vms {
		v.expect(fmt.Sprintf(`E2E: %s %d`, v.name, (8+i)<<30))
	}
	run(t, "vmctl", "stop", vms[0].name, vms[1].name)
	contains(t, run(t, "vmctl", "image", "verify", "e2e-debian"), "sound")
	contains(t, fail(t, 4, "vmctl", "image", "delete", "--yes", "e2e-debian"), "debian-one and debian-two")
}

// backedUpFrozen backs up a guest that has an agent, by which one logs in with ssh:
// what was written and is not on the disk yet is in the backup.
func backedUpFrozen(t *testing.T, v *vm, dir string, ssh []string) {
	t.Helper()
	const text = "written, and not synced"
	run(t, append(ssh, "echo "+text+" >written")...)
	b := v.backup(dir, "--quiesce", "require")
	if !b.Quiesced || b.NotQuiesced != "" {
		t.Errorf("the guest was not frozen: %+v", b)
	}
	run(t, "grep", "-q", "-a", "-F", text, filepath.Join(b.Directory, "disk-root.qcow2"))
}

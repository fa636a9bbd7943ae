package config

import (
	"fmt"
	"reflect"
	"slices"
)

// Examples returns machines that together have one of each device and use each
// key of the schema at least once. Every hypervisor has to plan or refuse each
// of them.
func Examples() []*Machine {
	l := loader{schema: schemaOf(reflect.TypeFor[Machine]())}
	var out []*Machine
	for i, text := range exampleTexts() {
		name := fmt.Sprintf("example-%d", i+1)
		s := &source{file: name + suffix, tree: newTree(0)}
		s.parse(text)
		l.settings.Hypervisor = "qemu"
		vm := l.build(name, []*source{s})
		if vm.Machine == nil {
			panic(fmt.Sprintf("%v in an example", vm.Problems))
		}
		out = append(out, vm.Machine)
	}
	return out
}

// exampleTexts are the definitions of the examples.
func exampleTexts() []string {
	return slices.Concat([]string{
		// Nothing but defaults.
		`description = "defaults"
[disk.root]
size = "1G"
`,
		// What most machines have.
		`description = "server"
hypervisor = "qemu"
machine = "q35"
accel = "tcg"
cpus = 2
memory = "512M"
uuid = "5e0c1f2a-7a57-4b53-9a3e-0d6d8a0f5b11"
autostart = true
after = ["database"]
requires = ["storage"]
wants = ["logs"]

[boot]
firmware = "uefi"
secure_boot = true
order = ["disk.root", "nic.lan"]

[cpu]
model = "max"
features = ["+x2apic", "-svm"]
sockets = 1
cores = 2
threads = 2
max = 4
pinning = ["0", "0-1"]

[memory_options]
hugepages = false
shared = true
prealloc = true
max = "1G"

[disk.root]
path = "/srv/vms/root, with \"quotes\" and 100%.qcow2"
bus = "virtio"
media = "disk"
format = "qcow2"
readonly = false
cache = "none"
aio = "io_uring"
discard = false
serial = "ROOT-1"
ephemeral = true
queues = 2
iops = 1000
bandwidth = "100M"

[nic.lan]
user = true
model = "virtio"
mac = "52:54:00:12:34:56"
forward = ["2222:22/tcp", "127.0.0.1:8080:80", "[::1]:8080:80", "5353:53/udp"]
queues = 1
mtu = 1400

[cloud_init]
enabled = true
hostname = "server.example.org"
user_data = "#cloud-config\n"
meta_data = "instance-id: one\n"
network_config = "version: 2\n"
vendor_data = "/srv/vendor-data"
ssh_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB someone"]
user = "admin"
password_hash = "$6$salt$hash"

[guest_agent]
enabled = true

[vsock]
enabled = true
cid = 4242

[watchdog]
enabled = true
model = "i6300esb"
action = "poweroff"

[rng]
enabled = true

[balloon]
enabled = true
free_page_reporting = false
deflate_on_oom = false

[console]
device = "serial"
journal = false
scrollback = "2M"
group = "web-operators"

[serial]
enabled = true

[credentials]
"system.hostname" = "server"
"ssh.authorized_keys.root" = { file = "/srv/keys" }

[lifecycle]
start_timeout = "1min"
stop_timeout = 60
restart = "always"
restart_delay = "500ms"
on_panic = "pause"
on_host_shutdown = "kill"
ready = "agent"
ready_timeout = "5min"

[snapshots]
schedule = "Mon..Fri 22:30"
keep = 14

[resources]
cpu_quota = "150%"
cpu_weight = 200
allowed_cpus = "0-1"
allowed_memory_nodes = "0"
memory_max = "2G"
memory_high = "1536M"
memory_min = "64M"
memory_low = "128M"
memory_swap_max = "infinity"
io_weight = 50
io_read_max = ["/dev/sda 10M"]
io_write_max = ["/dev/sda 10M"]
io_read_iops_max = ["/dev/sda 1000"]
io_write_iops_max = ["/dev/sda 1000"]
tasks_max = 200
slice = "machine-web.slice"
nice = 5
oom_score_adjust = -100

[unit]
OnFailure = ["mail@%n.service", "page.service"]

[service]
LogRateLimitBurst = 1000

[api]
id = "web-7"
name = "Web server (7)"

[hypervisor_options]
binary = "/opt/qemu/bin/qemu-system-x86_64"
extra_args = ["-name", "a b"]
`,
		// A kernel without firmware.
		`description = "microvm"
machine = "microvm"
accel = "kvm"
[boot]
kernel = "/boot/vmlinuz"
initrd = "/boot/initrd.img"
cmdline = "console=hvc0 quiet"
[console]
device = "virtio"
[serial]
enabled = false
[vsock]
enabled = false
`,
		// The old board, with what only it has.
		`description = "pc"
machine = "pc"
accel = "auto"
[boot]
firmware = "bios"
[disk.root]
path = "/srv/root.img"
bus = "ide"
[disk.cd]
path = "/srv/install.iso"
media = "cdrom"
[disk.floppy]
path = "/srv/floppy.img"
bus = "floppy"
readonly = true
[nic.lan]
user = true
model = "rtl8139"
[watchdog]
enabled = true
model = "itco"
action = "reset"
`,
		// Every bus, format and way of access.
		`description = "disks"
hypervisor = "cloud-hypervisor"
[disk.a]
path = "/dev/vg/a"
format = "raw"
bus = "virtio"
shareable = true
enabled = true
cache = "directsync"
aio = "native"
iops_read = 10
iops_write = 20
bandwidth_read = "1M"
bandwidth_write = "2M"
[disk.b]
path = "/srv/b.vmdk"
format = "vmdk"
bus = "scsi"
cache = "writeback"
aio = "threads"
[disk.c]
path = "/srv/c.vdi"
format = "vdi"
bus = "sata"
cache = "writethrough"
aio = "auto"
[disk.d]
path = "/srv/d.vhd"
format = "vpc"
bus = "nvme"
cache = "unsafe"
[disk.e]
path = "/srv/e.vhdx"
format = "vhdx"
bus = "usb"
cache = "auto"
[disk.f]
path = "/srv/f.iso"
media = "cdrom"
bus = "scsi"
[disk.g]
path = "/srv/g.iso"
media = "cdrom"
bus = "usb"
[disk.h]
image = "debian-13"
size = "20G"
[disk.firmware]
path = "/srv/firmware.fd"
bus = "pflash"
`,
	}, singleDevices())
}

// singleDevices are machines with a single device of a kind that not every
// hypervisor has, so that one being refused does not hide another.
func singleDevices() []string {
	return []string{
		// What the smallest board has not got,
		`machine = "microvm"
[boot]
firmware = "uefi"
kernel = "/boot/vmlinuz"
order = ["disk.a"]
[cpu]
max = 4
[memory_options]
max = "4G"
[disk.a]
path = "/srv/a.img"
bus = "sata"
[nic.lan]
user = true
model = "e1000e"
[pci.gpu]
address = "0000:01:00.0"
[usb.key]
vendor = "046d"
product = "c52b"
[tpm]
enabled = true
[watchdog]
enabled = true
[display]
type = "vnc"
`,
		// nor single devices elsewhere.
		`[disk.a]
path = "/srv/a.img"
bus = "sata"
readonly = true
queues = 4
`,
		`[disk.a]
path = "/srv/a.img"
queues = 4
`,
		`[cpu]
model = "qemu64"
[rng]
enabled = false
`,
		`hypervisor = "cloud-hypervisor"
cpus = 4
[boot]
kernel = "/boot/vmlinuz"
[cpu]
max = 8
pinning = ["0", "1-3"]
[memory_options]
max = "4G"
[disk.root]
image = "debian-13"
queues = 2
iops = 1000
bandwidth = "100M"
[watchdog]
enabled = true
model = "virtio"
`,
		`[nic.lan]
network = "default"
address = "192.168.100.10"
anti_spoofing = false
allow_in = ["tcp/22"]
allow_out = ["any"]
deny_in = ["any"]
deny_out = ["udp/53"]
security_groups = ["web"]
rate_in = "10M"
rate_out = "10M"
queues = 2
link = "up"
`,
		`[nic.lan]
bridge = "br0"
vlan = 7
model = "e1000e"
link = "down"
enabled = true
`,
		`[nic.lan]
tap = "tap7"
model = "e1000"
`,
		`[nic.lan]
macvtap = "eth0"
macvtap_mode = "bridge"
`,
		`[nic.lan]
macvtap = "eth0"
macvtap_mode = "vepa"
`,
		`[nic.lan]
macvtap = "eth0"
macvtap_mode = "private"
`,
		`[nic.lan]
macvtap = "eth0"
macvtap_mode = "passthru"
`,
		`[nic.lan]
user = true
backend = "auto"
`,
		`[nic.lan]
user = true
backend = "passt"
forward = ["2222:22", "[::1]:8080:80/tcp"]
`,
		`[nic.lan]
user = true
backend = "slirp"
`,
		`[nic.lan]
vde = "/run/vde.ctl"
`,
		`[nic.lan]
vhost_user = "/run/x.sock"
`,
		`[share.source]
path = "/srv/source, with comma"
tag = "src"
readonly = true
cache = "always"
[share.cache]
path = "/srv/cache"
cache = "never"
uid_map = ["0:100000:65536"]
gid_map = ["0:100000:65536"]
[share.other]
path = "/srv/other"
cache = "auto"
user = "ann"
`,
		`[pci.gpu]
address = "0000:01:00.0"
`,
		`[usb.key]
vendor = "046d"
product = "c52b"
[usb.port]
bus = 1
port = "1.4"
`,
		`[tpm]
enabled = true
`,
		`[display]
type = "vnc"
address = "127.0.0.1:5900"
device = "vga"
clipboard = true
tablet = false
[vsock]
enabled = "auto"
`,
		`[display]
type = "vnc"
device = "virtio"
heads = 2
`,
		`[display]
type = "spice"
device = "qxl"
usb_redirection = 2
[watchdog]
enabled = true
action = "pause"
`,
		`[watchdog]
enabled = true
action = "none"
[display]
type = "none"
`,
		`memory = "1G"
[memory_options]
hugepages = "1G"
[lifecycle]
restart = "no"
on_panic = "poweroff"
on_host_shutdown = "save"
ready = "notify"
`,
		`[lifecycle]
restart = "on-failure"
on_panic = "restart"
on_host_shutdown = "shutdown"
ready = "started"
`,
		`[lifecycle]
on_panic = "ignore"
remove_on_stop = true
`,
	}
}

package config

import (
	"cmp"
	"net/netip"
	"slices"
)

// Machine is one virtual machine as its definition describes it: every file
// merged, every default filled in, nothing about the host it will run on. It
// is never changed after it was loaded.
//
// The struct tags are the schema. The loader, the JSON schema and the manual
// page are all made from them:
//
//	toml     the key; an unknown key is an error
//	doc      one line for people
//	enum     the values allowed, separated by "|"
//	default  what holds when the key is absent, in TOML's notation of the value
//	min,max  bounds of a number or size (inclusive), in its notation
//	form     what a string, or each of a list, must look like (see forms.go)
//	integer  "true": a string that may be written as an integer too
//	secret   "true": never shown, logged or written into a unit
type Machine struct {
	// Name is the name of the definition file without ".toml". It is a legal
	// name (see [CheckName]).
	Name string `toml:"-" json:"name"`

	Description string   `toml:"description" json:"description" doc:"one line for people, shown by systemctl status and vmctl list"`
	Hypervisor  string   `toml:"hypervisor" json:"hypervisor" enum:"qemu|cloud-hypervisor" default:"\"qemu\"" doc:"what runs the machine; the host's settings can change the default"`
	Template    string   `toml:"template" json:"template,omitempty" form:"name" doc:"name of a template that is merged before this file"`
	MachineType string   `toml:"machine" json:"machine" enum:"q35|microvm|pc" default:"\"q35\"" doc:"the board that the guest sees"`
	Accel       string   `toml:"accel" json:"accel" enum:"auto|kvm|tcg" default:"\"auto\"" doc:"auto uses KVM where it can run ordinary guests, else software emulation"`
	CPUs        int      `toml:"cpus" json:"cpus" min:"1" max:"1024" default:"1" doc:"virtual CPUs at start"`
	Memory      Size     `toml:"memory" json:"memory" default:"\"1G\"" min:"1M" max:"4096T" doc:"memory of the guest at start"`
	UUID        UUID     `toml:"uuid" json:"uuid" doc:"what the guest's firmware tables call the machine; by default derived from the host and the name, so stable"`
	Autostart   bool     `toml:"autostart" json:"autostart" default:"false" doc:"start with the host"`
	After       []string `toml:"after" json:"after,omitempty" form:"name" doc:"other machines that start before this one, where both start"`
	Requires    []string `toml:"requires" json:"requires,omitempty" form:"name" doc:"other machines that are started with this one, and without which it does not start"`
	Wants       []string `toml:"wants" json:"wants,omitempty" form:"name" doc:"other machines that are started with this one, where they are defined and can be"`

	Parameters []Argument `toml:"parameters" json:"-" doc:"values for the parameters of the template, by their names"`

	Boot          Boot          `toml:"boot" json:"boot" doc:"what the machine boots"`
	CPU           CPU           `toml:"cpu" json:"cpu" doc:"model and topology of the CPUs"`
	MemoryOptions MemoryOptions `toml:"memory_options" json:"memory_options" doc:"how the guest's memory is held"`

	// Devices in named tables, in the order of the files. The name of the
	// table is the device's Name.
	Disks  []Disk  `toml:"disk" json:"disks" doc:"disks, CD-ROMs and floppies"`
	NICs   []NIC   `toml:"nic" json:"nics" doc:"network cards"`
	Shares []Share `toml:"share" json:"shares" doc:"directories of the host that the guest can mount (virtiofs)"`
	PCI    []PCI   `toml:"pci" json:"pci,omitempty" doc:"PCI devices of the host given to the guest"`
	USB    []USB   `toml:"usb" json:"usb,omitempty" doc:"USB devices of the host given to the guest"`

	CloudInit  CloudInit  `toml:"cloud_init" json:"cloud_init" doc:"what cloud-init in the guest is told (NoCloud)"`
	GuestAgent GuestAgent `toml:"guest_agent" json:"guest_agent" doc:"channel to qemu-guest-agent in the guest"`
	Vsock      Vsock      `toml:"vsock" json:"vsock" doc:"sockets between host and guest without a network"`
	TPM        TPM        `toml:"tpm" json:"tpm" doc:"trusted platform module"`
	Watchdog   Watchdog   `toml:"watchdog" json:"watchdog" doc:"acts when the guest stops feeding it"`
	RNG        RNG        `toml:"rng" json:"rng" doc:"random numbers for the guest"`
	Balloon    Balloon    `toml:"balloon" json:"balloon" doc:"gives memory that the guest does not use back to the host"`
	Display    Display    `toml:"display" json:"display" doc:"graphical display"`
	Console    Console    `toml:"console" json:"console" doc:"the text console: journal, scrollback, vmctl console"`
	Serial     Serial     `toml:"serial" json:"serial" doc:"serial port (ttyS0)"`

	// Credentials in the order of the files; see systemd.system-credentials(7).
	Credentials []Credential `toml:"credentials" json:"credentials,omitempty" doc:"systemd credentials for the guest: a value, or { file = \"…\" }"`

	Lifecycle Lifecycle `toml:"lifecycle" json:"lifecycle" doc:"start, stop and restart"`
	Resources Resources `toml:"resources" json:"resources" doc:"limits by cgroup, passed on to systemd (systemd.resource-control(5)); what has no key here, such as IODeviceWeight=, goes into [service]; vmctl set and vmctl reload NAME hold what runs to them, systemctl daemon-reload alone does not"`

	Snapshots Snapshots `toml:"snapshots" json:"snapshots" doc:"snapshots taken by a timer"`

	// Unit and Service are passed on to the unit in the order of the files.
	Unit    []Setting `toml:"unit" json:"unit,omitempty" doc:"further settings for the unit's [Unit] section, passed on"`
	Service []Setting `toml:"service" json:"service,omitempty" doc:"further settings for the unit's [Service] section, passed on"`

	API API `toml:"api" json:"api,omitzero" doc:"what programs that use vmctl-api(8) know the machine by"`

	HypervisorOptions HypervisorOptions `toml:"hypervisor_options" json:"hypervisor_options" doc:"the escape hatch"`

	origin *origin // where each key was written; nil after a trip through JSON
}

// Boot says what the machine boots.
type Boot struct {
	Firmware   string   `toml:"firmware" json:"firmware" form:"firmware" doc:"bios, uefi, none, or the absolute path of a firmware image; default: none for microvm, else bios; with cloud-hypervisor none beside boot.kernel, else uefi"`
	SecureBoot bool     `toml:"secure_boot" json:"secure_boot" default:"false" doc:"UEFI Secure Boot with the keys that come enrolled with a firmware of the host (Debian: Microsoft's); the machine then has a second variable store, which only its firmware can write to, so that its boot entries are made anew. What boot.kernel names is started as it is"`
	Kernel     string   `toml:"kernel" json:"kernel,omitempty" form:"path" doc:"absolute path of a kernel to boot directly"`
	Initrd     string   `toml:"initrd" json:"initrd,omitempty" form:"path" doc:"absolute path of the initial RAM disk for that kernel"`
	Cmdline    string   `toml:"cmdline" json:"cmdline,omitempty" doc:"command line for that kernel"`
	Order      []string `toml:"order" json:"order,omitempty" doc:"devices to try, first first, e.g. [\"disk.cd\", \"disk.root\", \"nic.lan\"]; default: the disks in file order"`
}

// CPU is the model and topology of the virtual CPUs.
type CPU struct {
	Model    string   `toml:"model" json:"model" default:"\"auto\"" form:"word" doc:"auto (all that the accelerator can do), host, max, or a model that the hypervisor knows"`
	Features []string `toml:"features" json:"features,omitempty" form:"feature" doc:"CPU flags to add or remove, e.g. [\"+x2apic\", \"-svm\"]"`
	Sockets  int      `toml:"sockets" json:"sockets" min:"1" max:"1024" doc:"default 1"`
	Cores    int      `toml:"cores" json:"cores" min:"1" max:"1024" doc:"cores per socket; default: what the others leave"`
	Threads  int      `toml:"threads" json:"threads" min:"1" max:"1024" doc:"threads per core; default 1"`
	Max      int      `toml:"max" json:"max,omitempty" min:"1" max:"1024" doc:"how many virtual CPUs there can be while the machine runs (vmctl set NAME cpus=N)"`
	Pinning  []string `toml:"pinning" json:"pinning,omitempty" form:"cpus" doc:"CPUs of the host for each virtual CPU, e.g. [\"0\", \"2-3\"]"`
}

// MemoryOptions say how the guest's memory is held by the host.
type MemoryOptions struct {
	Hugepages Hugepages `toml:"hugepages" json:"hugepages,omitempty" doc:"true, or the page size: \"2M\" or \"1G\""`
	Shared    bool      `toml:"shared" json:"shared" default:"false" doc:"memory that other processes can map; set by itself where a device needs it, but for shares that are attached while the machine runs (vmctl share)"`
	Prealloc  bool      `toml:"prealloc" json:"prealloc" default:"false" doc:"take all memory from the host at start"`
	Max       Size      `toml:"max" json:"max,omitempty" min:"1M" max:"4096T" doc:"how much memory there can be while the machine runs (vmctl set NAME memory=SIZE): a multiple of 2M, or of the huge pages' size, more than memory; the guest needs a driver for virtio-mem"`
}

// Device is a part of a machine that a hypervisor has to provide. Key is the
// TOML key of its table, for example "disk.root".
type Device interface{ Key() string }

// Disk is a block device of the guest. Exactly one of Image, Path and Size
// says where its data are; Size with Image is what the disk is grown to.
type Disk struct {
	Name string `toml:"-" json:"name"`

	Enabled bool `toml:"enabled" json:"-" default:"true" doc:"false: the machine has not got the disk, as if the table were not there (vmctl disk detach --persist)"`

	Image string `toml:"image" json:"image,omitempty" form:"image" doc:"stored image that the disk begins with: as a copy-on-write child of it, or with format raw as a copy"`
	Path  string `toml:"path" json:"path,omitempty" form:"path" doc:"absolute path of an existing image file or block device; belongs to its owner, never deleted by vmctl"`
	Size  Size   `toml:"size" json:"size,omitempty" max:"2048T" doc:"alone: a new empty disk; with image: what it is grown to"`
	Bus   string `toml:"bus" json:"bus" enum:"virtio|scsi|sata|ide|nvme|usb|pflash|floppy" default:"\"virtio\"" doc:"how the guest reaches it; default for a CD-ROM: sata, or ide on the board pc"`
	Media string `toml:"media" json:"media" enum:"disk|cdrom" default:"\"disk\"" doc:"what kind of drive it is"`
	// Format is never guessed from content, which a guest could write.
	Format    string `toml:"format" json:"format" enum:"raw|qcow2|vmdk|vdi|vpc|vhdx" doc:"format of the file; default: by the name's ending, else raw; new disks and those of images are qcow2, with cloud-hypervisor raw"`
	Readonly  bool   `toml:"readonly" json:"readonly" doc:"default false, true for a CD-ROM"`
	Cache     string `toml:"cache" json:"cache" enum:"auto|none|writeback|writethrough|directsync|unsafe" default:"\"auto\"" doc:"auto: direct I/O where all that the disk stands on can do it and is not on btrfs or zfs, else the host's page cache; tried at each start. none and directsync: always direct. unsafe: the guest's flushes are not passed on, so that a crash of the host may cost the whole disk"`
	AIO       string `toml:"aio" json:"aio" enum:"auto|io_uring|native|threads" default:"\"auto\"" doc:"how the hypervisor waits for the kernel; auto: with direct I/O the first of io_uring, native, threads that works, tried at each start, else threads"`
	Discard   bool   `toml:"discard" json:"discard" default:"true" doc:"pass discarded blocks, and blocks of zeros, on to the host, which then has room for others"`
	Serial    string `toml:"serial" json:"serial" doc:"serial number that the guest sees, at most 20 characters; default: the disk's name, a long one shortened"`
	Ephemeral bool   `toml:"ephemeral" json:"ephemeral" default:"false" doc:"start from the same content each time: writes are thrown away at stop"`
	Shareable bool   `toml:"shareable" json:"shareable" default:"false" doc:"several machines may write to it at once (cluster file systems)"`
	Queues    int    `toml:"queues" json:"queues,omitempty" min:"1" max:"64" doc:"request queues, of virtio and scsi, where all disks share as many as the one that wants most; default: one for each CPU, at most 16"`

	IOPS           int64 `toml:"iops" json:"iops,omitempty" min:"0" max:"1000000000000000" doc:"limit of operations per second, for reads and writes together, 0 for none; vmctl disk throttle changes limits while the machine runs"`
	IOPSRead       int64 `toml:"iops_read" json:"iops_read,omitempty" min:"0" max:"1000000000000000" doc:"the same for reads alone; not with iops"`
	IOPSWrite      int64 `toml:"iops_write" json:"iops_write,omitempty" min:"0" max:"1000000000000000" doc:"the same for writes alone; not with iops"`
	Bandwidth      Size  `toml:"bandwidth" json:"bandwidth,omitempty" min:"0" max:"900T" doc:"limit of bytes per second, for reads and writes together, \"0B\" for none"`
	BandwidthRead  Size  `toml:"bandwidth_read" json:"bandwidth_read,omitempty" min:"0" max:"900T" doc:"the same for reads alone; not with bandwidth"`
	BandwidthWrite Size  `toml:"bandwidth_write" json:"bandwidth_write,omitempty" min:"0" max:"900T" doc:"the same for writes alone; not with bandwidth"`
}

// Keeps says whether the disk keeps what the guest writes to it: what backups and
// snapshots are of.
func (d Disk) Keeps() bool { return !d.Readonly && !d.Ephemeral && d.Media != "cdrom" }

// LacksSnapshots says whether the disk keeps what is written to it in a format that
// holds no snapshots.
func (d Disk) LacksSnapshots() bool { return d.Keeps() && d.Format != "qcow2" }

// NIC is a network card. Exactly one of Network, User, Bridge, Tap, Macvtap,
// VDE and VhostUser says what it is plugged into; where none is given, it is
// the network of the host's [Settings], if they name one.
type NIC struct {
	Name    string `toml:"-" json:"name"`
	Enabled bool   `toml:"enabled" json:"-" default:"true" doc:"false: the machine has not got the card, as if the table were not there (vmctl nic detach --persist)"`

	Network   string `toml:"network" json:"network,omitempty" form:"name" doc:"one of vmctl's networks"`
	User      bool   `toml:"user" json:"user,omitempty" doc:"user-mode networking: way out without privileges; the guest reaches what listens on the host's own addresses too"`
	Bridge    string `toml:"bridge" json:"bridge,omitempty" form:"interface" doc:"an existing bridge of the host"`
	Tap       string `toml:"tap" json:"tap,omitempty" form:"interface" doc:"an existing TAP interface of the host; nothing of it is changed, and it is there afterwards"`
	Macvtap   string `toml:"macvtap" json:"macvtap,omitempty" form:"interface" doc:"interface of the host; the guest is put beside it, by a macvtap interface that is made for as long as the machine runs"`
	VDE       string `toml:"vde" json:"vde,omitempty" form:"socket" doc:"absolute path of the control directory of a VDE switch that runs (vde_switch -s)"`
	VhostUser string `toml:"vhost_user" json:"vhost_user,omitempty" form:"socket" doc:"absolute path of the socket of a vhost-user peer that listens, such as a switch in user space; the guest's memory is then shared with it"`

	Backend     string `toml:"backend" json:"backend,omitempty" enum:"auto|passt|slirp" doc:"what does user-mode networking: passt, in a process and a sandbox of its own, or slirp, in the hypervisor, which takes no IPv6 forwards; default auto: passt where one of 2025 or later is installed and can do the forwards, else slirp"`
	MacvtapMode string `toml:"macvtap_mode" json:"macvtap_mode,omitempty" enum:"bridge|vepa|private|passthru" doc:"how cards on the same interface see each other (ip-link(8), macvtap); default bridge. The host itself is not reached in any"`

	Model   string     `toml:"model" json:"model" enum:"virtio|e1000e|e1000|rtl8139" default:"\"virtio\"" doc:"the card that the guest sees"`
	MAC     MAC        `toml:"mac" json:"mac" doc:"default: derived from host, machine and card name, so stable"`
	Address netip.Addr `toml:"address" json:"address,omitzero" doc:"fixed address (lease) in the network; on a bridge of the host's own, where others give it out, the one address of its kind, IPv4 or IPv6, that is the guest's"`
	Forward []Forward  `toml:"forward" json:"forward,omitempty" doc:"host ports given to the guest, e.g. \"2222:22/tcp\", \"127.0.0.1:8080:80\", \"[::1]:8080:80/tcp\", \"5353:53/udp\"; in a network, [::1] is for TCP alone, by systemd-socket-proxyd(8)"`
	Queues  int        `toml:"queues" json:"queues,omitempty" min:"1" max:"64" doc:"queue pairs, not of user and vde, which have one; of an existing TAP more than one if it was made for that; default 1"`
	MTU     int        `toml:"mtu" json:"mtu,omitempty" min:"68" max:"65535" doc:"largest packet in bytes, told to the guest; not more than the MTU of the interface that tap or macvtap names, of the bridge, or 1500 with user"`
	VLAN    int        `toml:"vlan" json:"vlan,omitempty" min:"1" max:"4094" doc:"VLAN tag on a bridge of the host that keeps VLANs apart; for bridge, and for a network on such a bridge"`
	Link    string     `toml:"link" json:"link,omitempty" enum:"up|down" default:"\"up\"" doc:"whether the card's cable is plugged in: where it is not, the guest sees no carrier; vmctl nic up and down change it while the machine runs"`

	AntiSpoofing   *bool    `toml:"anti_spoofing" json:"anti_spoofing,omitempty" doc:"drop what the guest sends under another's name, another Ethernet address or IP address than its own, and all that is not ARP, IPv4 or IPv6. IPv6 addresses that it makes itself are its own, once no other guest has been seen with them for two hours. On a bridge of the host's own it is held to its address, and without one to those that it is the first of the host's guests to send from, 16 of IPv4 and one more per hour: such an address is its own until it has not used it for half an hour (IPv6: two hours) or its card is unplugged. Those that the host itself has there, and its routers, when the card is plugged in or the machine reloaded, are no guest's; what else is on the link is not known. A guest with containers on its link, or an address that moves between guests (Docker's macvlan, keepalived), wants false. Default true on networks and bridges"`
	AllowIn        []Rule   `toml:"allow_in" json:"allow_in,omitempty" form:"rule_in" doc:"connections to the guest that are let through, e.g. [\"tcp/22\", \"tcp/8000-8100 from 10.0.0.0/8\", \"icmp\", \"any from 2001:db8::/32\"]; everything else is dropped; default: all"`
	AllowOut       []Rule   `toml:"allow_out" json:"allow_out,omitempty" form:"rule_out" doc:"connections from the guest that are let through, e.g. [\"udp/53\", \"tcp/443 to 192.0.2.0/24\"]; everything else is dropped; default: all"`
	DenyIn         []Rule   `toml:"deny_in" json:"deny_in,omitempty" form:"rule_in" doc:"connections to the guest that are dropped, whatever allow_in says"`
	DenyOut        []Rule   `toml:"deny_out" json:"deny_out,omitempty" form:"rule_out" doc:"connections from the guest that are dropped, whatever allow_out says"`
	SecurityGroups []string `toml:"security_groups" json:"security_groups,omitempty" form:"name" doc:"sets of such lists that several cards share, /etc/vmctl/security-groups/NAME.toml: added to the card's own"`
	RateIn         Size     `toml:"rate_in" json:"rate_in,omitempty" min:"0" max:"10G" doc:"limit of bytes per second to the guest, at least \"1K\", \"0B\" for none; what is too much waits, and then is dropped; vmctl nic set changes limits while the machine runs"`
	RateOut        Size     `toml:"rate_out" json:"rate_out,omitempty" min:"0" max:"10G" doc:"the same from the guest; what is too much is dropped"`
}

// HasInterface says whether the card is an interface on the host: one that is
// made for it, or an existing TAP.
func (n NIC) HasInterface() bool {
	return n.Network != "" || n.Bridge != "" || n.Tap != "" || n.Macvtap != ""
}

// Share is a directory of the host that the guest can mount by virtiofs.
type Share struct {
	Name string `toml:"-" json:"name"`

	Path     string `toml:"path" json:"path" form:"path" doc:"absolute path of the directory"`
	Tag      string `toml:"tag" json:"tag" doc:"what the guest mounts; default: the share's name"`
	Readonly bool   `toml:"readonly" json:"readonly" default:"false" doc:"the guest cannot write: the host refuses it, whatever the guest does"`
	Cache    string `toml:"cache" json:"cache" enum:"auto|always|never" default:"\"auto\"" doc:"what the guest may cache: with auto for a second; always where nobody else writes there; with never it sees at once what others write, and cannot map files into memory"`
	User     string `toml:"user" json:"user,omitempty" form:"user" doc:"user of the host as whom all is read and written there, whoever it is in the guest; default: as the guest's users, by their numbers, its root being the host's; not with the virtiofsd of QEMU 7"`
	// UIDMap and GIDMap are ranges that do not overlap, each read by [ParseIDRange].
	UIDMap []string `toml:"uid_map" json:"uid_map,omitempty" form:"idrange" doc:"which users of the host those of the guest are, as ranges GUEST:HOST:COUNT, e.g. [\"0:100000:65536\"]; the others of the guest own nothing there, those of the host are nobody (65534) to it. It says whose a file is, and protects none: the guest's root reads and writes all that is there. Default: the same numbers; not with user, nor with the virtiofsd of QEMU 7"`
	GIDMap []string `toml:"gid_map" json:"gid_map,omitempty" form:"idrange" doc:"the same for groups"`
}

// PCI is a PCI device of the host given to the guest.
type PCI struct {
	Name    string `toml:"-" json:"name"`
	Address string `toml:"address" json:"address" form:"pci" doc:"domain:bus:device.function, e.g. 0000:01:00.0"`
}

// USB is a USB device of the host given to the guest: by Vendor and Product,
// or by Bus and Port.
type USB struct {
	Name    string `toml:"-" json:"name"`
	Vendor  string `toml:"vendor" json:"vendor,omitempty" form:"hex4" doc:"vendor id, four hexadecimal digits"`
	Product string `toml:"product" json:"product,omitempty" form:"hex4" doc:"product id, four hexadecimal digits"`
	Bus     int    `toml:"bus" json:"bus,omitempty" min:"1" max:"255" doc:"bus of the host"`
	Port    string `toml:"port" json:"port,omitempty" form:"usbport" doc:"port on that bus, e.g. 1.4"`
}

// CloudInit is the content of the NoCloud seed. It is used where the table
// [cloud_init] is present and not disabled.
type CloudInit struct {
	Enabled       bool     `toml:"enabled" json:"enabled" doc:"default: true where the table is present"`
	Hostname      string   `toml:"hostname" json:"hostname,omitempty" form:"hostname" doc:"default: the machine's name"`
	UserData      Text     `toml:"user_data" json:"user_data,omitempty" secret:"true" doc:"text, or the absolute path of a file; given as it is"`
	MetaData      Text     `toml:"meta_data" json:"meta_data,omitempty" secret:"true" doc:"text, or the absolute path of a file"`
	NetworkConfig Text     `toml:"network_config" json:"network_config,omitempty" secret:"true" doc:"text, or the absolute path of a file; default: DHCP on every card"`
	VendorData    Text     `toml:"vendor_data" json:"vendor_data,omitempty" secret:"true" doc:"text, or the absolute path of a file"`
	SSHKeys       []string `toml:"ssh_keys" json:"ssh_keys,omitempty" doc:"public keys for the user"`
	User          string   `toml:"user" json:"user,omitempty" form:"user" doc:"user to create; default: the image's own"`
	PasswordHash  Secret   `toml:"password_hash" json:"password_hash,omitempty" secret:"true" doc:"crypt(5) hash for the user"`
}

// GuestAgent is the channel to qemu-guest-agent.
type GuestAgent struct {
	Enabled bool `toml:"enabled" json:"enabled" default:"true" doc:"give the guest the channel; default true, with cloud-hypervisor, which has none, false"`
}

// Vsock are sockets between host and guest (vsock(7)).
type Vsock struct {
	Enabled string `toml:"enabled" json:"enabled" enum:"auto|true|false" default:"\"auto\"" doc:"true, false, or \"auto\": where the host can"`
	CID     uint32 `toml:"cid" json:"cid" min:"3" max:"4294967294" doc:"address of the guest; default: derived from the name, so stable"`
}

// TPM is a trusted platform module.
type TPM struct {
	Enabled bool `toml:"enabled" json:"enabled" default:"false" doc:"give the guest one (TPM 2.0)"`
}

// Watchdog acts when the guest stops feeding it.
type Watchdog struct {
	Enabled bool   `toml:"enabled" json:"enabled" default:"false" doc:"give the guest one"`
	Model   string `toml:"model" json:"model" enum:"i6300esb|itco|virtio" doc:"the device that the guest sees; default i6300esb, with cloud-hypervisor virtio"`
	Action  string `toml:"action" json:"action" enum:"reset|poweroff|pause|none" default:"\"reset\"" doc:"what happens when it fires"`
}

// RNG is the source of random numbers.
type RNG struct {
	Enabled bool `toml:"enabled" json:"enabled" default:"true" doc:"give the guest one"`
}

// Balloon lets the host take memory back.
type Balloon struct {
	Enabled           bool `toml:"enabled" json:"enabled" default:"true" doc:"give the guest one"`
	FreePageReporting bool `toml:"free_page_reporting" json:"free_page_reporting" default:"true" doc:"the guest reports free pages by itself"`
	DeflateOnOOM      bool `toml:"deflate_on_oom" json:"deflate_on_oom" default:"true" doc:"the guest takes memory back before it kills processes"`
}

// Display is the graphical display.
type Display struct {
	Type           string `toml:"type" json:"type" enum:"none|vnc|spice" default:"\"none\"" doc:"how it is shown: vmctl view opens it, with a password that holds for two minutes"`
	Address        string `toml:"address" json:"address,omitempty" form:"hostport" doc:"address and port to listen on, e.g. \"127.0.0.1:5900\", without encryption; default: a Unix socket, which root alone reaches"`
	Device         string `toml:"device" json:"device,omitempty" enum:"virtio|vga|qxl" doc:"graphics card that the guest sees; default virtio, which every guest can use as a plain VGA too"`
	Heads          int    `toml:"heads" json:"heads,omitempty" min:"1" max:"16" doc:"monitors that can be plugged into the card; default 1"`
	Tablet         bool   `toml:"tablet" json:"tablet" default:"true" doc:"the pointer is where the viewer's is (USB tablet); else a mouse, which the viewer has to catch"`
	Clipboard      bool   `toml:"clipboard" json:"clipboard" doc:"share the clipboard with spice-vdagent in the guest; default true for spice; with vnc the machine cannot be saved then, before QEMU 10.1"`
	USBRedirection int    `toml:"usb_redirection" json:"usb_redirection,omitempty" min:"0" max:"8" doc:"USB devices of the viewer's host that can be given to the guest at once, spice alone; default 3 there"`
}

// Console is the machine's text console: what vmctl console shows and the
// journal keeps.
type Console struct {
	Device     string `toml:"device" json:"device" enum:"serial|virtio" default:"\"serial\"" doc:"serial: ttyS0; virtio: hvc0"`
	Journal    bool   `toml:"journal" json:"journal" default:"true" doc:"write its lines to the journal"`
	Scrollback Size   `toml:"scrollback" json:"scrollback" default:"\"1M\"" min:"1M" max:"1G" doc:"how much a new client is shown; at least 1M"`
	Group      string `toml:"group" json:"group,omitempty" form:"group" doc:"group of the host whose members sit down at the console too, beside root; vmctl reload gives and takes this while the machine runs, but ends no session; not for machines of a user"`
}

// Serial is the serial port.
type Serial struct {
	Enabled bool `toml:"enabled" json:"enabled" default:"true" doc:"give the guest one"`
}

// Credential is one systemd credential for the guest: Value, or the content
// of File.
type Credential struct {
	Name  string `json:"name"`
	Value Secret `json:"value,omitempty"`
	File  string `json:"file,omitempty"`
}

// Lifecycle is start, stop and restart.
type Lifecycle struct {
	StartTimeout   Duration `toml:"start_timeout" json:"start_timeout" default:"\"90s\"" doc:"until the hypervisor answers"`
	StopTimeout    Duration `toml:"stop_timeout" json:"stop_timeout" default:"\"3min\"" doc:"for a stop in all: from asking the guest to killing it"`
	Restart        string   `toml:"restart" json:"restart" enum:"no|on-failure|always" default:"\"on-failure\"" doc:"when systemd starts it again"`
	RestartDelay   Duration `toml:"restart_delay" json:"restart_delay" default:"\"2s\"" doc:"before it is started again"`
	OnPanic        string   `toml:"on_panic" json:"on_panic" enum:"restart|poweroff|pause|ignore" default:"\"restart\"" doc:"when the guest's kernel panics and says so (pvpanic)"`
	OnHostShutdown string   `toml:"on_host_shutdown" json:"on_host_shutdown" enum:"shutdown|save|kill" default:"\"shutdown\"" doc:"when the host goes down; \"save\" shuts down where that fails, and goes on at the next start"`
	Ready          string   `toml:"ready" json:"ready" enum:"started|agent|notify" default:"\"started\"" doc:"what counts as ready: \"started\", the hypervisor answers; \"agent\", the guest agent does; \"notify\", the guest's systemd (254 or newer) says by vsock that it has booted. vmctl start, and machines that come after this one, wait for it"`
	ReadyTimeout   Duration `toml:"ready_timeout" json:"ready_timeout" default:"\"5min\"" doc:"how long that may take; where it takes longer, the machine runs on, and those that require it do not start"`
	RemoveOnStop   bool     `toml:"remove_on_stop" json:"remove_on_stop,omitempty" default:"false" doc:"when it ends, however it does, it is removed with all that vmctl made for it; only for a definition in /run, which vmctl run --rm writes"`
}

// Snapshots are those that a timer takes.
type Snapshots struct {
	Schedule string `toml:"schedule" json:"schedule" form:"calendar" default:"\"never\"" doc:"when: a calendar event of systemd.time(7) such as \"daily\" or \"Mon..Fri 22:30\", or \"never\"; disks that keep what is written to them are qcow2 then"`
	Keep     int    `toml:"keep" json:"keep" min:"1" max:"10000" default:"7" doc:"how many of them are kept; those that people take are not counted, and stay"`
}

// Scheduled says whether a timer takes snapshots.
func (s Snapshots) Scheduled() bool { return s.Schedule != "" && s.Schedule != "never" }

// Resources are limits by cgroup. Values are systemd's own notation and
// checked by it, but for what would be silently ignored.
type Resources struct {
	CPUQuota           string   `toml:"cpu_quota" json:"cpu_quota,omitempty" form:"quota" doc:"CPUQuota=, e.g. \"150%\""`
	CPUWeight          string   `toml:"cpu_weight" json:"cpu_weight,omitempty" form:"weight" integer:"true" doc:"CPUWeight="`
	AllowedCPUs        string   `toml:"allowed_cpus" json:"allowed_cpus,omitempty" form:"cpus" integer:"true" doc:"AllowedCPUs="`
	AllowedMemoryNodes string   `toml:"allowed_memory_nodes" json:"allowed_memory_nodes,omitempty" form:"cpus" integer:"true" doc:"AllowedMemoryNodes="`
	MemoryMax          string   `toml:"memory_max" json:"memory_max,omitempty" form:"limit" integer:"true" doc:"MemoryMax=; not below the guest's memory"`
	MemoryHigh         string   `toml:"memory_high" json:"memory_high,omitempty" form:"limit" integer:"true" doc:"MemoryHigh="`
	MemoryMin          string   `toml:"memory_min" json:"memory_min,omitempty" form:"limit" integer:"true" doc:"MemoryMin="`
	MemoryLow          string   `toml:"memory_low" json:"memory_low,omitempty" form:"limit" integer:"true" doc:"MemoryLow="`
	MemorySwapMax      string   `toml:"memory_swap_max" json:"memory_swap_max,omitempty" form:"limit" integer:"true" doc:"MemorySwapMax="`
	IOWeight           string   `toml:"io_weight" json:"io_weight,omitempty" form:"weight" integer:"true" doc:"IOWeight="`
	IOReadMax          []string `toml:"io_read_max" json:"io_read_max,omitempty" form:"iolimit" doc:"IOReadBandwidthMax=, e.g. [\"/dev/sda 10M\"]"`
	IOWriteMax         []string `toml:"io_write_max" json:"io_write_max,omitempty" form:"iolimit" doc:"IOWriteBandwidthMax="`
	IOReadIOPSMax      []string `toml:"io_read_iops_max" json:"io_read_iops_max,omitempty" form:"iolimit" doc:"IOReadIOPSMax="`
	IOWriteIOPSMax     []string `toml:"io_write_iops_max" json:"io_write_iops_max,omitempty" form:"iolimit" doc:"IOWriteIOPSMax="`
	TasksMax           string   `toml:"tasks_max" json:"tasks_max,omitempty" form:"tasks" integer:"true" doc:"TasksMax="`
	Slice              string   `toml:"slice" json:"slice,omitempty" form:"slice" doc:"Slice=; default machine.slice"`
	Nice               string   `toml:"nice" json:"nice,omitempty" form:"nice" integer:"true" doc:"Nice="`
	OOMScoreAdjust     string   `toml:"oom_score_adjust" json:"oom_score_adjust,omitempty" form:"oom" integer:"true" doc:"OOMScoreAdjust="`
}

// Setting is one setting of a unit that is passed on as it is. A list in TOML
// becomes several settings of the same Name.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// API is what programs know a machine by.
type API struct {
	ID   string `toml:"id" json:"id,omitempty" form:"id" doc:"default: its uuid"`
	Name string `toml:"name" json:"name,omitempty" form:"line" doc:"need not be of its own; default: the machine's name"`
}

// ID is what programs know the machine by, and no other.
func (m *Machine) ID() string { return cmp.Or(m.API.ID, string(m.UUID)) }

// HypervisorOptions is what no key of ours covers.
type HypervisorOptions struct {
	Binary    string   `toml:"binary" json:"binary,omitempty" form:"path" doc:"absolute path of the hypervisor; default: found in the usual places"`
	ExtraArgs []string `toml:"extra_args" json:"extra_args,omitempty" doc:"appended to the command line as they are"`
}

func (d Disk) Key() string       { return "disk." + d.Name }
func (n NIC) Key() string        { return "nic." + n.Name }
func (s Share) Key() string      { return "share." + s.Name }
func (p PCI) Key() string        { return "pci." + p.Name }
func (u USB) Key() string        { return "usb." + u.Name }
func (GuestAgent) Key() string   { return "guest_agent" }
func (Vsock) Key() string        { return "vsock" }
func (TPM) Key() string          { return "tpm" }
func (Watchdog) Key() string     { return "watchdog" }
func (RNG) Key() string          { return "rng" }
func (Balloon) Key() string      { return "balloon" }
func (Display) Key() string      { return "display" }
func (Serial) Key() string       { return "serial" }
func (c Credential) Key() string { return "credentials." + c.Name }

// NIC is the card of a name, false where m has none, or is nil.
func (m *Machine) NIC(name string) (NIC, bool) {
	if m == nil {
		return NIC{}, false
	}
	i := slices.IndexFunc(m.NICs, func(n NIC) bool { return n.Name == name })
	if i < 0 {
		return NIC{}, false
	}
	return m.NICs[i], true
}

// Share is the shared directory of a name, false where m has none, or is nil.
func (m *Machine) Share(name string) (Share, bool) {
	if m == nil {
		return Share{}, false
	}
	i := slices.IndexFunc(m.Shares, func(s Share) bool { return s.Name == name })
	if i < 0 {
		return Share{}, false
	}
	return m.Shares[i], true
}

// Devices returns every device of the machine that is there, named ones in
// file order. A hypervisor goes through them with a type switch whose default
// case refuses: so a new kind of device is refused, by its key, by every
// hypervisor that does not know it.
func (m *Machine) Devices() []Device {
	var ds []Device
	for _, d := range m.Disks {
		ds = append(ds, d)
	}
	for _, n := range m.NICs {
		ds = append(ds, n)
	}
	for _, s := range m.Shares {
		ds = append(ds, s)
	}
	for _, p := range m.PCI {
		ds = append(ds, p)
	}
	for _, u := range m.USB {
		ds = append(ds, u)
	}
	for _, c := range m.Credentials {
		ds = append(ds, c)
	}
	add := func(there bool, d Device) {
		if there {
			ds = append(ds, d)
		}
	}
	add(m.Serial.Enabled, m.Serial)
	add(m.GuestAgent.Enabled, m.GuestAgent)
	add(m.Vsock.Enabled != "false", m.Vsock)
	add(m.TPM.Enabled, m.TPM)
	add(m.Watchdog.Enabled, m.Watchdog)
	add(m.RNG.Enabled, m.RNG)
	add(m.Balloon.Enabled, m.Balloon)
	add(m.Display.Type != "none", m.Display)
	return ds
}

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/guestagent"
	"github.com/vmctl/vmctl/netsetup"
	"github.com/vmctl/vmctl/units/bus"
)

func newShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME...",
		Short: "Show all about VMs: definition, disks, network, usage, how they ended",
		Long: `Show all about VMs. With -o json one object for one name, an array for several.
Secrets of the definition are shown as "***".`,
		Example: `  vmctl show web
  vmctl show -o json web db | jq -r '.[].state'`,
		GroupID:           groupLook,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE:              func(cmd *cobra.Command, args []string) error { return runShow(cmd.Context(), a, args) },
	}
}

// shown is vmctl show -o json. The names of its fields stay.
type shown struct {
	row
	Definition *config.Machine  `json:"definition"` // as it is now; null where it is broken or gone
	Problems   []config.Problem `json:"problems"`   // of the definition
	File       string           `json:"file"`
	Files      []string         `json:"files"` // all that define it, in the order in which they are merged
	Disks      []shownDisk      `json:"disks"`
	// DiskChanges are those since the machine was started; Disks is as it is now.
	DiskChanges hypervisor.Changes `json:"disk_changes"`
	NICs        []shownNIC         `json:"nics"`
	Shares      []shownShare       `json:"shares"`
	TPM         *shownTPM          `json:"tpm"` // null for none
	Sockets     shownSockets       `json:"sockets"`
	Guest       *guestagent.Guest  `json:"guest"` // what its agent says; null where none answers at once
	Exit        *hypervisor.Exit   `json:"exit"`  // why it last ended
	Usage       usage              `json:"usage"`
}

// shownDisk is a disk and the file or device behind it.
type shownDisk struct {
	Name           string `json:"name"`
	Path           string `json:"path"`
	Format         string `json:"format"`
	Bus            string `json:"bus"`
	Media          string `json:"media"`
	Readonly       bool   `json:"readonly"`
	SizeBytes      int64  `json:"size_bytes"`      // that the definition asks for; 0 where it names a file
	AllocatedBytes int64  `json:"allocated_bytes"` // on the host; 0 where there is none yet
	IO             string `json:"io"`              // how it is read and written while the machine runs, in words; else ""
	DirectIO       *bool  `json:"direct_io"`       // past the host's page cache; null while it does not run
	AIO            string `json:"aio"`             // "io_uring", "native" or "threads"; "" while it does not run
	// Limits are per second, 0 for none; what vmctl disk throttle has set is told there.
	Limits hypervisor.Limits `json:"limits"`
}

// What is to be said of what runs beside a machine: nothing while the machine
// itself does not run.
const (
	serving = "serving"
	lost    = "lost" // it has ended, and the machine runs on without it
)

// shownShare is a directory of the host, and how it is with its virtiofsd.
type shownShare struct {
	config.Share
	State string `json:"state"` // "serving", "lost", or "" while the machine does not run
	// GivenUp says that systemd has started it too often, and does so no more by itself.
	GivenUp bool   `json:"given_up"`
	Unit    string `json:"unit"`
}

// shownTPM is the same of a TPM.
type shownTPM struct {
	State string `json:"state"`
	Unit  string `json:"unit"`
}

// shownNIC is a network card.
type shownNIC struct {
	Name    string   `json:"name"`
	Plug    string   `json:"plug"` // what it is plugged into: "network default", "user", "bridge br0", …
	Model   string   `json:"model"`
	MAC     string   `json:"mac"`
	Address string   `json:"address"` // fixed one, "" for none
	Forward []string `json:"forward"`
	Link    string   `json:"link"`                      // up or down
	RateIn  int64    `json:"rate_in_bytes_per_second"`  // to the guest; 0 for no limit
	RateOut int64    `json:"rate_out_bytes_per_second"` // from the guest
	// Addresses are those of the guest, while it runs.
	Addresses []foundAddress    `json:"addresses"`
	Interface string            `json:"interface"`  // of the host, while the machine runs; "" where it has none
	Traffic   *netsetup.Traffic `json:"statistics"` // null where the host has no interface for it
	// Backend is what does user-mode networking, or would: "passt" or "slirp"; "" for
	// other cards. State is that of passt's unit, as of a share's.
	Backend string `json:"backend"`
	State   string `json:"state"`
	Unit    string `json:"unit"`
	nicFilter
}

// shownSockets are the Unix sockets of a machine that runs; "" where there is
// none.
type shownSockets struct {
	Console string `json:"console"`
	Control string `json:"control"`
	QMP     string `json:"qmp"`
	Agent   string `json:"agent"`
	Display string `json:"display"`
}

// usage is what the unit's control group has used since it was started; null
// where systemd does not know.
type usage struct {
	CPUSeconds   *float64 `json:"cpu_seconds"`
	MemoryBytes  *uint64  `json:"memory_bytes"`
	IOReadBytes  *uint64  `json:"io_read_bytes"`
	IOWriteBytes *uint64  `json:"io_write_bytes"`
	Restarts     int      `json:"restarts"`
}

func runShow(ctx context.Context, a *app, names []string) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	type one struct {
		name  string
		shown shown
		err   error
	}
	asked := make([]one, len(names))
	for i, name := range names {
		asked[i].name = name
	}
	// Guests may take their time to answer.
	inParallel(asked, func(o *one) { o.shown, o.err = a.show(ctx, conn, o.name) })
	var all []shown
	for _, o := range asked {
		if o.err != nil {
			return o.err
		}
		all = append(all, o.shown)
	}
	return printAll(a.ui, all, showRows)
}

// show gathers all about one machine.
func (a *app) show(ctx context.Context, conn *bus.Conn, name string) (shown, error) {
	l, err := a.lookAt(ctx, conn, name)
	if err != nil {
		return shown{}, err
	}
	told := a.askAgent(ctx, l, true)
	seen := a.see([]look{l})
	s := shown{
		row:      a.rows(ctx, conn, seen, []look{l})[0],
		Problems: append([]config.Problem{}, l.vm.Problems...),
		File:     l.vm.File,
		Files:    append([]string{}, l.vm.Files...),
		Disks:    []shownDisk{},
		NICs:     seen.nics(l, told.interfaces),
		Guest:    told.guest,
		Shares:   []shownShare{},
		Sockets:  a.sockets(name),
		Exit:     l.exit,

		DiskChanges: l.changes,
	}
	if l.vm.Machine != nil {
		s.Definition = l.vm.Machine.Redacted()
	}
	if m := l.machine(); m != nil {
		chosen := a.chosenIO(l)
		for _, d := range m.Disks {
			s.Disks = append(s.Disks, a.newShownDisk(m.Name, d, chosen))
		}
		if err := a.addSidecars(ctx, conn, l, m, &s); err != nil {
			return shown{}, err
		}
	}
	s.setAddresses(s.NICs)
	p, err := conn.Properties(ctx, config.Unit(name))
	if err != nil {
		return shown{}, err
	}
	s.Usage = newUsage(p)
	return s, nil
}

// addSidecars adds what runs beside the machine.
func (a *app) addSidecars(ctx context.Context, conn *bus.Conn, l look, m *config.Machine, s *shown) error {
	var failed error
	state := func(unit string) (_ string, givenUp bool) {
		if !l.active() {
			return "", false
		}
		p, err := conn.Properties(ctx, unit)
		failed = errors.Join(failed, err)
		if p.ActiveState != "active" {
			return lost, p.Result == "start-limit-hit"
		}
		return serving, false
	}
	for _, share := range m.Shares {
		unit := config.ShareUnit(m.Name, share.Name)
		is, givenUp := state(unit)
		s.Shares = append(s.Shares, shownShare{share, is, givenUp, unit})
	}
	if m.TPM.Enabled {
		unit := config.TPMUnit(m.Name)
		is, _ := state(unit)
		s.TPM = &shownTPM{is, unit}
	}
	for i := range s.NICs {
		n := &s.NICs[i]
		card, _ := m.NIC(n.Name)
		if !card.User {
			continue
		}
		unit := config.PasstUnit(m.Name, n.Name)
		is, _ := state(unit)
		if n.Backend = a.backend(l, card, is); n.Backend == hypervisor.Passt {
			n.Unit, n.State = unit, is
		}
	}
	return failed
}

// backend is what does the user-mode networking of a card, or would; state is that
// of its passt.
func (a *app) backend(l look, n config.NIC, state string) string {
	var started *hypervisor.Record
	if l.active() {
		started = readJSON[hypervisor.Record](a.paths.VMJSON(l.vm.Name))
	}
	switch {
	case started == nil || started.Plan == nil:
		return a.probe().UserNetwork(n)
	case state == serving || slices.ContainsFunc(started.Plan.Sidecars, func(s hypervisor.Sidecar) bool { return s.Card == n.Name }):
		return hypervisor.Passt
	}
	return hypervisor.Slirp
}

// chosenIO is how the files of a machine's disks are read and written, none where
// it does not run. It is said by the machine's own process, and for show.
func (a *app) chosenIO(l look) []hypervisor.FileIO {
	if !l.active() {
		return nil
	}
	r := readJSON[hypervisor.Record](a.paths.VMJSON(l.vm.Name))
	if r == nil {
		return nil
	}
	return r.IO
}

func (a *app) newShownDisk(vm string, d config.Disk, chosen []hypervisor.FileIO) shownDisk {
	s := shownDisk{
		Name: d.Name, Path: a.paths.DiskFile(vm, d), Format: d.Format, Bus: d.Bus, Media: d.Media,
		Readonly: d.Readonly, SizeBytes: int64(d.Size), Limits: d.Limits(),
	}
	if info, err := os.Stat(s.Path); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
			// stat(2) counts in units of 512 bytes.
			s.AllocatedBytes = st.Blocks * 512
		}
	}
	// Of a disk that forgets, the last is the file that is written to.
	for _, io := range chosen {
		if io.Disk == d.Name {
			s.IO, s.DirectIO, s.AIO = io.String(), &io.Direct, io.AIO
		}
	}
	return s
}

// nics are a machine's cards.
func (s seen) nics(l look, told []guestagent.Interface) []shownNIC {
	all := []shownNIC{}
	m := l.machine()
	if m == nil {
		return all
	}
	for _, n := range m.NICs {
		card := newShownNIC(n)
		card.nicFilter = newNICFilter(l, n)
		card.Addresses = s.addresses(l, n, told)
		if l.active() {
			card.Interface = netsetup.Interface(m.Name, n)
			card.Traffic = s.Traffic(card.Interface)
		}
		all = append(all, card)
	}
	return all
}

func newShownNIC(n config.NIC) shownNIC {
	s := shownNIC{Name: n.Name, Plug: plug(n), Model: n.Model, MAC: string(n.MAC), Forward: forwardTexts(n), Link: cmp.Or(n.Link, "up"), RateIn: int64(n.RateIn), RateOut: int64(n.RateOut)}
	if n.Address.IsValid() {
		s.Address = n.Address.String()
	}
	return s
}

// forwardTexts are the ports of the host that reach a card's guest, as they are
// written.
func forwardTexts(n config.NIC) []string {
	all := []string{}
	for _, f := range n.Forward {
		all = append(all, f.String())
	}
	return all
}

// plug is what a card is plugged into, in words.
func plug(n config.NIC) string {
	for _, kind := range []struct{ name, value string }{
		{"network", n.Network}, {"bridge", n.Bridge}, {"tap", n.Tap},
		{"macvtap", n.Macvtap}, {"vde", n.VDE}, {"vhost_user", n.VhostUser},
	} {
		if kind.value != "" {
			return kind.name + " " + kind.value
		}
	}
	return "user"
}

// sockets are those that are there.
func (a *app) sockets(name string) shownSockets {
	there := func(path string) string {
		if _, err := os.Lstat(path); err != nil {
			return ""
		}
		return path
	}
	return shownSockets{
		Console: there(a.paths.ConsoleSocket(name)),
		Control: there(a.paths.ControlSocket(name)),
		QMP:     there(a.paths.QMPSocket(name)),
		Agent:   there(a.paths.AgentSocket(name)),
		Display: there(a.paths.DisplaySocket(name)),
	}
}

func newUsage(p bus.Properties) usage {
	known := func(v uint64) *uint64 {
		if v == bus.Unset {
			return nil
		}
		return &v
	}
	u := usage{
		MemoryBytes:  known(p.MemoryCurrent),
		IOReadBytes:  known(p.IOReadBytes),
		IOWriteBytes: known(p.IOWriteBytes),
		Restarts:     p.NRestarts,
	}
	if p.CPUUsageNSec != bus.Unset {
		u.CPUSeconds = new(time.Duration(p.CPUUsageNSec).Seconds())
	}
	return u
}

// showRows are the lines of vmctl show for people: a word, and what there is
// to say.
func showRows(s shown) [][]string {
	var rows [][]string
	add := func(word, format string, args ...any) {
		rows = append(rows, []string{word + ":", printable(fmt.Sprintf(format, args...))})
	}
	addIf := func(there bool, word, format string, args ...any) {
		if there {
			add(word, format, args...)
		}
	}
	add("Name", "%s", s.Name)
	addIf(s.Description != "", "Description", "%s", s.Description)
	add("State", "%s", s.State)
	addIf(s.StartedAt != nil, "Started", "%s", timeText(s.StartedAt))
	addIf(s.PID != 0, "PID", "%d", s.PID)
	add("Unit", "%s", s.Unit)
	addIf(s.File != "", "Definition", "%s", s.File)
	for _, file := range s.Files {
		if file != s.File {
			add("  with", "%s", file)
		}
	}
	addIf(s.Error != "", "Error", "%s", s.Error)
	addIf(s.NotReady != "", "Not ready", "%s", s.NotReady)
	addIf(s.Masked, "Masked", "systemctl unmask %s lets it start", s.Unit)
	addIf(s.File == "" && (s.State == stopped || s.State == failed), "Left", "vmctl delete %s removes what is left of it", s.Name)
	addIf(s.PendingChanges && s.File != "", "Pending", "it runs otherwise than defined; vmctl diff %[1]s tells in what, vmctl restart %[1]s ends that", s.Name)
	addIf(s.PendingChanges && s.File == "", "Pending", "it runs on without its definition; vmctl stop %s ends it", s.Name)
	add("Autostart", "%s", yesNo(s.Autostart))
	addIf(s.CPUs != 0, "CPUs", "%d", s.CPUs)
	addIf(s.MemoryBytes != 0, "Memory", "%s", sizeText(s.MemoryBytes))
	addIf(s.Hypervisor != "", "Hypervisor", "%s", s.Hypervisor)
	for _, d := range s.Disks {
		add("Disk "+d.Name, "%s", diskText(d))
	}
	addIf(!s.DiskChanges.None(), "Since start", "%s", s.DiskChanges)
	for _, n := range s.NICs {
		add("NIC "+n.Name, "%s", nicText(n))
		for _, line := range nicLines(n) {
			rows = append(rows, []string{"", line})
		}
	}
	for _, sh := range s.Shares {
		add("Share "+sh.Name, "%s", shareText(sh))
	}
	if s.TPM != nil {
		add("TPM", "%s", strings.TrimSuffix("2.0, "+s.TPM.State, ", "))
	}
	addIf(s.Sockets.Display != "", "Display", "%s", s.Sockets.Display)
	if s.Guest != nil {
		for _, row := range guestRows(*s.Guest) {
			add(row[0], "%s", row[1])
		}
	}
	addIf(s.Sockets.QMP != "", "QMP", "%s", s.Sockets.QMP)
	addUsage(addIf, s.Usage)
	addIf(s.Usage.Restarts > 0, "Restarts", "%d", s.Usage.Restarts)
	if s.Exit != nil {
		add("Last end", "%s (%s)", exitText(s.Exit), timeText(&s.Exit.Time))
		for _, line := range furtherLines(s.Exit) {
			rows = append(rows, []string{"", line})
		}
	}
	return rows
}

func addUsage(addIf func(bool, string, string, ...any), u usage) {
	addIf(u.CPUSeconds != nil, "CPU used", "%s", cpuText(u.CPUSeconds))
	for _, v := range []struct {
		word  string
		bytes *uint64
	}{{"Memory used", u.MemoryBytes}, {"Read", u.IOReadBytes}, {"Written", u.IOWriteBytes}} {
		if v.bytes != nil {
			addIf(true, v.word, "%s", sizeText(int64(*v.bytes)))
		}
	}
}

func cpuText(seconds *float64) string {
	if seconds == nil {
		return ""
	}
	return time.Duration(*seconds * float64(time.Second)).Round(10 * time.Millisecond).String()
}

func timeText(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05 MST")
}

func diskText(d shownDisk) string {
	parts := []string{d.Path, d.Format, d.Bus}
	if d.Media != "disk" {
		parts = append(parts, d.Media)
	}
	if d.Readonly {
		parts = append(parts, "read-only")
	}
	if d.SizeBytes > 0 {
		parts = append(parts, sizeText(d.SizeBytes))
	}
	if d.AllocatedBytes > 0 {
		parts = append(parts, sizeText(d.AllocatedBytes)+" on the host")
	}
	if d.IO != "" {
		parts = append(parts, d.IO)
	}
	if d.Limits != (hypervisor.Limits{}) {
		parts = append(parts, limitsText(d.Limits))
	}
	return strings.Join(parts, ", ")
}

func shareText(s shownShare) string {
	parts := []string{s.Path, "tag " + s.Tag}
	if s.Readonly {
		parts = append(parts, "read-only")
	}
	if s.User != "" {
		parts = append(parts, "as "+s.User)
	}
	if s.State != "" {
		parts = append(parts, s.State)
	}
	text := strings.Join(parts, ", ")
	if s.GivenUp {
		text += fmt.Sprintf("; systemd has given it up, as it ended too often: systemctl reset-failed %s, then systemctl start %s bring it back, or a restart of the machine does", s.Unit, s.Unit)
	}
	return text
}

func nicText(n shownNIC) string {
	parts := []string{n.Plug, n.MAC, n.Model}
	if n.Backend != "" {
		parts[0] += " (" + strings.TrimSuffix(n.Backend+", "+n.State, ", ") + ")"
	}
	if n.Address != "" {
		parts = append(parts, n.Address)
	}
	for _, f := range n.Forward {
		parts = append(parts, "forward "+f)
	}
	if n.Link == "down" {
		parts = append(parts, "link down")
	}
	if n.RateIn > 0 {
		parts = append(parts, config.Size(n.RateIn).String()+"/s in")
	}
	if n.RateOut > 0 {
		parts = append(parts, config.Size(n.RateOut).String()+"/s out")
	}
	return strings.Join(parts, ", ")
}

// nicLines are the further lines about a card.
func nicLines(n shownNIC) []string {
	var lines, addresses []string
	if filter := n.nicFilter.String(); filter != "" {
		lines = append(lines, filter)
	}
	for _, f := range n.Addresses {
		addresses = append(addresses, f.Address+" ("+f.Source+")")
	}
	if len(addresses) > 0 {
		lines = append(lines, strings.Join(addresses, ", "))
	}
	if t := n.Traffic; t != nil {
		lines = append(lines, "received "+trafficText(t.RxBytes, t.RxPackets, t.RxDropped, t.RxErrors)+"; sent "+trafficText(t.TxBytes, t.TxPackets, t.TxDropped, t.TxErrors))
	}
	return lines
}

func trafficText(bytes, packets, dropped, errors uint64) string {
	text := fmt.Sprintf("%s in %s", sizeText(int64(bytes)), count(int(packets), "packet"))
	if dropped > 0 {
		text += fmt.Sprintf(", %d dropped", dropped)
	}
	if errors > 0 {
		text += ", " + count(int(errors), "error")
	}
	return text
}

// guestRows are a word, and what a guest says of itself.
func guestRows(g guestagent.Guest) [][2]string {
	var rows [][2]string
	join := func(parts ...string) string {
		return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", ")
	}
	if os := join(g.HostName, g.OS, g.Kernel); os != "" {
		rows = append(rows, [2]string{"Guest", os})
	}
	rows = append(rows, [2]string{"Agent", "qemu-guest-agent " + g.AgentVersion})
	for _, f := range g.FileSystems {
		used := ""
		if f.TotalBytes > 0 {
			used = sizeText(f.UsedBytes) + " of " + sizeText(f.TotalBytes)
		}
		rows = append(rows, [2]string{"Mounted " + printable(f.Mountpoint), join(f.Device, f.Type, used)})
	}
	for _, u := range g.Users {
		rows = append(rows, [2]string{"Logged in", u.Name + ", since " + timeText(&u.Since)})
	}
	return rows
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/disk"
)

func newDiskListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list [VM...]",
		Aliases: []string{"ls"},
		Short:   "List the disks of machines",
		Long: `List the disks of all machines, or of those named: those that definitions have,
those that machines still run with, and disks made by vmctl that no definition has
any more. Limits are those of the definitions; vmctl disk throttle shows what they
are while a machine runs.`,
		Example:           "  vmctl disk list\n  vmctl disk list -o json | jq -r '.[] | select(.orphan) | .file'",
		ValidArgsFunction: a.completeNames,
		RunE:              func(cmd *cobra.Command, args []string) error { return runDiskList(cmd.Context(), a, args) },
	}
}

// diskRow is one disk in vmctl disk list -o json. The names of its fields stay.
type diskRow struct {
	VM          string `json:"vm"`
	Disk        string `json:"disk"`
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual_size_bytes"` // 0 where it cannot be told
	RealSize    int64  `json:"real_size_bytes"`
	Backing     string `json:"backing"` // the file that it stands on; "" for none
	Image       string `json:"image"`   // the stored image that this is; "" for none
	Bus         string `json:"bus"`     // "" of an orphan
	File        string `json:"file"`
	Own         bool   `json:"own"`    // made by vmctl
	Orphan      bool   `json:"orphan"` // no definition has it
	Error       string `json:"error"`  // why there is no more to tell

	// Limits are those that it is defined with, per second, 0 for none.
	Limits hypervisor.Limits `json:"limits"`
}

func runDiskList(ctx context.Context, a *app, vms []string) error {
	known, err := a.knownDisks()
	if err != nil {
		return err
	}
	for _, vm := range vms {
		_, err := a.find(vm)
		if err != nil && !(exitStatus(err) == exitNotFound && slices.ContainsFunc(known, func(k knownDisk) bool { return k.vm == vm })) {
			return err
		}
	}
	rows := []diskRow{}
	for _, k := range known {
		if len(vms) == 0 || slices.Contains(vms, k.vm) {
			rows = append(rows, diskRow{VM: k.vm, Disk: k.Name, Format: k.Format, Bus: k.Bus, File: k.file, Own: k.own, Orphan: k.orphan, Limits: k.Limits()})
		}
	}
	inParallel(rows, func(r *diskRow) { a.measureRow(ctx, r) })
	if a.ui.format == jsonFormat {
		return a.ui.json(rows)
	}
	table := [][]string{{"VM", "DISK", "FORMAT", "SIZE", "TAKES", "BUS", "LIMITS", "STANDS ON", "FILE"}}
	for _, r := range rows {
		table = append(table, r.cells())
	}
	return writeTable(a.ui.out, table)
}

// measureRow fills in what the file says.
func (a *app) measureRow(ctx context.Context, r *diskRow) {
	f, err := access.Open(r.File)
	if errors.Is(err, fs.ErrNotExist) {
		r.Error = "is not there"
		if r.Own {
			r.Error = "not made yet"
		}
		return
	}
	if err != nil {
		r.Error = err.Error()
		return
	}
	defer f.Close()
	r.RealSize = realSize(f)
	if r.Format == disk.QCOW2 {
		r.Backing = backingOf(r.File)
		r.Image = a.imageOf(r.Backing)
	}
	if r.VirtualSize, err = a.layerSize(ctx, disk.Layer{Path: r.File, Format: r.Format, File: f}); err != nil {
		r.Error = err.Error()
	}
}

func (r diskRow) cells() []string {
	size, takes, bus, limits, on, file := "-", "-", r.Bus, "-", r.Backing, r.File
	if r.Limits != (hypervisor.Limits{}) {
		limits = limitsText(r.Limits)
	}
	if r.VirtualSize > 0 {
		size, takes = sizeText(r.VirtualSize), sizeText(r.RealSize)
	}
	switch {
	case r.Image != "":
		on = "image " + r.Image
	case on == "":
		on = "-"
	}
	if bus == "" {
		bus = "-"
	}
	switch {
	case r.Error != "":
		file += " (" + r.Error + ")"
	case r.Orphan:
		file += " (in no definition)"
	}
	return []string{r.VM, r.Disk, r.Format, size, takes, bus, limits, printable(on), printable(file)}
}

func newDiskShowCommand(a *app) *cobra.Command {
	var opts reading
	cmd := &cobra.Command{
		Use:   "show {VM DISK | PATH}",
		Short: "Show all about a disk: what it stands on, who uses it, snapshots in it",
		Example: `  vmctl disk show web root
  vmctl disk show /srv/golden.qcow2`,
		ValidArgsFunction: a.completePlaces(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDiskShow(cmd.Context(), a, opts, args)
		},
	}
	cmd.Flags().StringVar(&opts.format, "format", "", "`FORMAT` of the file, where neither a definition nor its name's ending says it")
	opts.addFlags(cmd.Flags())
	completeFormats(cmd, "format")
	return cmd
}

// diskShown is vmctl disk show -o json. The names of its fields stay.
type diskShown struct {
	VM          string          `json:"vm"` // whose own disk it is; "" for none
	Disk        string          `json:"disk"`
	File        string          `json:"file"`
	Format      string          `json:"format"`
	VirtualSize int64           `json:"virtual_size_bytes"`
	RealSize    int64           `json:"real_size_bytes"`
	Image       string          `json:"image"` // the stored image that it is itself; "" for none
	Chain       []layerShown    `json:"chain"` // what it stands on, the nearest first
	UsedBy      []useShown      `json:"used_by"`
	Children    []string        `json:"children"` // files that stand on it
	HeldBy      string          `json:"held_by"`  // who has it open in a way that excludes others; "" for nobody
	Snapshots   []disk.Snapshot `json:"snapshots"`
	Bitmaps     []disk.Bitmap   `json:"bitmaps"`
	Error       string          `json:"error"` // what is wrong with it; "" for nothing
}

// layerShown is one file that a disk stands on.
type layerShown struct {
	File        string `json:"file"`
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual_size_bytes"`
	RealSize    int64  `json:"real_size_bytes"`
	Image       string `json:"image"`
}

// useShown is a machine that has the file as a disk.
type useShown struct {
	VM       string `json:"vm"`
	Disk     string `json:"disk"`
	Bus      string `json:"bus"`
	Readonly bool   `json:"readonly"`
	Running  bool   `json:"running"`
}

func runDiskShow(ctx context.Context, a *app, opts reading, args []string) error {
	places, _, err := takePlaces(args, 1)
	if err != nil {
		return err
	}
	if err := checkFormat("format", opts.format); err != nil {
		return err
	}
	t, err := a.target(places[0], opts.format)
	if err != nil {
		return err
	}
	defer t.close()
	s := a.showDisk(ctx, t, opts.follow)
	if a.ui.format == jsonFormat {
		return a.ui.json(s)
	}
	return writeTable(a.ui.out, s.lines())
}

// showDisk gathers what is known of a disk. What cannot be found out is told.
func (a *app) showDisk(ctx context.Context, t *target, follow bool) diskShown {
	s := diskShown{
		File: t.file.Name(), Format: t.format, RealSize: realSize(t.file), Image: a.imageOf(t.file.Name()),
		Chain: []layerShown{}, UsedBy: []useShown{}, Snapshots: []disk.Snapshot{}, Bitmaps: []disk.Bitmap{},
		Children: append([]string{}, a.standing(t.file, t.all)...),
		HeldBy:   access.InUse(t.file, true),
	}
	if t.disk != nil {
		s.VM, s.Disk = t.disk.vm, t.disk.Name
	}
	for _, k := range t.known {
		s.UsedBy = append(s.UsedBy, useShown{k.vm, k.Name, k.Bus, !k.writable(), a.isRunning(k.vm)})
	}
	var errs []error
	c, err := a.chain(t, follow)
	errs = append(errs, err)
	for _, l := range c[min(1, len(c)):] {
		size, err := a.layerSize(ctx, l)
		errs = append(errs, err)
		s.Chain = append(s.Chain, layerShown{l.Path, l.Format, size, realSize(l.File), a.imageOf(l.Path)})
	}
	s.VirtualSize, err = a.virtualSize(ctx, t)
	errs = append(errs, err)
	if t.format == disk.QCOW2 {
		info, err := a.imgAs(t.file).Info(ctx, disk.Layer{Path: t.file.Name(), Format: t.format, File: t.file})
		errs = append(errs, err)
		s.Snapshots, s.Bitmaps = append(s.Snapshots, info.Snapshots...), append(s.Bitmaps, info.Bitmaps...)
	}
	if err := errors.Join(errs...); err != nil {
		s.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return s
}

func (s diskShown) lines() [][]string {
	lines := [][]string{
		{"File:", printable(s.File)},
		{"Format:", s.Format},
		{"Size:", fmt.Sprintf("%s (%d bytes)", sizeText(s.VirtualSize), s.VirtualSize)},
		{"Takes:", fmt.Sprintf("%s (%d bytes)", sizeText(s.RealSize), s.RealSize)},
	}
	add := func(name, text string) { lines = append(lines, []string{name, printable(text)}) }
	if s.Image != "" {
		add("Stored image:", s.Image)
	}
	for _, l := range s.Chain {
		text := fmt.Sprintf("%s, %s of %s, takes %s", l.File, l.Format, sizeText(l.VirtualSize), sizeText(l.RealSize))
		if l.Image != "" {
			text += ", the stored image " + l.Image
		}
		add("Stands on:", text)
	}
	for _, u := range s.UsedBy {
		text := u.VM + " as " + u.Disk
		if u.Readonly {
			text += ", read-only"
		}
		if u.Running {
			text += ", running"
		}
		add("Used by:", text)
	}
	if s.HeldBy != "" {
		add("Held by:", s.HeldBy)
	}
	for _, c := range s.Children {
		add("Below:", c)
	}
	for _, n := range s.Snapshots {
		text := n.Name + ", " + n.Created.Local().Format(time.DateTime)
		if n.MemoryBytes > 0 {
			text += ", with " + sizeText(n.MemoryBytes) + " of memory"
		}
		add("Snapshot:", text)
	}
	for _, b := range s.Bitmaps {
		add("Bitmap:", fmt.Sprintf("%s, %s a bit, %s", b.Name, sizeText(b.Granularity), strings.Join(b.Flags, " ")))
	}
	if s.Error != "" {
		add("Error:", s.Error)
	}
	return lines
}

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/snapshot"
)

// snapshotJSON is a snapshot in JSON. The names of its fields stay.
type snapshotJSON struct {
	VM string `json:"vm"`
	snapshot.Snapshot
	Current bool `json:"current"` // it was taken or restored last
	// FileBytes is what it takes beside the disks' images: memory, UEFI
	// variables.
	FileBytes int64  `json:"file_bytes"`
	Directory string `json:"directory"`
}

// snapshot finds a snapshot.
func (a *app) snapshot(vm, name string) (snapshotJSON, error) {
	if err := config.CheckName(name); err != nil {
		return snapshotJSON{}, usageError{fmt.Errorf("name of a snapshot: %w", err)}
	}
	rows, err := a.snapshotRows(vm)
	if err != nil {
		return snapshotJSON{}, err
	}
	e := &notFoundError{Kind: "snapshot of " + vm, Name: name, Hint: "vmctl snapshot list " + vm + " shows those that there are"}
	var names []string
	for _, r := range rows {
		if r.Name == name {
			return r, nil
		}
		names = append(names, r.Name)
	}
	if near := nearest(name, names); near != "" {
		e.Hint = didYouMean(near)
	}
	return snapshotJSON{}, e
}

// snapshotRows are a machine's snapshots.
func (a *app) snapshotRows(vm string) ([]snapshotJSON, error) {
	all, err := snapshot.List(a.paths, vm)
	if err != nil {
		return nil, err
	}
	current, err := snapshot.Current(a.paths, vm)
	if err != nil {
		return nil, err
	}
	rows := []snapshotJSON{}
	for _, s := range all {
		dir := a.paths.Snapshot(vm, s.Name)
		rows = append(rows, snapshotJSON{VM: vm, Snapshot: s, Current: s.Name == current, FileBytes: fileBytes(dir), Directory: dir})
	}
	return rows, nil
}

// fileBytes is the size of all files in a directory.
func fileBytes(dir string) (sum int64) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			sum += info.Size()
		}
	}
	return sum
}

// snapshotsOf finds the snapshots of those machines, or of all that have some.
func (a *app) snapshotsOf(vms []string) ([]snapshotJSON, error) {
	for _, vm := range vms {
		if err := checkName(vm); err != nil {
			return nil, err
		}
		if !slices.Contains(a.names(), vm) && !access.IsThere(a.paths.StateDir(vm)) {
			return nil, a.notFound(vm)
		}
	}
	if len(vms) == 0 {
		entries, err := os.ReadDir(a.paths.State)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			vms = append(vms, e.Name())
		}
	}
	rows := []snapshotJSON{}
	for _, vm := range slices.Compact(slices.Sorted(slices.Values(vms))) {
		more, err := a.snapshotRows(vm)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

func newSnapshotListCommand(a *app) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:               "list [VM...]",
		Aliases:           []string{"ls"},
		Short:             "List snapshots, the oldest first",
		Long:              "List the snapshots of VMs, of all without a name, the oldest of each VM first.",
		Example:           "  vmctl snapshot list web\n  vmctl snapshot list -o json | jq -r '.[] | select(.scheduled | not) | .vm + \" \" + .name'",
		ValidArgsFunction: a.completeNames,
		RunE:              func(_ *cobra.Command, args []string) error { return runSnapshotList(a, quiet, args) },
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	return cmd
}

func runSnapshotList(a *app, quiet bool, vms []string) error {
	rows, err := a.snapshotsOf(vms)
	if err != nil {
		return err
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(rows)
	}
	table := [][]string{{"VM", "NAME", "CREATED", "STATE", "MEMORY", "PARENT", "DESCRIPTION"}}
	for _, r := range rows {
		if quiet {
			a.ui.printf("%s", r.Name)
			continue
		}
		memory := "-"
		if r.MemoryBytes > 0 {
			memory = sizeText(r.MemoryBytes)
		}
		table = append(table, []string{r.VM, r.Name, r.Created.Local().Format(time.DateTime), r.stateText(), memory, orDash(r.Parent), printable(r.Description)})
	}
	if quiet {
		return nil
	}
	return writeTable(a.ui.out, table)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// stateText is what the machine did, and whether its file systems were written
// out.
func (s snapshotJSON) stateText() string {
	if s.State != snapshot.Stopped && s.Quiesced {
		return string(s.State) + ", quiesced"
	}
	return string(s.State)
}

func newSnapshotShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show VM NAME",
		Short:             "Show what is known of a snapshot",
		Example:           "  vmctl snapshot show web before-upgrade",
		Args:              vmAndSnapshot,
		ValidArgsFunction: a.completeSnapshot,
		RunE:              func(_ *cobra.Command, args []string) error { return runSnapshotShow(a, args[0], args[1]) },
	}
}

func runSnapshotShow(a *app, vm, name string) error {
	if _, err := a.snapshotsOf([]string{vm}); err != nil {
		return err
	}
	s, err := a.snapshot(vm, name)
	if err != nil {
		return err
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(s)
	}
	lines := [][]string{
		{"Name:", s.Name},
		{"VM:", s.VM},
		{"Description:", printable(s.Description)},
		{"Created:", s.Created.Local().Format(time.DateTime)},
		{"Parent:", orDash(s.Parent)},
		{"State:", s.stateText()},
		{"Scheduled:", yesNo(s.Scheduled)},
		{"Memory:", "none"},
		{"In the images:", s.Tag},
		{"Directory:", s.Directory},
	}
	if s.MemoryBytes > 0 {
		lines[7][1] = fmt.Sprintf("%s (%d bytes)", sizeText(s.MemoryBytes), s.MemoryBytes)
	}
	for _, d := range s.Disks {
		lines = append(lines, []string{"Disk " + d.Name + ":", fmt.Sprintf("%s in %s", sizeText(d.Size), d.Path)})
	}
	for _, f := range s.Files {
		lines = append(lines, []string{"State:", filepath.Join(s.Directory, f)})
	}
	return writeTable(a.ui.out, lines)
}

func newSnapshotTreeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "tree VM",
		Short: "Show which snapshot was taken after which",
		Long: `Show which snapshot of a VM was taken after which: below each, those that were taken
after it was taken or restored. The star is where the VM is now.`,
		Example:           "  vmctl snapshot tree web",
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE:              func(_ *cobra.Command, args []string) error { return runSnapshotTree(a, args[0]) },
	}
}

// branchJSON is a snapshot with those that were taken after it.
type branchJSON struct {
	snapshotJSON
	Children []branchJSON `json:"children"`
}

func runSnapshotTree(a *app, vm string) error {
	rows, err := a.snapshotsOf([]string{vm})
	if err != nil {
		return err
	}
	byName := map[string]snapshotJSON{}
	var all []snapshot.Snapshot
	for _, r := range rows {
		byName[r.Name] = r
		all = append(all, r.Snapshot)
	}
	tree := snapshot.Tree(all)
	if a.ui.format == jsonFormat {
		return a.ui.json(branchesJSON(tree, byName))
	}
	a.ui.printf("%s", vm)
	drawTree(tree, "", func(before string, s snapshot.Snapshot) {
		line := before + s.Name
		if byName[s.Name].Current {
			line += " *"
		}
		a.ui.printf("%s", strings.TrimRight(line+"  "+s.Created.Local().Format(time.DateTime)+"  "+printable(s.Description), " "))
	})
	return nil
}

func branchesJSON(tree []snapshot.Branch, byName map[string]snapshotJSON) []branchJSON {
	out := []branchJSON{}
	for _, b := range tree {
		out = append(out, branchJSON{byName[b.Name], branchesJSON(b.Children, byName)})
	}
	return out
}

// drawTree calls line for each snapshot, with the lines that lead to it.
func drawTree(tree []snapshot.Branch, before string, line func(before string, s snapshot.Snapshot)) {
	for i, b := range tree {
		corner, below := "├── ", "│   "
		if i == len(tree)-1 {
			corner, below = "└── ", "    "
		}
		line(before+corner, b.Snapshot)
		drawTree(b.Children, before+below, line)
	}
}

// completeSnapshot completes a machine, and then one of its snapshots;
// completeSnapshots several.
func (a *app) completeSnapshot(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeSnapshots(cmd, args, prefix)
}

func (a *app) completeSnapshots(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeNames(cmd, args, prefix)
	}
	a.settle()
	var out []cobra.Completion
	if config.CheckName(args[0]) == nil {
		names, _ := snapshot.Names(a.paths, args[0])
		for _, name := range names {
			if strings.HasPrefix(name, prefix) && !slices.Contains(args[1:], name) {
				out = append(out, name)
			}
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

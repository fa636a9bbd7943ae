package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func newInfoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "info",
		Short: "Show what this host is and can do",
		Example: `  vmctl info
  vmctl info -o json`,
		GroupID:           groupLook,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runInfo(cmd.Context(), a) },
	}
}

func runInfo(ctx context.Context, a *app) error {
	f := a.gather(ctx)
	if a.ui.format == jsonFormat {
		return a.ui.json(f)
	}
	return writeTable(a.ui.out, infoRows(f))
}

// infoRows are the lines of vmctl info for people.
func infoRows(f facts) [][]string {
	or := func(s, instead string) string {
		if s == "" {
			return instead
		}
		return s
	}
	var nodes, pages, vms []string
	for node, there := range f.Nodes {
		if there {
			nodes = append(nodes, strings.TrimPrefix(node, "/dev/"))
		}
	}
	slices.Sort(nodes)
	for _, h := range f.Hugepages {
		pages = append(pages, fmt.Sprintf("%d of %s, %d free", h.Total, sizeText(h.SizeBytes), h.Free))
	}
	for _, s := range states {
		if n := f.VMs[s]; n > 0 {
			vms = append(vms, fmt.Sprintf("%d %s", n, s))
		}
	}
	qemu := or(f.QEMU, "not installed")
	if f.QEMU == "" && f.QEMUPath != "" {
		qemu = f.QEMUPath + " does not tell its version"
	}
	counts := or(strings.Join(vms, ", "), "none")
	if f.VMs == nil {
		counts = "not known, systemd does not answer"
	}
	return [][]string{
		{"vmctl:", f.Vmctl},
		{"systemd:", or(f.Systemd, "does not answer")},
		{"QEMU:", qemu},
		{"cloud-hypervisor:", f.Cloud.String()},
		{"CPUs:", fmt.Sprint(f.CPUs)},
		{"Memory:", sizeText(f.MemoryBytes)},
		{"Acceleration:", f.Accel},
		{"Devices:", or(strings.Join(nodes, ", "), "none")},
		{"UEFI images:", fmt.Sprint(f.Firmware)},
		{"cgroup:", strings.TrimSpace(fmt.Sprintf("v%d %s", f.CgroupVersion, strings.Join(f.Controllers, " ")))},
		{"Huge pages:", or(strings.Join(pages, "; "), "none")},
		{"Free for state:", sizeText(f.StateFreeBytes)},
		{"VMs:", counts},
	}
}

// String is for people: "v53.0 (io_uring, kvm), firmware /usr/share/…/CLOUDHV.fd".
func (c cloudFacts) String() string {
	if c.Path == "" {
		return "not installed"
	}
	text := cmp.Or(c.Version, c.Path+" does not tell its version")
	if len(c.Features) > 0 {
		text += " (" + strings.Join(c.Features, ", ") + ")"
	}
	if len(c.Firmware) == 0 {
		return text + ", no firmware found"
	}
	return text + ", firmware " + strings.Join(c.Firmware, ", ")
}

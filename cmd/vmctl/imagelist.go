package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/hypervisor/image"
)

// imageListOptions are the flags of vmctl image list.
type imageListOptions struct {
	available bool
	names     bool
}

func newImageListCommand(a *app) *cobra.Command {
	var opts imageListOptions
	cmd := &cobra.Command{
		Use:               "list",
		Aliases:           []string{"ls"},
		Short:             "List stored images, or those that can be pulled",
		Example:           "  vmctl image list --available\n  vmctl image list -o json | jq -r '.[] | select(.children == []) | .name'",
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(*cobra.Command, []string) error { return runImageList(a, opts) },
	}
	cmd.Flags().BoolVar(&opts.available, "available", false, "those that can be pulled by a short name")
	cmd.Flags().BoolVarP(&opts.names, "quiet", "q", false, "print names only")
	return cmd
}

func runImageList(a *app, opts imageListOptions) error {
	if opts.available {
		return listAvailable(a, opts)
	}
	rows, err := a.imageRows()
	if err != nil {
		return err
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(rows)
	}
	table := [][]string{{"NAME", "FORMAT", "SIZE", "ON DISK", "STORED", "DISKS OF"}}
	for _, r := range rows {
		if opts.names {
			a.ui.printf("%s", r.Name)
			continue
		}
		table = append(table, []string{r.Name, r.Format, sizeText(r.VirtualSize), sizeText(r.Allocated), r.StoredAt.Local().Format(time.DateOnly), usersText(r.Children)})
	}
	if opts.names {
		return nil
	}
	return writeTable(a.ui.out, table)
}

// usersText are the machines whose disks stand on an image.
func usersText(children []image.Child) string {
	if children == nil {
		return "?"
	}
	return strings.Join(image.Machines(children), ", ")
}

// available is one image in vmctl image list --available -o json.
type available struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	URL         string `json:"url"`
	Checksums   string `json:"checksums"`
	Checksum    string `json:"checksum"`
	Signed      bool   `json:"signed"` // a signature is asked for
	Stored      bool   `json:"stored"`
}

func listAvailable(a *app, opts imageListOptions) error {
	stored, err := a.store().Names()
	if err != nil {
		return err
	}
	rows := []available{}
	table := [][]string{{"NAME", "STORED", "DESCRIPTION"}}
	for _, s := range a.imageSources() {
		row := available{s.Name, s.Description, s.URL, s.Checksums, s.Checksum, s.Key != "", slices.Contains(stored, s.Name)}
		rows = append(rows, row)
		table = append(table, []string{s.Name, yesNo(row.Stored), printable(s.Description)})
		if opts.names {
			a.ui.printf("%s", s.Name)
		}
	}
	switch {
	case a.ui.format == jsonFormat:
		return a.ui.json(rows)
	case opts.names:
		return nil
	}
	return writeTable(a.ui.out, table)
}

func newImageShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show what is known of a stored image, and the disks that stand on it",
		Example:           "  vmctl image show debian-13",
		Args:              oneImage,
		ValidArgsFunction: a.completeImages,
		RunE:              func(_ *cobra.Command, args []string) error { return runImageShow(a, args[0]) },
	}
}

func runImageShow(a *app, name string) error {
	i, err := a.image(name)
	if err != nil {
		return err
	}
	children, err := a.children()
	if err != nil {
		return err
	}
	row := a.imageRow(i, children)
	if a.ui.format == jsonFormat {
		return a.ui.json(row)
	}
	checksum, signedBy := i.Checksum, i.SignedBy
	if checksum == "" {
		checksum = "there was none"
	}
	if signedBy == "" {
		signedBy = "not asked for"
	}
	lines := [][]string{
		{"Name:", i.Name},
		{"File:", row.File},
		{"Format:", i.Format},
		{"Size:", fmt.Sprintf("%s (%d bytes)", sizeText(i.VirtualSize), i.VirtualSize)},
		{"File size:", fmt.Sprintf("%s (%d bytes)", sizeText(i.FileSize), i.FileSize)},
		{"On disk:", fmt.Sprintf("%s (%d bytes)", sizeText(row.Allocated), row.Allocated)},
		{"SHA-256:", i.SHA256},
		{"Source:", printable(i.Source)},
		{"Compared with:", checksum},
		{"Signed by:", signedBy},
		{"Stored:", i.StoredAt.Local().Format(time.DateTime)},
	}
	for _, c := range row.Children {
		lines = append(lines, []string{"Disk of " + c.VM + ":", c.Path})
	}
	return writeTable(a.ui.out, lines)
}

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units/bus"
)

// someUnits are what systemd has loaded.
type someUnits []bus.UnitStatus

func (us someUnits) Units(_ context.Context, pattern string) ([]bus.UnitStatus, error) {
	return slices.DeleteFunc(slices.Clone(us), func(u bus.UnitStatus) bool {
		match, err := filepath.Match(pattern, u.Name)
		return err != nil || !match
	}), nil
}

// A definition that was removed by hand leaves things behind. Whatever it is,
// the name is shown, and what is left can be removed.
func TestLeftovers(t *testing.T) {
	a := host(t, "etc/vmctl/vms/web.toml", "var/lib/vmctl/vms/web/exit.json", "var/lib/vmctl/vms/state/disk-root.qcow2",
		"etc/systemd/system/vms.target.wants/vm@link.service", "etc/systemd/system/vms.target.wants/vm@web.service",
		"var/lib/vmctl/vms/No_Name/x")
	units := someUnits{
		{Name: "vm@web.service", Active: "inactive"},
		{Name: "vm@failed.service", Active: "failed"},
		{Name: "vm@alive.service", Active: "activating"},
		{Name: "vm@wanted.service", Active: "inactive"}, // loaded for another machine's sake
		{Name: "vm@No_Name.service", Active: "failed"},
	}
	looks, _, err := a.lookAll(t.Context(), units)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range looks {
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %v %s", l.vm.Name, l.state, l.isLeftover(), errorText(l))))
	}
	want := []string{
		"alive starting false definition is gone",
		"failed failed true no definition",
		"link stopped true no definition",
		"state stopped true no definition",
		"web stopped false",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}

	for name, want := range map[string]deletion{
		"failed": {Removed: []string{}, Left: []string{}, Cleared: true},
		"link":   {Removed: []string{a.enableLink("link")}, Left: []string{}},
		"state":  {Removed: []string{a.paths.Disk("state", "root", "qcow2"), a.paths.StateDir("state")}, Left: []string{}},
	} {
		l, err := a.lookAt(t.Context(), units, name)
		if err != nil {
			t.Error(err)
			continue
		}
		got, err := a.planDeletion(l, false)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, want)
		}
		if got.question() == "" {
			t.Errorf("%s: an empty question", name)
		}
	}
	for _, name := range []string{"wanted", "nothing"} {
		if _, err := a.lookAt(t.Context(), units, name); exitStatus(err) != exitNotFound {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestMasked(t *testing.T) {
	a := host(t, "etc/vmctl/vms/plain.toml", "etc/vmctl/vms/loaded.toml", "etc/vmctl/vms/linked.toml", "etc/vmctl/vms/now.toml",
		"etc/systemd/system/x", "run/systemd/system/x")
	for dir, name := range map[string]string{a.paths.EnableDir: "linked", a.paths.DropInDir: "now"} {
		if err := os.Symlink("/dev/null", filepath.Join(dir, config.Unit(name))); err != nil {
			t.Fatal(err)
		}
	}
	looks, _, err := a.lookAll(t.Context(), someUnits{{Name: "vm@loaded.service", Load: "masked", Active: "inactive"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range looks {
		want := "its unit is masked"
		if l.vm.Name == "plain" {
			want = ""
		}
		if got := errorText(l); got != want || l.masked != (want != "") {
			t.Errorf("%s: got %q, want %q", l.vm.Name, got, want)
		}
		rows := fmt.Sprint(showRows(shown{row: newRow(l, false), File: l.vm.File}))
		if strings.Contains(rows, "systemctl unmask "+config.Unit(l.vm.Name)) != l.masked {
			t.Errorf("%s: shown as %s", l.vm.Name, rows)
		}
	}
	if err := a.maskedError(looks[0]); exitStatus(err) != exitWrongState || hintOf(err) != "systemctl unmask vm@linked lets it start" {
		t.Errorf("got %v, status %d, hint %q", err, exitStatus(err), hintOf(err))
	}
}

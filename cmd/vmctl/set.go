package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/units/bus"
)

const (
	opSet   transition = "set"
	opUnset transition = "unset"

	// setUnit is the kind of the unit that changes a machine that runs.
	setUnit = "set"
	// defaultSetTimeout is how long a guest may take to let go of CPUs.
	defaultSetTimeout = 10 * time.Second
)

func newSetCommand(a *app) *cobra.Command {
	timeout := span(defaultSetTimeout)
	cmd := &cobra.Command{
		Use:   "set NAME KEY=VALUE...",
		Short: "Change the definition of a VM, and the VM where it can be while it runs",
		Long: `Change keys of a definition, any of vmctl.toml(5), by a drop-in that vmctl keeps,
NAME.toml.d/95-set.toml: what people wrote stays as it is. A list is set as a whole
("[…]") or gets one element for each time that its key is given.

What runs is changed too where that can be: CPUs within cpu.max, memory within
memory_options.max, limits of disks and of resources, links, limits and rules of
cards. The rest waits for a restart, which is told. A guest takes memory in its own
time, and may have to bring new CPUs and memory online. CPUs that QEMU emulates are
taken out from QEMU 10.2 on.`,
		Example: `  vmctl set web cpus=4 memory=4G
  vmctl set web lifecycle.restart=always 'boot.order=["disk.root", "nic.lan"]'
  vmctl unset web memory`,
		GroupID: groupDefine,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageError{errors.New("want the name of a VM and KEY=VALUE")}
			}
			return nil
		},
		ValidArgsFunction: a.completeNameAndKeys(completeKeys),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runSet(cmd.Context(), opSet, args[0], time.Duration(timeout), func(d *config.Draft) ([]string, error) { return assign(d, args[1:]) })
		},
	}
	cmd.Flags().Var(&timeout, "timeout", "how long a guest may take to let go of CPUs, e.g. 30s")
	return cmd
}

func newUnsetCommand(a *app) *cobra.Command {
	timeout := span(defaultSetTimeout)
	cmd := &cobra.Command{
		Use:   "unset NAME KEY...",
		Short: "Take back what vmctl set has changed of a definition",
		Long: `Take keys out of the drop-in in which vmctl set keeps them: they are what the rest
of the definition says again. What runs is changed as by vmctl set.`,
		Example: `  vmctl unset web memory cpus`,
		GroupID: groupDefine,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageError{errors.New("want the name of a VM and a KEY")}
			}
			return nil
		},
		ValidArgsFunction: a.completeNameAndKeys(func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			keys, directive := completeKeys(cmd, args, prefix)
			for i, key := range keys {
				name, doc, _ := strings.Cut(key, "=")
				keys[i] = name + doc
			}
			return keys, directive &^ cobra.ShellCompDirectiveNoSpace
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runSet(cmd.Context(), opUnset, args[0], time.Duration(timeout), func(d *config.Draft) ([]string, error) { return unassign(d, args[1:]) })
		},
	}
	cmd.Flags().Var(&timeout, "timeout", "how long a guest may take to let go of CPUs, e.g. 30s")
	return cmd
}

// completeNameAndKeys completes a name, and then what keys does.
func (a *app) completeNameAndKeys(keys cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return a.completeName(cmd, args, prefix)
		}
		return keys(cmd, nil, prefix)
	}
}

// assign sets keys of a draft from KEY=VALUE, and returns the keys.
func assign(d *config.Draft, assignments []string) (keys []string, err error) {
	for _, text := range assignments {
		key, value, ok := strings.Cut(text, "=")
		if !ok {
			return nil, usageError{fmt.Errorf("want KEY=VALUE, got %q", text)}
		}
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
			if _, err := d.Unset(key); err != nil { // a list begins anew
				return nil, usageError{fmt.Errorf("%s: %w", key, err)}
			}
		}
		if err := d.Set(key, value); err != nil {
			return nil, usageError{fmt.Errorf("%s: %w", key, err)}
		}
	}
	return keys, nil
}

// unassign takes keys out of a draft.
func unassign(d *config.Draft, keys []string) ([]string, error) {
	for _, key := range keys {
		had, err := d.Unset(key)
		if err != nil {
			return nil, usageError{fmt.Errorf("%s: %w", key, err)}
		}
		if !had {
			return nil, &notFoundError{Kind: "key that vmctl set has set", Name: key}
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(keys))), nil
}

// When a key that was set holds.
const (
	setNow     = "now"
	setRestart = "restart"
	setStart   = "start" // the next one
)

// setKey is a key that was set, or taken back. Values are not told: they may be
// secret.
type setKey struct {
	Key    string `json:"key"`
	Holds  string `json:"holds"`  // "now", "restart" or "start"
	Reason string `json:"reason"` // why it waits, as far as there is more to say
}

// setResult is vmctl set -o json.
type setResult struct {
	Name string   `json:"name"`
	File string   `json:"file"` // where it is kept
	Keys []setKey `json:"keys"`
	// CPUs and memory of a machine that runs; 0 where they were not changed.
	CPUs        int   `json:"cpus"`
	MemoryBytes int64 `json:"memory_bytes"`       // that the guest is offered
	TakenBytes  int64 `json:"memory_taken_bytes"` // that it has taken of that so far
}

// runSet changes what vmctl has set of a definition, and what runs by it.
func (a *app) runSet(ctx context.Context, op transition, name string, timeout time.Duration, change func(*config.Draft) ([]string, error)) error {
	if err := checkName(name); err != nil {
		return err
	}
	begun := time.Now()
	c, err := a.newHotChange(ctx, name, "")
	if err != nil {
		return inName(string(op), name, err)
	}
	defer c.conn.Close()
	result, err := c.setKeys(ctx, timeout, change)
	if exitStatus(err) != exitUsage {
		a.note(string(op), "", name, begun, err)
	}
	if err != nil {
		return inName(string(op), name, err)
	}
	return printSet(a.ui, result)
}

// setKeys changes the drop-in, has systemd read it, and the machine that runs
// follow.
func (c *hotChange) setKeys(ctx context.Context, timeout time.Duration, change func(*config.Draft) ([]string, error)) (setResult, error) {
	name := c.look.vm.Name
	if c.look.vm.File == "" {
		return setResult{}, &notFoundError{Kind: "definition", Name: name}
	}
	file := c.paths.SetDropIn(c.look.vm)
	// Two at once would each write what they have read before.
	unlock, err := access.LockFile(c.paths.Lock(".set-"+name), unix.LOCK_EX)
	if err != nil {
		return setResult{}, err
	}
	defer unlock()
	draft, err := readSet(name, file)
	if err != nil {
		return setResult{}, err
	}
	keys, err := change(draft)
	if err != nil {
		return setResult{}, err
	}
	text := ""
	if set := draft.Text(); set != "" {
		text = config.DropInMark + "set: vmctl unset " + name + " KEY takes one back\n\n" + set
	}
	kept, err := c.planDropIn(c.look.vm, file, text)
	if err != nil {
		if hint := newDevice(c.look.vm.Machine, keys); hint != "" {
			err = withHint(err, hint)
		}
		return setResult{}, err
	}
	if err := notOverridden(kept, keys, text); err != nil {
		return setResult{}, err
	}
	if err := kept.write(); err != nil {
		return setResult{}, err
	}
	if err := c.conn.Reload(ctx); err != nil {
		return setResult{}, fmt.Errorf("it is written to %s, and systemd has to read it: %w", file, err)
	}
	result := setResult{Name: name, File: file}
	if !c.look.active() {
		for _, key := range keys {
			result.Keys = append(result.Keys, setKey{Key: key, Holds: setStart})
		}
		return result, nil
	}
	if err := c.follow(ctx, keys, timeout, &result); err != nil {
		return result, withHint(fmt.Errorf("it is written to %s, but what runs did not follow: %w", file, err), "vmctl diff "+name+" shows what waits for a restart")
	}
	return result, nil
}

// newDevice is which disks or cards there are, where keys are of one that is not
// among them; "" where none is.
func newDevice(m *config.Machine, keys []string) string {
	for _, key := range keys {
		parts := strings.SplitN(key, ".", 3)
		noun, ok := map[string]string{"disk": "disk", "nic": "card"}[parts[0]]
		if m == nil || !ok || len(parts) < 2 || hasDevice(m, parts[0]+"."+parts[1]) {
			continue
		}
		var there []string
		for _, d := range m.Devices() {
			if name, same := strings.CutPrefix(d.Key(), parts[0]+"."); same {
				there = append(there, name)
			}
		}
		return fmt.Sprintf("%s has no %s %s yet; it has %s", m.Name, noun, printable(parts[1]), cmp.Or(strings.Join(there, ", "), "none"))
	}
	return ""
}

// readSet reads what vmctl has set.
func readSet(name, file string) (*config.Draft, error) {
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		return config.NewDraft(), nil
	}
	draft, problems := config.ReadDraft(name, []string{file})
	if len(problems) > 0 {
		return nil, &invalidError{problems}
	}
	return draft, nil
}

// notOverridden refuses to set keys that another file sets after ours.
func notOverridden(kept deviceDropIn, keys []string, text string) error {
	m := kept.plan.VM.Machine
	if text == "" || m == nil {
		return nil
	}
	for _, key := range keys {
		file, line := m.WrittenIn(key)
		if file == kept.file || !strings.HasSuffix(filepath.Dir(file), ".toml.d") || filepath.Base(file) < filepath.Base(kept.file) {
			continue
		}
		return &stateError{fmt.Errorf("%s: %s:%d says what it is, after %s: change it there", key, file, line, kept.file)}
	}
	return nil
}

// follow has a machine that runs be what its definition says by now, as far as it
// can be.
func (c *hotChange) follow(ctx context.Context, keys []string, timeout time.Duration, result *setResult) error {
	name := c.look.vm.Name
	l, err := c.lookAt(ctx, c.conn, name)
	if err != nil {
		return err
	}
	set, changed, err := c.followSettings(ctx, c.conn, l, timeout, keys...)
	if err != nil {
		return err
	}
	if slices.Contains(changed, "cpus") || slices.Contains(changed, "memory") {
		result.CPUs, result.MemoryBytes, result.TakenBytes = set.CPUs, set.Memory, set.Taken
	}
	if _, err := c.reloadCards(ctx, c.conn, []look{l}, []string{name}); err != nil {
		return err
	}
	if l, err = c.lookAt(ctx, c.conn, name); err != nil {
		return err
	}
	if c.filtersPending(l) {
		if _, err := c.reloadFilters(ctx, c.conn, []look{l}, []string{name}); err != nil {
			return err
		}
	}
	differ := c.differing(l, c.probe()).Differences
	for _, key := range keys {
		k := setKey{Key: key, Holds: setNow}
		if slices.ContainsFunc(differ, func(d config.Difference) bool { return within(d.Key, key) || within(key, d.Key) }) {
			k.Holds, k.Reason = setRestart, set.Waiting[key]
		}
		result.Keys = append(result.Keys, k)
	}
	return nil
}

// differingSettings are the keys of what a machine that runs could take as it runs,
// and in which it is not what it is defined as; want is what it would be then. Limits of
// disks that were set until it stops stay, but for those that are named.
func differingSettings(l look, named ...string) (keys []string, want config.LiveSettings) {
	now := l.machine()
	if now == nil || l.vm.Machine == nil {
		return nil, want
	}
	defined, has := l.vm.Machine.Live(), now.Live()
	for disk := range throttledDisks(l) {
		if limits, there := has.Disks[disk]; there && !limitsOf(disk, named) {
			defined.Disks[disk] = limits
		}
	}
	then := now.WithLive(defined)
	for _, d := range config.Differences(now, then) {
		keys = append(keys, d.Key)
	}
	return keys, then.Live()
}

// takeable are the keys of [differingSettings] that a machine will most likely take:
// it was started with room for them. rest says that it differs in others too.
func (a *app) takeable(l look, host hypervisor.Host) (keys []string, rest bool) {
	differing, _ := differingSettings(l)
	if len(differing) == 0 || l.record == nil || l.record.Machine == nil {
		return nil, true
	}
	started, now, want := l.record.Machine, l.machine(), l.vm.Machine
	waits := func(key string) bool {
		switch {
		case key == "cpus":
			return want.CPUs < started.CPUs || want.CPUs > started.CPU.Max
		case key == "memory":
			return want.Memory < started.Memory || want.Memory > started.MemoryOptions.Max
		}
		return strings.HasPrefix(key, "disk.") && started.Hypervisor == config.CloudHypervisor
	}
	keys = slices.DeleteFunc(slices.Clone(differing), waits)
	l.vm.Machine = want.WithLive(now.Live())
	return keys, len(keys) < len(differing) || a.outdated(l, host)
}

// followSettings has a machine that runs take the settings of its definition that it
// can: keys are those that differed. Limits of disks that were set past vmctl stay, too,
// but for those that are named.
func (a *app) followSettings(ctx context.Context, conn *bus.Conn, l look, timeout time.Duration, named ...string) (set hypervisor.SetResult, keys []string, err error) {
	keys, want := differingSettings(l, named...)
	maps.DeleteFunc(want.Disks, func(name string, _ config.DiskLimits) bool {
		return !limitsOf(name, keys) && !limitsOf(name, named)
	})
	if len(keys) == 0 && len(want.Disks) == 0 {
		return set, nil, nil
	}
	err = a.runOperation(ctx, conn, l.vm.Name, setUnit, hypervisor.MachineSet, hypervisor.SetRequest{Settings: want, Timeout: timeout}, &set)
	return set, keys, err
}

// limitsOf says whether limits of a disk are among keys.
func limitsOf(disk string, keys []string) bool {
	return slices.ContainsFunc(keys, func(key string) bool {
		of, ok := strings.CutPrefix(key, "disk."+disk+".")
		return ok && (strings.HasPrefix(of, "iops") || strings.HasPrefix(of, "bandwidth"))
	})
}

// within says whether a key is table, or below it.
func within(key, table string) bool { return key == table || strings.HasPrefix(key, table+".") }

func printSet(u *ui, r setResult) error {
	if u.format == jsonFormat {
		return u.json(r)
	}
	for _, k := range r.Keys {
		text := k.Key + " changed"
		switch {
		case k.Holds == setStart:
			text += ", from the next start on"
		case k.Holds == setRestart && k.Reason != "":
			text += ", waits for a restart: " + k.Reason
		case k.Holds == setRestart:
			text += ", waits for a restart"
		case k.Key == "memory" && r.TakenBytes != r.MemoryBytes:
			text += fmt.Sprintf(": the guest has %s of %s so far", sizeText(r.TakenBytes), sizeText(r.MemoryBytes))
		}
		u.printf("%s: %s", r.Name, text)
	}
	return nil
}

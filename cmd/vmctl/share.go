package main

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

func newShareCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "share",
		Short: "Directories of the host that guests mount: list, attach, detach",
		Long: `Directories of the host that guests mount by virtiofs, which come and go while their
machines run, too. What is changed lasts until the machine stops; with --persist it is
written to its definition, as a drop-in. Of a machine that does not run, only --persist
makes sense.`,
		Example: `  vmctl share list
  vmctl share attach web src --path ~/src --readonly
  vmctl share detach web src`,
		GroupID: groupParts,
		Args:    noCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newShareAttachCommand(a), newShareDetachCommand(a), newShareListCommand(a))
	return cmd
}

// vmAndShare accepts the name of a machine and of one of its shares.
func vmAndShare(_ *cobra.Command, args []string) error {
	if len(args) != 2 {
		return usageError{fmt.Errorf("want VM SHARE, got %d arguments", len(args))}
	}
	if err := checkName(args[0]); err != nil {
		return err
	}
	if err := config.CheckName(args[1]); err != nil {
		return usageError{fmt.Errorf("name of a share: %w", err)}
	}
	return nil
}

// shareNames are the names of a machine's shares.
func shareNames(m *config.Machine) (names []string) {
	for _, s := range m.Shares {
		names = append(names, s.Name)
	}
	return names
}

func newShareListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list [VM...]",
		Aliases: []string{"ls"},
		Short:   "List the shared directories of machines",
		Long: `List the shared directories of all machines, or of those named: of one that runs
those that it has now, of others those that definitions have. Whether they are served
is in vmctl show.`,
		Example:           "  vmctl share list\n  vmctl share list web -o json | jq -r '.[].path'",
		ValidArgsFunction: a.completeNames,
		RunE:              func(cmd *cobra.Command, args []string) error { return runShareList(cmd.Context(), a, args) },
	}
}

// shareRow is one share in vmctl share list -o json. The names of its fields stay.
type shareRow struct {
	VM       string `json:"vm"`
	Share    string `json:"share"`
	Running  bool   `json:"running"` // the machine runs, and has the share
	Path     string `json:"path"`    // on the host
	Tag      string `json:"tag"`     // by which the guest mounts it
	Readonly bool   `json:"readonly"`
	Defined  bool   `json:"defined"` // the definition has the share
	Leaving  bool   `json:"leaving"` // the guest was asked to let go of it, and has not
}

func runShareList(ctx context.Context, a *app, vms []string) error {
	looks, err := a.lookAtThose(ctx, vms)
	if err != nil {
		return err
	}
	rows := []shareRow{}
	var errs []error
	for _, l := range looks {
		rows = append(rows, shareRows(l)...)
		if err := a.unreadable(l); err != nil {
			errs = append(errs, inName("list shares of", l.vm.Name, err))
		}
	}
	if a.ui.format == jsonFormat {
		return cmp.Or(a.ui.json(rows), worst(errs))
	}
	table := [][]string{{"VM", "SHARE", "PATH", "TAG", "GUEST"}}
	for _, r := range rows {
		table = append(table, r.cells())
	}
	if err := writeTable(a.ui.out, table); err != nil {
		return err
	}
	for _, err := range errs {
		a.ui.errorf(err)
	}
	return worst(errs)
}

func shareRows(l look) []shareRow {
	var rows []shareRow
	m := l.machine()
	if m == nil {
		return nil
	}
	for _, s := range m.Shares {
		rows = append(rows, shareRow{VM: l.vm.Name, Share: s.Name, Running: l.active(), Path: s.Path, Tag: s.Tag, Readonly: s.Readonly,
			Defined: l.vm.Machine != nil && hasDevice(l.vm.Machine, s.Key()), Leaving: slices.Contains(l.changes.LeavingShares, s.Name)})
	}
	return rows
}

func (r shareRow) cells() []string {
	guest := "reads and writes"
	if r.Readonly {
		guest = "reads"
	}
	if r.Leaving {
		guest += ", being detached"
	}
	return []string{r.VM, r.Share, printable(r.Path), r.Tag, guest}
}

// pluggedShare is vmctl share attach and detach -o json.
type pluggedShare struct {
	VM        string `json:"vm"`
	Share     string `json:"share"`
	Running   bool   `json:"running"`   // the guest has the change
	Persisted bool   `json:"persisted"` // a restart keeps it
	Path      string `json:"path"`
	Tag       string `json:"tag"`
	Readonly  bool   `json:"readonly"`
}

// shareChange is a change of a share of a machine.
type shareChange struct {
	*hotChange
	name   string
	result pluggedShare
}

// changeShare does something to a share of a machine, and tells of it.
func (a *app) changeShare(ctx context.Context, verb string, args []string, do func(*shareChange) (string, error)) error {
	vm, name := args[0], args[1]
	fail := func(err error) error { return fmt.Errorf("%s %s %s: %w", verb, vm, name, err) }
	c, err := a.newHotChange(ctx, vm, config.Share{Name: name}.Key())
	if err != nil {
		return fail(err)
	}
	defer c.conn.Close()
	s := &shareChange{hotChange: c, name: name, result: pluggedShare{VM: vm, Share: name, Running: c.look.active()}}
	text, err := do(s)
	if err != nil {
		return fail(err)
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(s.result)
	}
	a.ui.printf("%s %s: %s", vm, name, text)
	return nil
}

// tell fills in what the share is like.
func (c *shareChange) tell(s config.Share) {
	c.result.Path, c.result.Tag, c.result.Readonly = s.Path, s.Tag, s.Readonly
}

// request has the machine's share changed while it runs.
func (c *shareChange) request(ctx context.Context, what string, q hypervisor.ShareRequest) error {
	return c.operate(ctx, c.conn, c.look.vm.Name, "share", what, q, nil)
}

func newShareAttachCommand(a *app) *cobra.Command {
	var keys []attachKey
	var persist bool
	cmd := &cobra.Command{
		Use:   "attach VM SHARE [--path DIR]",
		Short: "Share a directory of the host with a machine, while it runs too",
		Long: `Share a directory of the host with a machine. Where that runs, its guest can mount it
at once: mount -t virtiofs TAG /mnt. With --persist the machine has it after a restart
too, by a drop-in of its definition, VM.toml.d/60-share-SHARE.toml. Where it does not
run, only --persist makes sense. Without --path, the share is the one that the
definition has by that name, which was detached.

virtiofsd serves it in a unit of its own, confined as for a share that the machine was
started with, until that is detached or the machine stops. It maps the guest's memory: a
machine that runs takes shares if it was started with one, or with
memory_options.shared = true. Of the boards, microvm takes none. There is room for some
(on q35 four, disks and cards counted), which a restart makes again.`,
		Example: `  vmctl share attach web src --path /home/ann/src --readonly
  vmctl share attach web data --path /srv/data --tag shared-data --persist`,
		Args:              vmAndShare,
		ValidArgsFunction: a.completeDetached(shareNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return a.changeShare(ctx, "attach", args, func(c *shareChange) (string, error) { return c.attach(ctx, keys, persist) })
		},
	}
	flags := cmd.Flags()
	key := func(name, typ, key, usage string) {
		flags.Var(settingFlag{typ, func(text string) error {
			keys = append(keys, attachKey{key, text})
			return nil
		}}, name, usage)
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	flags.Var(settingFlag{"DIR", func(text string) error {
		path, err := filepath.Abs(text)
		keys = append(keys, attachKey{"path", path})
		return err
	}}, "path", "directory of the host")
	_ = cmd.MarkFlagDirname("path")
	key("tag", "TAG", "tag", "what the guest mounts; default: the share's name")
	key("readonly", "bool", "readonly", "the guest cannot write")
	flags.Lookup("readonly").NoOptDefVal = "true"
	key("cache", "MODE", "cache", "what the guest may cache: auto (default), always or never")
	key("as-user", "USER", "user", "user of the host as whom all is read and written there")
	key("uid-map", "GUEST:HOST:COUNT", "uid_map", "users of the guest that are others on the host; repeatable")
	key("gid-map", "GUEST:HOST:COUNT", "gid_map", "the same for groups")
	flags.BoolVar(&persist, "persist", false, "write it to the definition, as a drop-in")
	_ = cmd.RegisterFlagCompletionFunc("cache", cobra.FixedCompletions([]cobra.Completion{"auto", "always", "never"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// attach has the share served and plugged in.
func (c *shareChange) attach(ctx context.Context, keys []attachKey, persist bool) (string, error) {
	s, draft, err := c.wanted(keys)
	if err != nil {
		return "", err
	}
	if err := c.cold(persist, "attaches it"); err != nil {
		return "", err
	}
	c.tell(s)
	var kept deviceDropIn
	digest := ""
	if persist {
		if kept, digest, err = c.keep("attach", draft); err != nil {
			return "", err
		}
	}
	if c.look.active() {
		if err := c.request(ctx, hypervisor.ShareAttach, hypervisor.ShareRequest{Share: s, Digest: digest}); err != nil {
			return "", err
		}
	}
	if persist {
		c.result.Persisted = true
		if err := c.persist(ctx, kept); err != nil {
			return "", err
		}
	}
	return c.attachedText(persist), nil
}

// wanted is the share that is asked for, and the keys that say so; those are nil for
// one that the definition has.
func (c *shareChange) wanted(keys []attachKey) (config.Share, *config.Draft, error) {
	if s, has := c.look.vm.Machine.Share(c.name); has {
		if len(keys) > 0 {
			return s, nil, c.definedAlready("share")
		}
		return s, nil, nil
	}
	if len(keys) == 0 {
		if s, has := c.before().Share(c.name); has {
			return s, nil, nil
		}
		return config.Share{}, nil, withHint(usageError{fmt.Errorf("the definition has no share named %s: want --path", c.name)},
			"vmctl share attach --help lists the flags")
	}
	draft := config.NewDraft()
	for _, k := range keys {
		if err := draft.Set(c.key+"."+k.key, k.value); err != nil {
			return config.Share{}, nil, usageError{fmt.Errorf("--%s: %w", strings.ReplaceAll(k.key, "_", "-"), err)}
		}
	}
	m, err := c.alone(draft)
	if err != nil {
		return config.Share{}, nil, err
	}
	return m.Shares[0], draft, nil
}

func newShareDetachCommand(a *app) *cobra.Command {
	var persist bool
	timeout := span(releaseTime)
	cmd := &cobra.Command{
		Use:   "detach VM SHARE",
		Short: "Share a directory with a machine no more, while it runs too",
		Long: `Take a shared directory away from a machine. Where that runs, its guest is asked to
let go of it, and may take its time: what it has written is in the directory then, and
what it has open there fails, so it should have unmounted it. What serves the directory
ends after that. With --persist the machine has not got it after a restart either, by a
drop-in of its definition. Where it does not run, only --persist makes sense.`,
		Example:           "  vmctl share detach web src\n  vmctl share detach web data --persist",
		Args:              vmAndShare,
		ValidArgsFunction: a.completeDevices(shareNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return a.changeShare(ctx, "detach", args, func(c *shareChange) (string, error) { return c.detach(ctx, persist, time.Duration(timeout)) })
		},
	}
	cmd.Flags().BoolVar(&persist, "persist", false, "take it out of the definition too, by a drop-in")
	cmd.Flags().Var(&timeout, "timeout", "wait no longer than this for the guest")
	return cmd
}

// detach takes the share out.
func (c *shareChange) detach(ctx context.Context, persist bool, timeout time.Duration) (string, error) {
	kept, digest, err := c.keepDetached(persist, &notFoundError{Kind: "share of " + c.look.vm.Name, Name: c.name,
		Hint: "vmctl share list " + c.look.vm.Name + " shows those that it has"})
	if err != nil {
		return "", err
	}
	s, _ := c.look.machine().Share(c.name)
	c.tell(s)
	if c.look.active() {
		q := hypervisor.ShareRequest{Share: config.Share{Name: c.name}, Timeout: timeout, Digest: digest}
		if err := c.request(ctx, hypervisor.ShareDetach, q); err != nil {
			return "", err
		}
	}
	text := c.detachedText(persist)
	if persist {
		c.result.Persisted = true
		if err := c.persist(ctx, kept); err != nil {
			return "", err
		}
	}
	return text, nil
}

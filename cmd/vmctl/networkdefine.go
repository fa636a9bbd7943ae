package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/netsetup"
)

// networkCreateOptions are the flags of vmctl network create. Each is a key of
// the definition, and is refused as the key's value would be.
type networkCreateOptions struct {
	draft    *config.Draft
	noSubnet bool // no IPv4
	print    bool
}

func newNetworkCreateCommand(a *app) *cobra.Command {
	var opts networkCreateOptions
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Write the definition of a network",
		Long: `Write the definition of a network to /etc/vmctl/networks/NAME.toml, with what was
asked for and nothing else; it is a file like any other from then on. It is
checked before, as vmctl network check does. A name that a network has is
refused. Where no subnet and no bridge is asked for, a subnet is chosen that no other
network and no route of the host has; --subnet none leaves IPv4 out.`,
		Example: `  vmctl network create lan
  vmctl network create web --subnet 10.20.0.0/24
  vmctl network create lab --subnet 10.21.0.0/24 --isolated --dhcp-range 10.21.0.100-10.21.0.199
  vmctl network create office --bridge br0`,
		Args:              oneNetwork,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(_ *cobra.Command, args []string) error { return runNetworkCreate(a, opts, args[0]) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	get := func() *config.Draft { // other commands have no use for the schema
		if opts.draft == nil {
			opts.draft = config.NewNetworkDraft()
		}
		return opts.draft
	}
	for _, f := range []struct{ name, typ, key, usage string }{
		{"subnet", "PREFIX", "subnet", "IPv4 network of the guests, e.g. 10.20.0.0/24; none; default: one that is free"},
		{"subnet6", "PREFIX", "subnet6", "IPv6 network of the guests: a /64, auto or none"},
		{"dhcp-range", "FIRST-LAST", "dhcp_range", "IPv4 addresses that are given out"},
		{"domain", "NAME", "domain", "domain of the guests"},
		{"mtu", "BYTES", "mtu", "largest packet"},
		{"bridge", "BRIDGE", "bridge", "an existing bridge of the host, instead of an own one"},
		{"description", "TEXT", "description", "one line for people"},
	} {
		flags.Var(settingFlag{f.typ, func(text string) error {
			if f.key == "subnet" && text == "none" {
				opts.noSubnet = true
				return nil
			}
			return get().Set(f.key, text)
		}}, f.name, f.usage)
	}
	for _, f := range []struct{ name, key, value, usage string }{
		{"isolated", "isolated", "true", "no way out of the network, nor to other networks"},
		{"no-nat", "nat", "false", "do not let guests out under the host's address"},
		{"autostart", "autostart", "true", "start it with the host"},
	} {
		flags.Var(settingFlag{"bool", func(text string) error {
			if text != "true" {
				return errors.New("want it without a value")
			}
			if f.key == "nat" {
				if err := get().Set("nat6", f.value); err != nil {
					return err
				}
			}
			return get().Set(f.key, f.value)
		}}, f.name, f.usage)
		flags.Lookup(f.name).NoOptDefVal = "true"
	}
	flags.Var(settingFlag{"KEY=VALUE", func(text string) error {
		key, value, ok := strings.Cut(text, "=")
		if !ok {
			return errors.New("want KEY=VALUE")
		}
		if err := get().Set(key, value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		return nil
	}}, "set", "any key of a network (vmctl.toml(5)); again for the next one, or the next element of a list")
	flags.BoolVar(&opts.print, "print", false, "print the definition, and write nothing")
	for _, name := range []string{"subnet", "subnet6", "dhcp-range", "domain", "mtu", "bridge", "description", "set"} {
		// Only an unknown flag fails here.
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return cmd
}

// networkCreated is vmctl network create -o json.
type networkCreated struct {
	Name string `json:"name"`
	File string `json:"file"`
	Text string `json:"text"`
}

func runNetworkCreate(a *app, opts networkCreateOptions, name string) error {
	if err := errors.Join(a.systemOnly(), checkNetworkName(name)); err != nil {
		return err
	}
	if opts.draft == nil {
		opts.draft = config.NewNetworkDraft()
	}
	file := config.Definition(a.paths.NetworkDirs[1], name)
	chosen := ""
	if !opts.noSubnet && !opts.draft.Has("subnet") && !opts.draft.Has("bridge") {
		var err error
		if chosen, err = a.freeSubnet(name); err == nil {
			err = opts.draft.Set("subnet", chosen)
		}
		if err != nil {
			return inName(string(opCreate), name, err)
		}
	}
	text := definitionText("vmctl network create", opts.draft)
	if !opts.print {
		for _, dir := range a.paths.NetworkDirs {
			if there := config.Definition(dir, name); access.IsThere(there) {
				return inName(string(opCreate), name, networkTaken(name, there))
			}
		}
	}
	tried := config.TryNetwork(a.paths, file, text)
	if len(tried.Problems) > 0 {
		return draftError(file, tried.Problems)
	}
	for _, w := range tried.Warnings {
		a.ui.warnf("%s: %s", w.Key, w.Text)
	}
	c := networkCreated{name, file, text}
	switch {
	case opts.print && a.ui.format == textFormat:
		fmt.Fprint(a.ui.out, text)
		return nil
	case !opts.print:
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return inName(string(opCreate), name, err)
		}
		err := access.CreateFile(file, []byte(text), 0o644, true)
		if errors.Is(err, fs.ErrExist) {
			err = networkTaken(name, file)
		}
		if err != nil {
			return inName(string(opCreate), name, err)
		}
		what := ""
		if chosen != "" {
			what = " with the subnet " + chosen
		}
		a.ui.printf("%s: created %s%s", name, file, what)
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(c)
	}
	return nil
}

// freeSubnet is a subnet that no network and no route of the host has: one that
// follows from the network's name, so that hosts that define the same network agree,
// or the next that is free.
func (a *app) freeSubnet(name string) (string, error) {
	networks, _ := a.networks() // those that are broken have none
	seed := crc32.ChecksumIEEE([]byte(name))
	const from, count = 100, 100 // 10.100.0.0 to 10.199.255.0
	for i := range uint32(count << 8) {
		n := (seed + i) % (count << 8)
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, from + byte(n>>8), byte(n), 0}), 24)
		used := slices.ContainsFunc(networks, func(f config.NetworkFile) bool {
			return f.Network != nil && f.Network.Prefix4().IsValid() && f.Network.Prefix4().Overlaps(p)
		})
		if used {
			continue
		}
		route, err := netsetup.Overlap(p, "")
		if err != nil {
			return "", err
		}
		if route == "" {
			return p.String(), nil
		}
	}
	return "", withHint(&stateError{errors.New("no subnet in 10.100.0.0 to 10.199.255.255 is free")}, "--subnet names one")
}

func networkTaken(name, file string) error {
	return withHint(&stateError{fmt.Errorf("the name %s is taken: %s is there", name, file)}, "vmctl network show "+name+" tells what it is")
}

func newNetworkDeleteCommand(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "delete NAME...",
		Short: "Remove networks that no machine is plugged into",
		Long: `Remove the definitions of networks, with their drop-ins, and what is known of
addresses in them. One that is up is taken down first. One that a definition
names, or on which machines run, is refused.`,
		Example:           "  vmctl network delete lab",
		Args:              someNetworks,
		ValidArgsFunction: a.completeNetworks,
		RunE:              func(cmd *cobra.Command, args []string) error { return runNetworkDelete(cmd.Context(), a, yes, args) },
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func runNetworkDelete(ctx context.Context, a *app, yes bool, names []string) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	looks, err := a.lookNetwork(ctx, conn, slices.Compact(slices.Sorted(slices.Values(names)))...)
	if err != nil {
		return err
	}
	all := []deleted{}
	var errs []error
	for _, l := range looks {
		d, err := a.planNetworkDeletion(l)
		if err == nil && !yes {
			err = a.ui.confirm(d.question(), "--yes")
		}
		if err == nil && l.unit.Active != "" {
			err = conn.Stop(ctx, config.NetworkUnit(l.file.Name))
		}
		if err == nil {
			d, err = removeAll(d)
			all = append(all, deleted{l.file.Name, d})
			a.tellDeletion(l.file.Name, d)
		}
		if err != nil {
			err = inName(string(opDelete), l.file.Name, err)
			a.ui.errorf(err)
			errs = append(errs, err)
		}
	}
	if len(all) > 0 {
		// The units of what is gone go with a reload.
		if err := conn.Reload(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	if a.ui.format == jsonFormat {
		if err := a.ui.json(all); err != nil {
			return err
		}
	}
	return worst(errs)
}

// planNetworkDeletion finds what there is of a network.
func (a *app) planNetworkDeletion(l networkLook) (deletion, error) {
	d := deletion{Removed: []string{}, Left: []string{}}
	name := l.file.Name
	if machines := l.machines(false); len(machines) > 0 {
		return d, withHint(&stateError{fmt.Errorf("%s is plugged into it", strings.Join(machines, ", "))}, "vmctl network show "+name+" shows by which card")
	}
	// A definition that cannot be read may name any network.
	set, err := config.Load(a.paths)
	if err != nil {
		return d, err
	}
	for _, vm := range set.VMs {
		if vm.Machine == nil {
			return d, withHint(invalid(vm, vm.Problems), "which networks it names cannot be told, so none is removed")
		}
	}
	for _, other := range set.Networks {
		if other.Network != nil && slices.Contains(other.Network.AllowFrom, name) {
			return d, withHint(&stateError{fmt.Errorf("the network %s lets its guests in (allow_from)", other.Name)}, "take it out of "+other.File+" first")
		}
	}
	for _, dir := range a.paths.NetworkDirs {
		for _, path := range []string{config.Definition(dir, name), config.Definition(dir, name) + ".d"} {
			if !access.IsThere(path) {
				continue
			}
			if strings.HasPrefix(path, a.paths.Root+"/usr/") {
				return d, withHint(fmt.Errorf("%s belongs to a package", path),
					"an empty "+config.Definition(a.paths.NetworkDirs[1], name)+" masks it")
			}
			d.Removed = append(d.Removed, path)
		}
	}
	for _, path := range []string{a.paths.NetworkAddresses(name), filepath.Dir(a.paths.NetworkLeases(name))} {
		if access.IsThere(path) {
			d.Removed = append(d.Removed, path)
		}
	}
	// Where systemd keeps the state of a unit with a dynamic user (systemd.exec(5)).
	if private := filepath.Join(a.root, "/var/lib/private/vmctl/networks", name); access.IsThere(private) {
		d.Removed = append(d.Removed, private)
	}
	return d, nil
}

func newNetworkCheckCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check [NAME|FILE...]",
		Short: "Check definitions of networks: every problem, by file, line and key",
		Long: `Check definitions of networks, all of them or those named. A FILE (with a slash,
or ending in .toml) is checked as a definition of its own, wherever it lies.`,
		Example: `  vmctl network check
  vmctl network check ./lan.toml && install -m 644 lan.toml /etc/vmctl/networks/`,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			names, _ := a.completeNetworks(cmd, args, prefix)
			return names, cobra.ShellCompDirectiveDefault
		},
		RunE: func(_ *cobra.Command, args []string) error { return runNetworkCheck(a, args) },
	}
}

func runNetworkCheck(a *app, args []string) error {
	if err := a.systemOnly(); err != nil {
		return err
	}
	all, others := config.LoadNetworks(a.paths)
	var errs []error
	if len(args) > 0 {
		others, all = nil, nil
		for _, arg := range args {
			var n config.NetworkFile
			var err error
			if strings.ContainsRune(arg, filepath.Separator) || strings.HasSuffix(arg, ".toml") {
				n = config.LoadNetworkFile(a.paths, arg)
			} else if n, err = a.findNetwork(arg); err != nil {
				errs = append(errs, err)
				continue
			}
			all = append(all, n)
		}
	}
	found, invalid := a.checkNetworks(all)
	findings := append(severity("error", others), found...)
	if err := printFindings(a, findings); err != nil {
		return err
	}
	for _, err := range errs {
		a.ui.errorf(err)
	}
	if len(all) > 0 || len(errs) == 0 {
		a.ui.printf("%s", checkSummary(len(all), invalid, len(others), warnings(findings)))
	}
	if problems := errorsOf(findings); len(problems) > 0 {
		errs = append(errs, &invalidError{problems})
	}
	if err := worst(errs); err != nil {
		return &statusError{errors.Join(errs...), exitStatus(err)}
	}
	return nil
}

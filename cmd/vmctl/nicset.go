package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/units/bus"
)

func newNICLinkCommand(a *app, word, short string) *cobra.Command {
	var persist bool
	cmd := &cobra.Command{
		Use:   word + " VM NIC",
		Short: short,
		Long: short + `, while the machine runs. With --persist it is so after a
restart too, by a drop-in of the definition (the key link).`,
		Example:           "  vmctl nic " + word + " web lan",
		Args:              vmAndNIC,
		ValidArgsFunction: a.completeDevices(nicNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return a.changeNIC(ctx, word, args, func(c *nicChange) (string, error) {
				return c.set(ctx, persist, func(n *config.NIC) { n.Link = word })
			})
		},
	}
	cmd.Flags().BoolVar(&persist, "persist", false, "write it to the definition, as a drop-in")
	return cmd
}

// rateFlag is a limit, "0B" for none.
type rateFlag config.Size

func (r *rateFlag) Set(text string) error {
	if text == "0B" {
		*r = 0
		return nil
	}
	return (*sizeFlag)(r).Set(text)
}

func (r *rateFlag) String() string { return config.Size(*r).String() }
func (r *rateFlag) Type() string   { return (*sizeFlag)(r).Type() }

func newNICSetCommand(a *app) *cobra.Command {
	var in, out rateFlag
	var persist bool
	cmd := &cobra.Command{
		Use:   "set VM NIC [--rate-in SIZE] [--rate-out SIZE]",
		Short: "Limit what passes a card per second, while the machine runs",
		Long: `Limit the bytes per second that go to the guest by a card (--rate-in), or come from
it (--rate-out), while the machine runs; 0B takes a limit off. Limits are for cards on
bridges: network and bridge. With --persist they are written to the definition, as a
drop-in.`,
		Example: `  vmctl nic set web lan --rate-in 20M --rate-out 5M
  vmctl nic set web lan --rate-out 0B --persist`,
		Args:              vmAndNIC,
		ValidArgsFunction: a.completeDevices(nicNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, flags := cmd.Context(), cmd.Flags()
			if !flags.Changed("rate-in") && !flags.Changed("rate-out") {
				return withHint(usageError{errors.New("want --rate-in, --rate-out or both")}, "vmctl nic list shows the limits")
			}
			return a.changeNIC(ctx, "set", args, func(c *nicChange) (string, error) {
				return c.set(ctx, persist, func(n *config.NIC) {
					if flags.Changed("rate-in") {
						n.RateIn = config.Size(in)
					}
					if flags.Changed("rate-out") {
						n.RateOut = config.Size(out)
					}
				})
			})
		},
	}
	cmd.Flags().Var(&in, "rate-in", "bytes per second to the guest; 0B for no limit")
	cmd.Flags().Var(&out, "rate-out", "bytes per second from the guest; 0B for no limit")
	cmd.Flags().BoolVar(&persist, "persist", false, "write it to the definition, as a drop-in")
	return cmd
}

// set changes the link or the limits of a card.
func (c *nicChange) set(ctx context.Context, persist bool, change func(*config.NIC)) (string, error) {
	if err := c.cold(persist, "sets it"); err != nil {
		return "", err
	}
	n, has := c.look.machine().NIC(c.name)
	if !has {
		return "", &notFoundError{Kind: "card of " + c.look.vm.Name, Name: c.name, Hint: "vmctl nic list " + c.look.vm.Name + " shows those that it has"}
	}
	change(&n)
	if err := c.checkSettings(n); err != nil {
		return "", err
	}
	var kept deviceDropIn
	digest := ""
	if persist {
		var err error
		if kept, digest, err = c.keepSettings(change); err != nil {
			return "", err
		}
	}
	c.tell(n)
	if c.look.active() {
		q := hypervisor.NICRequest{NIC: n, Digest: digest}
		if defined, has := c.look.vm.Machine.NIC(c.name); has && !persist {
			q.Overridden = defined.Settings()
		}
		if err := c.request(ctx, hypervisor.NICSet, q); err != nil {
			return "", err
		}
	}
	if persist {
		c.result.Persisted = true
		if err := c.persist(ctx, kept); err != nil {
			return "", err
		}
	}
	text := n.Settings()
	switch {
	case !c.look.active():
		text += " from the next start on"
	case !persist:
		text += " until the machine stops"
	}
	return text, nil
}

// settings are the keys that change while the machine runs.
func settings(n config.NIC) map[string]string {
	return map[string]string{"link": cmp.Or(n.Link, "up"), "rate_in": n.RateIn.String(), "rate_out": n.RateOut.String()}
}

// settingsDraft is of those keys.
func (c *nicChange) settingsDraft(n config.NIC) (*config.Draft, error) {
	draft := config.NewDraft()
	for _, key := range []string{"link", "rate_in", "rate_out"} {
		if err := draft.Set(c.key+"."+key, settings(n)[key]); err != nil {
			return nil, usageError{fmt.Errorf("%s: %w", key, err)}
		}
	}
	return draft, nil
}

// checkSettings refuses what a definition could not say either.
func (c *nicChange) checkSettings(n config.NIC) error {
	draft, err := c.settingsDraft(n)
	if err != nil {
		return err
	}
	if err := draft.Set(c.key+".user", "true"); err != nil { // plugged into anything
		return err
	}
	_, err = c.alone(draft)
	return err
}

// keepSettings works out the drop-in by which the definition has the settings, as
// keep does: none where it has them without.
func (c *nicChange) keepSettings(change func(*config.NIC)) (deviceDropIn, string, error) {
	if !c.defined() {
		return deviceDropIn{}, "", withHint(&stateError{errors.New("the definition has not got the card")}, "--persist is for cards that it has; vmctl nic attach --persist writes one to it")
	}
	file := c.settingsDropIn()
	without, err := config.LoadVMWith(c.paths, c.look.vm.Name, file, "")
	if err != nil {
		return deviceDropIn{}, "", err
	}
	now, _ := c.look.vm.Machine.NIC(c.name)
	change(&now)
	if old, has := without.Machine.NIC(c.name); has && old.Link == now.Link && old.RateIn == now.RateIn && old.RateOut == now.RateOut {
		return c.keepText(file, "")
	}
	draft, err := c.settingsDraft(now)
	if err != nil {
		return deviceDropIn{}, "", err
	}
	return c.keepText(file, fmt.Sprintf("%snic set. Without this file link and limits are those of the\n# definition again.\n%s", config.DropInMark, draft.Text()))
}

// settingsDropIn is the file for link and limits.
func (c *nicChange) settingsDropIn() string {
	return filepath.Join(filepath.Dir(c.dropIn()), "90-"+strings.ReplaceAll(c.key, ".", "-")+".toml")
}

// forgetSettings removes what an earlier card of the name, which the definition has
// not got any more, was set to.
func (c *nicChange) forgetSettings() error {
	text, err := os.ReadFile(c.settingsDropIn())
	if errors.Is(err, fs.ErrNotExist) || err == nil && !strings.HasPrefix(string(text), config.DropInMark) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(c.settingsDropIn())
}

// reloadCards has the cards of machines that run, of those named or else of all, be
// as their definitions say by now, as far as link and limits go. The answer are the
// cards that were changed, as "VM NIC". Each error is told as it comes.
func (a *app) reloadCards(ctx context.Context, conn *bus.Conn, looks []look, names []string) (set []string, err error) {
	set = []string{}
	var errs []error
	for _, l := range looks {
		if len(names) > 0 && !slices.Contains(names, l.vm.Name) {
			continue
		}
		for _, q := range a.differingCards(l) {
			name := l.vm.Name + " " + q.NIC.Name
			if err := a.operate(ctx, conn, l.vm.Name, "nic", hypervisor.NICSet, q, nil); err != nil {
				err = inName(string(opReload), name, err)
				a.ui.errorf(err)
				errs = append(errs, err)
				continue
			}
			set = append(set, name)
		}
	}
	return set, worst(errs)
}

// differingCards are the requests after which the cards of a machine are what its
// definition says.
func (a *app) differingCards(l look) []hypervisor.NICRequest {
	if !l.active() || l.record == nil || l.vm.Machine == nil {
		return nil
	}
	var requests []hypervisor.NICRequest
	running, as := l.machine(), *l.vm.Machine
	as.NICs = nil // as they are, in the definition
	for _, n := range l.vm.Machine.NICs {
		now, has := running.NIC(n.Name)
		if has && now.Settings() != n.Settings() && l.changes.Overridden[n.Name] != n.Settings() {
			requests = append(requests, hypervisor.NICRequest{NIC: n})
			n = n.WithSettings(now)
		}
		as.NICs = append(as.NICs, n)
	}
	if len(requests) == 0 {
		return nil
	}
	// Is that all in which the two differ?
	host := a.probe()
	digest := a.plan(l.vm, host).Digest
	l.vm.Machine = &as
	if !a.outdated(l, host) {
		requests[len(requests)-1].Digest = digest
	}
	return requests
}

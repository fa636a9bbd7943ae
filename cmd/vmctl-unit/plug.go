package main

import (
	"context"
	"errors"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/netsetup"
)

// plugIn makes or opens what the machine's cards are plugged into on the host,
// and hands it to systemd for run. Where that fails nothing is left of it.
func (a app) plugIn(ctx context.Context, m *config.Machine, plan *hypervisor.Plan) (err error) {
	a.forgetNeighbours(m)
	if slices.ContainsFunc(m.NICs, onBridge) {
		unlock, err := a.lockToPlug(m.NICs)
		if err != nil {
			return err
		}
		defer unlock()
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.unplug(m.NICs))
		}
	}()
	for _, nic := range m.NICs {
		if !hasQueues(nic) {
			continue
		}
		// What the last run has left would keep the name taken.
		if err := errors.Join(dropFiles(queueName(nic.Name)), dropFiles(vhostName(nic.Name)), dropFiles(keptName(nic.Name))); err != nil {
			return err
		}
		queues, kept, err := a.plugCard(ctx, m, nic)
		if err != nil {
			return err
		}
		vhost, err := openVhost(hypervisor.VhostNet, plan.Descriptors, nic.Name)
		if err != nil {
			a.warn("%s: %v: without it, its packets cost more CPU", nic.Key(), err)
		}
		if err := errors.Join(handOver(queueName(nic.Name), queues), handOver(vhostName(nic.Name), vhost), handOver(keptName(nic.Name), kept)); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(m.NICs, onBridge) {
		return a.writeFilters(m)
	}
	return nil
}

// lockToPlug waits until no network changes ([app.lockNetworks]). Of cards that have
// addresses by their definitions on a bridge of the host's own, one machine's are
// plugged in at a time: whether another has an address there is looked up before it is
// taken.
func (a app) lockToPlug(cards []config.NIC) (unlock func(), err error) {
	unlock, err = a.lockNetworks(unix.LOCK_SH)
	// Looked at under the lock, since a network may have become one of such a bridge.
	if err != nil || !slices.ContainsFunc(cards, a.isFixedOnHostBridge) {
		return unlock, err
	}
	unlock()
	return a.lockNetworks(unix.LOCK_EX)
}

// isFixedOnHostBridge says whether a card has an address by its definition on a bridge
// of the host's own.
func (a app) isFixedOnHostBridge(nic config.NIC) bool {
	if !nic.Address.IsValid() {
		return false
	}
	n := a.networkOfOld(nic)
	return nic.Bridge != "" || n != nil && n.Bridge != ""
}

// hasQueues says whether the hypervisor inherits what a card is plugged into.
func hasQueues(nic config.NIC) bool { return nic.HasInterface() || nic.VDE != "" }

// plugCard plugs in one card. What is kept has to stay open for it.
func (a app) plugCard(ctx context.Context, m *config.Machine, nic config.NIC) (queues, kept []*os.File, err error) {
	if nic.VDE != "" {
		data, control, err := netsetup.PlugVDE(nic.VDE, netsetup.TapName(m.Name, nic.Name), "vmctl "+m.Name+" "+nic.Name)
		if err != nil {
			return nil, nil, refuseProblems([]config.Problem{m.Problem(plugKey(nic), "%v", err)})
		}
		return []*os.File{data}, []*os.File{control}, nil
	}
	card, err := a.card(ctx, m, nic)
	if err != nil {
		return nil, nil, err
	}
	queues, err = netsetup.Plug(card)
	if taken, ok := errors.AsType[*netsetup.TakenError](err); ok {
		return nil, nil, refuseProblems([]config.Problem{m.Problem(nic.Key()+".address", "%v", taken)})
	}
	if err != nil {
		return nil, nil, refuseProblems([]config.Problem{m.Problem(plugKey(nic), "%v", err)})
	}
	if err := a.startProxies(ctx, nic, card.Proxies); err != nil {
		closeList(queues)
		return nil, nil, err
	}
	return queues, nil, nil
}

// plugKey is the key that says what of the host's a card is plugged into.
func plugKey(nic config.NIC) string {
	switch {
	case nic.Tap != "":
		return nic.Key() + ".tap"
	case nic.Macvtap != "":
		return nic.Key() + ".macvtap"
	case nic.VDE != "":
		return nic.Key() + ".vde"
	}
	return nic.Key()
}

// handOver has systemd keep files, if there are any, and closes them here.
func handOver(name string, files []*os.File) error {
	if len(files) == 0 {
		return nil
	}
	err := storeFiles(name, files)
	for _, f := range files {
		f.Close()
	}
	return err
}

// unplug removes what is left of a machine's cards on the host once it has ended.
func (a app) unplug(cards []config.NIC) error {
	errs := []error{a.stopProxies(cards)}
	var unplugged []netsetup.Unplugged
	for _, nic := range cards {
		if hasQueues(nic) {
			// The last that has the queues open, so that the interface goes.
			errs = append(errs, dropFiles(queueName(nic.Name)), dropFiles(vhostName(nic.Name)), dropFiles(keptName(nic.Name)))
			unplugged = append(unplugged, netsetup.Unplugged{NIC: nic, Network: a.networkOfOld(nic)})
		}
	}
	return errors.Join(append(errs, netsetup.Unplug(a.vm, unplugged...))...)
}

// networkOfOld is the network that a card was plugged into, nil where there is none by
// now.
func (a app) networkOfOld(nic config.NIC) *config.Network {
	n, err := a.networkInUse(nic.Network)
	if nic.Network == "" || err != nil {
		return nil
	}
	return n
}

// unplugOld removes what a run whose end was cut off has left of cards that the
// machine no longer has, or has elsewhere or with other addresses.
func (a app) unplugOld(m *config.Machine) error {
	last, _, err := a.lastStart()
	if err != nil {
		a.warn("what the last run has left: %v", err)
		return nil
	}
	return a.unplug(slices.DeleteFunc(last.NICs, func(old config.NIC) bool {
		return slices.ContainsFunc(m.NICs, func(n config.NIC) bool {
			return hasQueues(n) && n.Name == old.Name && samePlace(n, old)
		})
	}))
}

// samePlace says whether two cards of one name are plugged into the same, under the
// same addresses.
func samePlace(n, old config.NIC) bool {
	return n.Network == old.Network && n.Bridge == old.Bridge && n.VLAN == old.VLAN && (n.Macvtap != "") == (old.Macvtap != "") &&
		n.MAC == old.MAC && n.Address == old.Address
}

// queueName is the name under which systemd keeps the queues of a card.
func queueName(card string) string { return queuePrefix + card }

const queuePrefix = "queue-"

// vhostName is the name under which systemd keeps what the kernel moves a card's
// packets by.
func vhostName(card string) string { return queuePrefix + card + ".vhost" }

// keptName is the name under which systemd keeps what nobody uses, but what has
// to stay open while the machine runs.
func keptName(card string) string { return "kept-" + card }

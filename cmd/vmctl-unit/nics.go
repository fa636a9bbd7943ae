package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/netsetup"
	"github.com/vmctl/vmctl/units/bus"
)

// nicOperation is what is needed to mend an operation on a card.
type nicOperation struct {
	NIC config.NIC `json:"nic"`
	// Digest is that of the request.
	Digest string `json:"digest,omitempty"`
}

// nicRequest reads what is asked for, and connects to the machine.
func (a app) nicRequest(ctx context.Context, request json.RawMessage) (q hypervisor.NICRequest, r *live, err error) {
	if err := json.Unmarshal(request, &q); err != nil {
		return q, nil, err
	}
	r, err = a.openRunning(ctx)
	return q, r, err
}

// hotNIC is a card of the machine.
func (r *live) hotNIC(n config.NIC) hypervisor.HotNIC {
	return hypervisor.HotNIC{Machine: r.machine(), NIC: n, Host: hypervisor.Probe(r.paths.Root), Paths: r.paths, Started: r.plan, StartedAs: r.started}
}

// findNIC is a card that the machine has by now.
func (r *live) findNIC(name string) (config.NIC, bool) { return r.machine().NIC(name) }

// mustFindNIC is findNIC for a card that has to be there.
func (r *live) mustFindNIC(name string) (config.NIC, error) {
	n, has := r.findNIC(name)
	if !has {
		return n, &operation.Error{Status: operation.NotFound, Text: fmt.Sprintf("%s runs without a card named %s", r.vm, name),
			Hint: fmt.Sprintf("vmctl nic list %s shows those that it has", r.vm)}
	}
	return n, nil
}

func attachNIC(ctx context.Context, a app, request json.RawMessage, report *operation.Reporter) (any, error) {
	q, r, err := a.nicRequest(ctx, request)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if err := r.checkNewNIC(ctx, q.NIC); err != nil {
		return nil, err
	}
	detail := nicOperation{NIC: q.NIC, Digest: q.Digest}
	o, err := operation.Begin(a.paths, a.vm, hypervisor.NICAttach, detail)
	if err != nil {
		return nil, err
	}
	if err := r.claimNIC(q.NIC); err != nil {
		return nil, errors.Join(err, o.End())
	}
	if err := r.attachNIC(ctx, q.NIC); err != nil {
		there, undo := r.settle(ctx, o, func(ctx context.Context) (bool, error) { return r.agreeOnNIC(ctx, detail) })
		if !there {
			return nil, asOperation(errors.Join(err, undo))
		}
		report.Warn("%v; the machine has the card all the same", err)
		return nil, undo
	}
	r.changes.AttachedNIC(q.NIC)
	r.changes.Digest = q.Digest
	if err := r.save(); err != nil {
		return nil, fmt.Errorf("the card is attached, which could not be noted yet: %w", err)
	}
	return nil, o.End()
}

// checkNewNIC refuses a card that cannot be plugged in, before anything is done.
func (r *live) checkNewNIC(ctx context.Context, n config.NIC) error {
	if _, has := r.findNIC(n.Name); has {
		text := "%s has a card named %s already"
		if slices.Contains(r.changes.LeavingNICs, n.Name) {
			text = "the guest of %s has not let go of %s yet"
		}
		return &operation.Error{Status: operation.WrongState, Text: fmt.Sprintf(text, r.vm, n.Name),
			Hint: fmt.Sprintf("vmctl nic detach %s %s takes it out", r.vm, n.Name)}
	}
	plugged, err := r.control.PluggedNICs(ctx)
	if err != nil {
		return err
	}
	if slices.Contains(plugged, n.Name) {
		return operation.Refuse(operation.WrongState, "%s has a card named %s that was plugged in without vmctl", r.vm, n.Name)
	}
	for _, other := range r.machine().NICs {
		if other.MAC == n.MAC {
			return operation.Refuse(operation.WrongState, "%s: want an address of its own, got %s as %s has", n.Key()+".mac", n.MAC, other.Key())
		}
	}
	if _, problems := r.planner.PlanNIC(r.hotNIC(n)); len(problems) > 0 {
		return refuseHot(problems)
	}
	return nil
}

// checkPlug says what of a card that is to be plugged into m cannot be had on this
// host: of that alone, since what m itself has, it runs with already.
func (a app) checkPlug(m *config.Machine, n config.NIC, host hypervisor.Host) ([]config.Problem, error) {
	alone := *m
	alone.NICs = []config.NIC{hypervisor.AsPlugged(n)}
	problems, err := a.checkBeside(&alone)
	problems = slices.DeleteFunc(problems, func(p config.Problem) bool { return !strings.HasPrefix(p.Key, n.Key()+".") })
	return slices.Concat(problems, a.checkPorts(&alone, host), a.checkProxies(&alone)), err
}

// attachNIC plugs a card in. With an error, its interface may be left, and all
// that the hypervisor was asked for.
func (r *live) attachNIC(ctx context.Context, n config.NIC) error {
	if !hasQueues(n) {
		if err := r.showNIC(ctx, n); err != nil {
			return err
		}
		return r.control.AttachNIC(ctx, r.hotNIC(n), nil)
	}
	if n.Network != "" {
		if err := r.startNetwork(ctx, n.Network); err != nil {
			return err
		}
	}
	hot := r.hotNIC(n)
	vhost, err := r.hotVhost(&hot)
	if err != nil {
		return err
	}
	defer closeList(vhost)
	queues, err := r.plugHot(ctx, n)
	if err != nil {
		return err
	}
	defer closeList(queues)
	return r.control.AttachNIC(ctx, hot, slices.Concat(queues, vhost))
}

// showNIC has the machine see what a card is plugged into by its path.
func (r *live) showNIC(ctx context.Context, n config.NIC) error {
	plan, problems := r.planner.PlanNIC(r.hotNIC(n))
	if len(problems) > 0 {
		return refuseHot(problems)
	}
	for _, f := range plan.Files {
		if f.At == "" {
			continue
		}
		shown, err := r.show(ctx, f, access.User{UID: uint32(r.dir.uid), GID: uint32(r.dir.gid)}, nil)
		if err != nil {
			return operation.Refuse(operation.Failed, "%s: %v", f.Key, err)
		}
		shown.Close()
	}
	return nil
}

// hotVhost opens what the kernel moves a card's packets by, if the host has that,
// and has the card planned without where it has not.
func (r *live) hotVhost(n *hypervisor.HotNIC) ([]*os.File, error) {
	plan, problems := r.planner.PlanNIC(*n)
	if len(problems) > 0 {
		return nil, refuseHot(problems)
	}
	files, err := openVhost(hypervisor.VhostNet, plan.Descriptors, n.NIC.Name)
	if err != nil {
		r.warn("%s: %v: without it, its packets cost more CPU", n.NIC.Key(), err)
		delete(n.Host.Nodes, hypervisor.VhostNet)
	}
	return files, nil
}

// plugHot makes or opens what a card is plugged into, and opens its queues.
func (r *live) plugHot(ctx context.Context, n config.NIC) ([]*os.File, error) {
	if !onBridge(n) {
		queues, kept, err := r.plugCard(ctx, r.machine(), n)
		return slices.Concat(queues, kept), err
	}
	unlock, err := r.lockNetworks(unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer unlock()
	queues, _, err := r.plugCard(ctx, r.machine(), n)
	if err != nil {
		return nil, err
	}
	err = r.changeFilters(func(f map[string]config.Filter) error { return r.addFilters(f, r.machine(), []config.NIC{n}) })
	if err != nil {
		closeList(queues)
	}
	return queues, err
}

func closeList(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// startNetwork has systemd bring a network up, if it is not.
func (a app) startNetwork(ctx context.Context, network string) error {
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.Start(ctx, config.NetworkUnit(network)); err != nil {
		return operation.Refuse(operation.Failed, "the network %s does not come up: %v", network, err)
	}
	return nil
}

func detachNIC(ctx context.Context, a app, request json.RawMessage, _ *operation.Reporter) (any, error) {
	q, r, err := a.nicRequest(ctx, request)
	if err != nil {
		return nil, err
	}
	defer r.close()
	n, err := r.mustFindNIC(q.NIC.Name)
	if err != nil {
		return nil, err
	}
	detail := nicOperation{NIC: n, Digest: q.Digest}
	o, err := operation.Begin(a.paths, a.vm, hypervisor.NICDetach, detail)
	if err != nil {
		return nil, err
	}
	err = asOperation(r.detachNIC(ctx, n, q))
	if _, stays := errors.AsType[*operation.Error](err); err == nil || stays {
		return nil, errors.Join(err, o.End())
	}
	_, undo := r.settle(ctx, o, func(ctx context.Context) (bool, error) { return r.agreeOnNIC(ctx, detail) })
	return nil, errors.Join(err, undo)
}

// detachNIC takes a card out. With an error that is an [operation.Error], or will
// be one, the machine has it as before.
func (r *live) detachNIC(ctx context.Context, n config.NIC, q hypervisor.NICRequest) error {
	ctx, cancel := context.WithTimeout(ctx, q.Timeout)
	defer cancel()
	err := r.control.DetachNIC(ctx, r.hotNIC(n))
	switch {
	case errors.Is(err, hypervisor.ErrNotReleased):
		if !slices.Contains(r.changes.LeavingNICs, n.Name) {
			r.changes.LeavingNICs = append(r.changes.LeavingNICs, n.Name)
		}
		if err := r.save(); err != nil {
			return err
		}
		return r.notReleased("nic", n.Name, q.Timeout)
	case errors.Is(err, hypervisor.ErrReleaseRefused):
		return operation.Refuse(operation.WrongState, "%s: %v", n.Name, err)
	case err != nil:
		return err
	}
	r.changes.Digest = q.Digest
	return r.detachedNIC(ctx, n)
}

// detachedNIC removes what the host had for a card that is gone, and notes that.
func (r *live) detachedNIC(ctx context.Context, n config.NIC) error {
	_, started := r.started.NIC(n.Name)
	r.changes.DetachedNIC(n.Name, started)
	// First that it has not got the card, so that no reload gives it filters again.
	if err := errors.Join(r.save(), r.claimCards()); err != nil {
		return err
	}
	network := slices.DeleteFunc(slices.Clone(r.plan.Sidecars), func(s hypervisor.Sidecar) bool { return s.Card != n.Name })
	return errors.Join(r.unplugHot(n), r.hide(ctx, n.Key(), n.VhostUser), r.stopSidecars(ctx, network), r.removeLeft([]config.NIC{n}))
}

// unplugHot removes what the host has for one card.
func (a app) unplugHot(n config.NIC) error {
	cards := []config.NIC{n}
	if !onBridge(n) {
		return a.unplug(cards)
	}
	unlock, err := a.lockNetworks(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	return errors.Join(a.unplug(cards), a.removeNames(cards), a.changeFilters(func(f map[string]config.Filter) error {
		delete(f, n.Name)
		return nil
	}))
}

// setNIC sets the link and the limits of a card.
func setNIC(ctx context.Context, a app, request json.RawMessage, _ *operation.Reporter) (any, error) {
	q, r, err := a.nicRequest(ctx, request)
	if err != nil {
		return nil, err
	}
	defer r.close()
	n, err := r.mustFindNIC(q.NIC.Name)
	if err != nil {
		return nil, err
	}
	n = n.WithSettings(q.NIC)
	if (n.RateIn != 0 || n.RateOut != 0) && !onBridge(n) {
		return nil, operation.Refuse(operation.WrongState, "%s: only a card on a bridge (network or bridge) can be limited", n.Key())
	}
	detail := nicOperation{NIC: n, Digest: q.Digest}
	o, err := operation.Begin(a.paths, a.vm, hypervisor.NICSet, detail)
	if err != nil {
		return nil, err
	}
	if err := r.adjust(ctx, n); err != nil {
		_, undo := r.settle(ctx, o, func(ctx context.Context) (bool, error) { return r.agreeOnNIC(ctx, detail) })
		return nil, asOperation(errors.Join(err, undo))
	}
	r.changes.SetNIC(n, r.started, q.Overridden)
	r.changes.Digest = q.Digest
	if err := r.save(); err != nil {
		return nil, fmt.Errorf("it is set, which could not be noted: %w", err)
	}
	return nil, o.End()
}

// adjust has a card that is there be as n says.
func (r *live) adjust(ctx context.Context, n config.NIC) error {
	if onBridge(n) || n.Macvtap != "" {
		if err := netsetup.Adjust(netsetup.Card(r.vm, n, nil, netsetup.Lease{}, netsetup.HostBridge{})); err != nil {
			return err
		}
	}
	return r.control.SetLink(ctx, n.Name, n.Link != "down")
}

func mendNIC(ctx context.Context, a app, record operation.Record) error {
	var detail nicOperation
	if err := json.Unmarshal(record.Detail, &detail); err != nil {
		return err
	}
	_, err := a.agreeOnNIC(ctx, detail)
	return err
}

// agreeOnNIC has what is noted, and what the host has, agree with what the machine
// has, and says whether it has the card. A card that the guest has seen stays with
// it; of one that it has not, or not any more, nothing is left.
func (a app) agreeOnNIC(ctx context.Context, detail nicOperation) (there bool, err error) {
	r, err := a.openRunning(ctx)
	if refused, ok := errors.AsType[*operation.Error](err); ok {
		a.info("%s, so only the host's part is to mend", refused.Text)
		cards := []config.NIC{detail.NIC}
		return false, errors.Join(a.unplug(cards), a.removeNames(cards), a.hide(ctx, detail.NIC.Key(), detail.NIC.VhostUser), a.removeLeft(cards))
	}
	if err != nil {
		return false, err
	}
	defer r.close()
	plugged, err := r.control.PluggedNICs(ctx)
	if err != nil {
		return false, err
	}
	n, known := r.findNIC(detail.NIC.Name)
	if !known {
		n = detail.NIC
	}
	there = slices.Contains(plugged, n.Name)
	if there != known {
		r.changes.Digest = detail.Digest
	}
	if there {
		if !known {
			r.changes.AttachedNIC(n)
		}
		if err := r.adjust(ctx, n); err != nil { // somebody has removed its interface
			r.warn("%s: %v", n.Key(), err)
		}
		return true, errors.Join(r.save(), r.claimCards())
	}
	if err := r.control.DetachNIC(ctx, r.hotNIC(n)); err != nil {
		return false, err
	}
	return false, r.detachedNIC(ctx, n)
}

// unplugChanges removes what the host has for cards that were plugged in while the
// machine ran.
func (a app) unplugChanges() error {
	changes, err := hypervisor.ReadChanges(a.paths, a.vm)
	return errors.Join(err, a.unplug(changes.NICs), a.removeNames(changes.NICs), a.removeLeft(changes.NICs))
}

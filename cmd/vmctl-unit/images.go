package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/image"
	"github.com/vmctl/vmctl/units/bus"
)

// images says which of the new files are children of stored images, pulls the
// images that are missing, and keeps them all as they are until release is
// called. A disk that stands on no image any more, or on another one than the
// definition says, is dealt with here too.
func (a app) images(ctx context.Context, m *config.Machine, plan *hypervisor.Plan) (children []hypervisor.NewFile, release func(), err error) {
	var problems []config.Problem
	for _, n := range plan.New {
		needed, problem := a.standsOn(m, n)
		if problem != nil {
			problems = append(problems, *problem)
		} else if needed {
			children = append(children, n)
		}
	}
	if len(problems) > 0 {
		return nil, nil, refuseProblems(problems)
	}
	if len(children) == 0 {
		return nil, func() {}, nil
	}
	store := image.Store{Paths: a.paths}
	release, err = a.hold(ctx, store, m, children)
	if err != nil {
		return nil, nil, err
	}
	for i, n := range children {
		found, err := store.Get(n.Image)
		if err == nil {
			err = store.Check(found)
		}
		if err != nil {
			problems = append(problems, m.Problem(n.Key+".image", "the stored image %s: %v", n.Image, err))
			continue
		}
		if n.Size > 0 && n.Size < found.VirtualSize {
			problems = append(problems, m.Problem(n.Key+".size", "want at least %s, the size of the image %s, got %s",
				config.Size(found.VirtualSize), n.Image, config.Size(n.Size)))
		}
		children[i].BackingFormat = found.Format
	}
	if len(problems) > 0 {
		release()
		return nil, nil, refuseProblems(problems)
	}
	return children, release, nil
}

// hold sees to it that the images of all children are stored, and keeps them.
// One that is deleted between its pull and the moment when it is held is pulled
// again.
func (a app) hold(ctx context.Context, store image.Store, m *config.Machine, children []hypervisor.NewFile) (release func(), err error) {
	for try := 1; ; try++ {
		for _, n := range children {
			if err := a.pull(ctx, store, m, n); err != nil {
				return nil, err
			}
		}
		if release, err = store.Hold(); err != nil {
			return nil, err
		}
		missing := slices.ContainsFunc(children, func(n hypervisor.NewFile) bool {
			_, err := store.Get(n.Image)
			return errors.Is(err, fs.ErrNotExist)
		})
		if !missing || try == maxPulls {
			return release, nil
		}
		release()
	}
}

// standsOn says whether a new file needs a stored image: it stands on one, or
// will begin with one. The problem is that its disk is there already and stands
// on something else, so that what is on it would be unreadable, or is there in
// another format, so that it would seem lost.
func (a app) standsOn(m *config.Machine, n hypervisor.NewFile) (bool, *config.Problem) {
	refuse := func(format string, args ...any) (bool, *config.Problem) {
		key := n.Key
		if n.Image != "" {
			key += ".image"
		}
		p := m.Problem(key, format, args...)
		return false, &p
	}
	if n.Ephemeral || n.Copy != "" {
		return n.Image != "", nil
	}
	f, err := os.Open(n.Path)
	if errors.Is(err, fs.ErrNotExist) {
		if p := disk.InOtherFormat(m, n); p != nil {
			return false, p
		}
		return n.Image != "", nil
	}
	if err != nil {
		return refuse("%v", err)
	}
	defer f.Close()
	if n.Format == disk.Raw {
		return false, nil // begins with an image, and does not need it any more
	}
	h, err := disk.ReadHeader(f)
	switch {
	case err != nil:
		return refuse("%s: %v", n.Path, err)
	case h.Backing == n.Backing:
		return n.Image != "", nil
	case h.Backing == "":
		a.info("%s stands on no image, so %s is of no account", n.Path, n.Image)
		return false, nil
	case n.Image == "":
		return refuse("the disk is there already and stands on %s, but the definition names no image: name it again, or move %s away for a new disk", h.Backing, n.Path)
	default:
		return refuse("the disk is there already and stands on %s, not on %s: name that image again, or move %s away for a new disk", h.Backing, n.Backing, n.Path)
	}
}

// needed are the files of a plan without the images that nothing stands on.
func needed(plan *hypervisor.Plan, children []hypervisor.NewFile) []hypervisor.File {
	stands := map[string]bool{}
	for _, n := range children {
		stands[n.Key+".image"] = true
	}
	images := map[string]bool{}
	for _, n := range plan.New {
		images[n.Key+".image"] = n.Image != ""
	}
	var out []hypervisor.File
	for _, f := range plan.Files {
		if !images[f.Key] || stands[f.Key] {
			out = append(out, f)
		}
	}
	return out
}

// pull has an image pulled that is missing and can be had.
func (a app) pull(ctx context.Context, store image.Store, m *config.Machine, n hypervisor.NewFile) error {
	_, err := store.Get(n.Image)
	if !errors.Is(err, fs.ErrNotExist) {
		return nil // what is wrong with it is found later
	}
	sources, problems := config.LoadImages(a.paths)
	for _, p := range problems {
		a.warn("%v", p)
	}
	for _, s := range sources {
		if s.Name != n.Image {
			continue
		}
		if err := a.pullByUnit(ctx, n.Image); err != nil {
			return fmt.Errorf("%s.image: pull %s: %w", n.Key, n.Image, err)
		}
		return nil
	}
	return refuseProblems([]config.Problem{m.Problem(n.Key+".image",
		"no image is stored by the name %s, and it is none that can be pulled: vmctl image import FILE --name %s, or vmctl image pull URL --name %s", n.Image, n.Image, n.Image)})
}

// maxPulls is how often an image is pulled that somebody deletes each time.
const maxPulls = 3

// pullByUnit starts the unit that pulls an image, and waits for it, however long
// it takes. It is done there and not here since a machine without a way to the
// network has none here either: systemd filters the packets of the whole unit.
// And machines that start at once share it.
func (a app) pullByUnit(ctx context.Context, name string) error {
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return err
	}
	defer conn.Close()
	unit := config.ImageUnit(name)
	a.notify("STATUS=Pulling the image " + name)
	job, err := conn.Begin(ctx, bus.Start, unit)
	if err != nil {
		return err
	}
	watched, end := context.WithCancel(ctx)
	told := make(chan struct{})
	go func() {
		defer close(told)
		// Without it the wait goes on, only silently.
		_ = conn.WatchUnit(watched, unit, func(s bus.State) {
			if s.StatusText != "" {
				a.notify("STATUS=Image " + oneLine(s.StatusText))
			}
		})
	}()
	err = a.patiently(func() error { return job.Wait(ctx) })
	end()
	<-told
	return a.whyNot(ctx, conn, unit, err)
}

// whyNot adds to the error of a pull what its unit said last.
func (a app) whyNot(ctx context.Context, conn *bus.Conn, unit string, err error) error {
	if err == nil {
		return nil
	}
	p, _ := conn.Properties(ctx, unit)
	said := strings.TrimSpace(p.StatusText)
	return errors.New(cmp.Or(said, err.Error()) + " (journalctl -u " + unit + " has more)")
}

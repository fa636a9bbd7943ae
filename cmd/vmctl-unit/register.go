package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/units/bus"
)

const registerTimeout = 5 * time.Second

// started is the command after the start.
func (a app) started(ctx context.Context) error {
	defer a.startedInTime()
	record, err := readRecord(a.paths, a.vm)
	if err != nil {
		return err
	}
	if record.Incoming != nil {
		dir, err := openRuntimeDir(a.paths, a.vm)
		if err != nil {
			return err
		}
		defer dir.Close()
		if err := a.finishLoad(ctx, dir, record); err != nil {
			return err
		}
		if !record.Incoming.Paused {
			a.setClock(ctx)
		}
	}
	if group := record.Machine.Console.Group; group != "" {
		if err := a.admit(group); err != nil {
			a.warn("console.group: %v", err)
		}
	}
	if err := a.register(ctx); err != nil {
		a.warn("machined: %v", err)
	}
	return nil
}

// admit lets a group of the host sit down at the console, and no other; "" for none.
func (a app) admit(group string) error {
	if a.paths.User {
		return nil // nobody else gets into the user's directories
	}
	dir, err := openRuntimeDir(a.paths, a.vm)
	if err != nil {
		return err
	}
	defer dir.Close()
	socket := filepath.Base(a.paths.ConsoleSocket(a.vm))
	if group == "" {
		if err := access.Dismiss(dir.Root, socket, dir.gid); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil // nobody sits down where nothing is
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return err
	}
	return access.Admit(dir.Root, socket, gid)
}

// register makes the machine known to machined, with the monitor as its leader.
// A host without machined is none the worse.
func (a app) register(ctx context.Context) error {
	if a.paths.User {
		return nil // the user's machined came with systemd 259; not asked yet
	}
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	dir, err := openRuntimeDir(a.paths, a.vm)
	if err != nil {
		return err
	}
	defer dir.Close()
	record, err := readRecord(a.paths, a.vm)
	if err != nil {
		return err
	}
	id, err := hex.DecodeString(strings.ReplaceAll(string(record.Machine.UUID), "-", ""))
	if err != nil || len(id) != 16 {
		return fmt.Errorf("register: not a UUID: %s", record.Machine.UUID)
	}
	leader, err := a.monitorProcess(dir)
	if err != nil {
		return err
	}
	defer leader.close()
	conn, err := bus.Dial(ctx, false)
	if err != nil {
		return nil // no D-Bus, no machined
	}
	defer conn.Close()
	err = conn.RegisterMachine(ctx, bus.Machine{Name: a.vm, UUID: [16]byte(id), Leader: leader.pid, VsockCID: record.VsockCID()})
	if absent(err) {
		return nil
	}
	return err
}

// absent says whether an error of D-Bus means that machined is not installed,
// or masked.
func absent(err error) bool {
	remote, ok := errors.AsType[dbus.Error](err)
	if !ok {
		return false
	}
	switch remote.Name {
	case "org.freedesktop.DBus.Error.ServiceUnknown",
		"org.freedesktop.DBus.Error.NameHasNoOwner",
		"org.freedesktop.systemd1.NoSuchUnit",
		"org.freedesktop.systemd1.UnitMasked":
		return true
	}
	return strings.HasPrefix(remote.Name, "org.freedesktop.DBus.Error.Spawn.")
}

package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/qemu"
)

// saver is the connection over which long things are done.
func (m *machine) saver() hypervisor.StateSaver {
	m.t.Helper()
	c, err := qemu.QEMU{}.Control(m.t.Context(), m.paths.JobSocket("vm"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c.(hypervisor.StateSaver)
}

// stream is a pipe of which the reader's end is given to read, which returns
// how much it has read.
func stream(t *testing.T, read func(*os.File) int64) (w *os.File, end func() int64) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	n := make(chan int64, 1)
	go func() {
		defer r.Close()
		n <- read(r)
	}()
	return w, func() int64 {
		w.Close()
		return <-n
	}
}

func readAll(r *os.File) int64 {
	n, _ := io.Copy(io.Discard, r)
	return n
}

// save saves the state to nowhere, and checks that there is some.
func (m *machine) save(c hypervisor.StateSaver) {
	m.t.Helper()
	w, end := stream(m.t, readAll)
	err := c.SaveState(m.t.Context(), w, nil, nil, nil)
	if n := end(); err != nil || n < 100<<10 {
		m.t.Fatalf("%v after %d bytes", err, n)
	}
}

func TestSaveState(t *testing.T) {
	m := start(t, "[disk.a]\nsize = \"1M\"\n")
	m.want(hypervisor.Started, "")
	short, c := m.control(), m.saver()

	format, err := c.StateFormat(t.Context())
	if err != nil || !strings.HasPrefix(format.MachineType, "pc-q35-") || !strings.Contains(format.Version, ".") {
		t.Errorf("got %+v, %v", format, err)
	}

	var total int64
	w, end := stream(t, readAll)
	err = c.SaveState(t.Context(), w, nil, func(_, n int64) { total = n }, func(ctx context.Context) error {
		m.status(short, hypervisor.StatusPaused)
		return nil
	})
	if n := end(); err != nil || n < 100<<10 {
		t.Fatalf("%v after %d bytes", err, n)
	}
	if total < 64<<20 {
		t.Errorf("got %d bytes of memory", total)
	}
	m.want(hypervisor.Paused, "")
	m.status(short, hypervisor.StatusPaused)
	m.do(func(ctx context.Context) error { return c.EndSave(ctx, false) })
	m.want(hypervisor.Resumed, "")
	m.do(func(ctx context.Context) error { return c.EndSave(ctx, false) }) // there is nothing to end
	m.status(short, hypervisor.StatusRunning)

	m.save(c) // once more
	m.want(hypervisor.Paused, "")
	m.do(short.Quit)
	m.want(hypervisor.ShutDown, "host")
}

// TestSaveStateOfAPausedMachine leaves it paused, and able to be saved again.
func TestSaveStateOfAPausedMachine(t *testing.T) {
	m := start(t, "")
	m.want(hypervisor.Started, "")
	short, c := m.control(), m.saver()
	m.do(short.Pause)
	for range 2 {
		m.save(c)
		m.do(func(ctx context.Context) error { return c.EndSave(ctx, true) })
		m.status(short, hypervisor.StatusPaused)
	}
	m.do(short.Resume)
	m.status(short, hypervisor.StatusRunning)
}

// TestSaveStateThatFails leaves the guest running each time.
func TestSaveStateThatFails(t *testing.T) {
	m := start(t, "")
	m.want(hypervisor.Started, "")
	short, c := m.control(), m.saver()
	broken := errors.New("no snapshot could be made")
	for name, test := range map[string]struct {
		read   func(*os.File) int64
		atStop func(context.CancelFunc) error
		want   error // nil: any
	}{
		"reader that ends": {read: func(r *os.File) int64 {
			n, _ := io.CopyN(io.Discard, r, 10<<10)
			return n
		}},
		"with its CPUs stopped": {readAll, func(context.CancelFunc) error { return broken }, broken},
		"interrupted":           {readAll, func(cancel context.CancelFunc) error { cancel(); return t.Context().Err() }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			w, end := stream(t, test.read)
			err := c.SaveState(ctx, w, nil, nil, func(ctx context.Context) error {
				if test.atStop == nil {
					return nil
				}
				if err := test.atStop(cancel); err != nil {
					return err
				}
				return ctx.Err()
			})
			end()
			if err == nil || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %v", err)
			}
			m.status(short, hypervisor.StatusRunning)
		})
	}
	m.save(c)
}

// TestSaveStateThatStandsStill is given up, and the guest goes on once QEMU has noticed.
func TestSaveStateThatStandsStill(t *testing.T) {
	m := start(t, "")
	m.want(hypervisor.Started, "")
	short, c := m.control(), m.saver()
	qemu.SetStall(c, time.Second)
	w, end := stream(t, func(r *os.File) int64 {
		time.Sleep(3 * time.Second)
		return readAll(r)
	})
	err := c.SaveState(t.Context(), w, nil, nil, nil)
	end()
	if err == nil || !strings.HasPrefix(err.Error(), "QEMU has not gone on to write its state for 1s: it is active, with ") {
		t.Errorf("got %v", err)
	}
	m.status(short, hypervisor.StatusRunning)
	m.save(c)
}

// TestSaveStateThatIsCutOff is taken back by another, as after a kill -9.
func TestSaveStateThatIsCutOff(t *testing.T) {
	m := start(t, "")
	m.want(hypervisor.Started, "")
	c := m.saver()
	w, end := stream(t, readAll)
	if c.SaveState(t.Context(), w, nil, nil, func(context.Context) error { return c.(hypervisor.Control).Close() }) == nil {
		t.Fatal("saved without a connection")
	}
	m.want(hypervisor.Paused, "")
	c = m.saver()
	m.do(func(ctx context.Context) error { return c.EndSave(ctx, false) })
	m.want(hypervisor.Resumed, "")
	end()
	m.save(c)
}

// TestSaveStateOfABusyMachine ends, although the guest changes its memory
// faster than it is read: a boot sector that counts in every segment below
// 512 KiB.
func TestSaveStateOfABusyMachine(t *testing.T) {
	sector := make([]byte, 512)
	copy(sector, []byte{
		0xb8, 0x00, 0x10, // mov ax, 0x1000
		0x8e, 0xd8, // again: mov ds, ax
		0x31, 0xdb, // xor bx, bx
		0xfe, 0x07, // next: inc byte [bx]
		0x81, 0xc3, 0x00, 0x01, // add bx, 0x100
		0x75, 0xf8, // jnz next
		0x05, 0x00, 0x10, // add ax, 0x1000
		0x3d, 0x00, 0x80, // cmp ax, 0x8000
		0x72, 0xec, // jb again
		0xeb, 0xe7, // jmp 0
	})
	copy(sector[510:], []byte{0x55, 0xaa})
	image := filepath.Join(t.TempDir(), "boot")
	if err := os.WriteFile(image, append(sector, make([]byte, 1<<20-512)...), 0o600); err != nil {
		t.Fatal(err)
	}
	m := start(t, "[disk.a]\npath = \""+image+"\"\nformat = \"raw\"\n")
	m.want(hypervisor.Started, "")
	time.Sleep(2 * time.Second) // the firmware; without it the test says less, but no wrong
	w, end := stream(t, func(r *os.File) (n int64) {
		p := make([]byte, 64<<10)
		for {
			k, err := r.Read(p)
			if n += int64(k); err != nil {
				return n
			}
			time.Sleep(time.Duration(k) * 4 * time.Microsecond) // 250 kB/s
		}
	})
	err := m.saver().SaveState(t.Context(), w, nil, nil, nil)
	if n := end(); err != nil || n < 512<<10 {
		t.Errorf("%v after %d bytes", err, n)
	}
}

// TestLoadState has another QEMU go on from what one has saved.
func TestLoadState(t *testing.T) {
	const definition = "[disk.a]\nsize = \"1M\"\n[cloud_init]\nhostname = \"x\"\n"
	for _, paused := range []bool{false, true} {
		m := start(t, definition)
		m.want(hypervisor.Started, "")
		if paused {
			m.do(m.control().Pause)
		}
		c := m.saver()
		format, err := c.StateFormat(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var state bytes.Buffer
		w, end := stream(t, func(r *os.File) int64 {
			n, _ := state.ReadFrom(r)
			return n
		})
		if err := c.SaveState(t.Context(), w, nil, nil, nil); err != nil {
			t.Fatal(err)
		}
		end()

		m = startFrom(t, definition, state.Bytes(), format, nil)
		m.want(hypervisor.Loading, "")
		short := m.control()
		for {
			s, err := short.Status(t.Context())
			if err != nil {
				t.Fatalf("%v: %s", err, m.stderr)
			}
			if s == hypervisor.StatusPaused {
				break // and not running
			}
			if s != hypervisor.StatusLoading {
				t.Fatalf("got %s", s)
			}
		}
		m.do(short.Resume)
		m.want(hypervisor.Started, "")
		m.status(short, hypervisor.StatusRunning)
		m.save(m.saver()) // once more

		// What is damaged is noticed.
		m = startFrom(t, definition, state.Bytes()[:state.Len()/2], format, nil)
		if err := <-m.exited; err == nil || !strings.Contains(m.stderr.String(), "load of migration failed") {
			t.Errorf("%v: %s", err, m.stderr)
		}
	}
}

// TestCheckState refuses what was plugged in or taken out.
func TestCheckState(t *testing.T) {
	m := start(t, "[cloud_init]\nhostname = \"x\"\n")
	m.want(hypervisor.Started, "")
	c := m.saver()
	argv := m.cmd.Args
	if err := c.CheckState(t.Context(), argv); err != nil {
		t.Error(err)
	}
	for want, argv := range map[string][]string{
		"the device extra was taken out": append(slices.Clone(argv), "-device", "usb-kbd,id=extra"),
		"the device seed was plugged in": slices.DeleteFunc(slices.Clone(argv), func(s string) bool { return strings.Contains(s, "id=seed") }),
	} {
		if err := c.CheckState(t.Context(), argv); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestSaveStateThatCannotBe(t *testing.T) {
	m := start(t, "[disk.a]\nsize = \"1M\"\nbus = \"nvme\"\n")
	m.want(hypervisor.Started, "")
	c := m.saver()
	w, end := stream(t, readAll)
	err := c.SaveState(t.Context(), w, nil, nil, nil)
	end()
	if e, ok := errors.AsType[*hypervisor.UnsavableError](err); !ok || !slices.ContainsFunc(e.Reasons, func(s string) bool { return strings.Contains(s, "nvme") }) {
		t.Errorf("got %v", err)
	}
	m.status(m.control(), hypervisor.StatusRunning)
}

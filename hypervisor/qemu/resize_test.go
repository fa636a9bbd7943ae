package qemu_test

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
)

const growing = "cpus = 1\ncpu.max = 3\nmemory_options.max = \"192M\"\n"

// TestResize changes the CPUs and the memory of a machine without a guest that would
// take them, saves it, and goes on from that with the same.
func TestResize(t *testing.T) {
	for _, board := range []string{"q35", "pc"} {
		t.Run(board, func(t *testing.T) {
			definition := growing + "machine = \"" + board + "\"\n"
			m := start(t, definition)
			m.want(hypervisor.Started, "")
			c := m.saver()
			r := c.(hypervisor.Resizer)
			sizes := func() hypervisor.Sizes {
				t.Helper()
				s, err := r.Sizes(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			const mib = 1 << 20
			before := hypervisor.Sizes{CPUs: 1, MaxCPUs: 3, Memory: 64 * mib, TakenMemory: 64 * mib,
				StartMemory: 64 * mib, MaxMemory: 192 * mib, Step: 2 * mib, Balloon: 64 * mib}
			if got := sizes(); got != before {
				t.Errorf("got %+v", got)
			}
			if err := r.SetCPUs(t.Context(), 2); err != nil {
				t.Error(err)
			}
			if err := r.SetMemory(t.Context(), 128*mib); err != nil {
				t.Error(err)
			}
			if got := sizes(); got.CPUs != 2 || got.Memory != 128*mib || got.TakenMemory != 64*mib {
				t.Errorf("got %+v", got)
			}
			for _, err := range []error{r.SetCPUs(t.Context(), 4), r.SetMemory(t.Context(), 32*mib), r.SetMemory(t.Context(), 256*mib), r.SetMemory(t.Context(), 65*mib)} {
				if _, ok := errors.AsType[*hypervisor.RestartError](err); !ok {
					t.Errorf("got %v", err)
				}
			}
			// Nobody is there who would let go of it, and older programs are not asked.
			err := r.SetCPUs(t.Context(), 1)
			if _, older := errors.AsType[*hypervisor.RestartError](err); !older && !errors.Is(err, hypervisor.ErrReleaseRefused) {
				t.Errorf("got %v", err)
			}

			argv, err := c.StateArgv(t.Context(), m.cmd.Args)
			if err != nil {
				t.Fatal(err)
			}
			more := slices.Clone(argv[len(m.cmd.Args):])
			if len(more) != 2 || more[0] != "-device" || !strings.Contains(more[1], "id=cpu-1,") {
				t.Fatalf("got %q", more)
			}
			if again, err := c.StateArgv(t.Context(), argv); err != nil || !slices.Equal(again, argv) {
				t.Errorf("a second time: %q, %v", again, err)
			}
			if err := c.CheckState(t.Context(), argv); err != nil {
				t.Error(err)
			}
			format, err := c.StateFormat(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var state []byte
			w, end := stream(t, func(r *os.File) int64 { state, _ = io.ReadAll(r); return int64(len(state)) })
			err = c.SaveState(t.Context(), w, nil, nil, nil)
			if end(); err != nil {
				t.Fatal(err)
			}

			m = startFrom(t, definition, state, format, func(argv []string) []string { return append(argv, more...) })
			m.want(hypervisor.Loading, "")
			c = m.saver()
			r = c.(hypervisor.Resizer)
			if got := sizes(); got.CPUs != 2 || got.MaxCPUs != 3 || got.StartMemory != 64*mib {
				t.Errorf("loaded: %+v", got)
			}
			for end := time.Now().Add(time.Minute); sizes().Memory != 128*mib; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("loaded: %+v", sizes())
				}
			}
			if err := c.CheckState(t.Context(), argv); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRoomForOneCPU(t *testing.T) {
	m := start(t, "cpus = 1\n")
	m.want(hypervisor.Started, "")
	if err := m.saver().(hypervisor.Resizer).SetCPUs(t.Context(), 2); err == nil || err.Error() != "it was started with room for 1 CPU (cpu.max)" {
		t.Errorf("got %v", err)
	}
}

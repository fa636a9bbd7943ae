package hypervisor

import "testing"

func TestChooseIO(t *testing.T) {
	works, no := DirectIO{Works: true}, DirectIO{Unwise: "its file system cannot do direct I/O"}
	unwise := DirectIO{Works: true, Unwise: "btrfs finds its checksums wrong"}
	all, older, none := Engines{IOURing: true, Native: true}, Engines{Native: true}, Engines{}
	for _, test := range []struct {
		cache, aio string
		direct     DirectIO
		engines    Engines
		want       string
	}{
		{"auto", "auto", works, all, "direct I/O by io_uring"},
		{"auto", "auto", works, older, "direct I/O by native"},
		{"auto", "auto", works, none, "direct I/O by threads"},
		{"auto", "auto", no, all, "the host's page cache by threads (its file system cannot do direct I/O)"},
		{"auto", "auto", unwise, all, "the host's page cache by threads (btrfs finds its checksums wrong)"},
		{"auto", "threads", works, all, "direct I/O by threads"},
		{"auto", "io_uring", no, all, "the host's page cache by io_uring (its file system cannot do direct I/O)"},
		{"none", "auto", works, all, "direct I/O by io_uring"},
		{"none", "auto", unwise, all, "direct I/O by io_uring"},
		{"directsync", "native", works, all, "direct I/O by native"},
		{"writeback", "auto", works, all, "the host's page cache by threads"},
		{"writethrough", "io_uring", works, all, "the host's page cache by io_uring"},
		{"unsafe", "auto", works, all, "the host's page cache by threads"},
		{"none", "auto", no, all, `disk.root.cache: "none" needs direct I/O, /srv/a: its file system cannot do direct I/O; use "auto" or "writeback"`},
		{"auto", "io_uring", works, older, `disk.root.aio: "io_uring" does not work here; use "auto" or "native" or "threads"`},
		{"none", "native", works, none, `disk.root.aio: "native" does not work here; use "auto" or "threads"`},
	} {
		got, err := ChooseIO(DiskFile{Disk: "root", Path: "/srv/a", Cache: test.cache, AIO: test.aio}, test.direct, test.engines)
		text := got.String()
		if err != nil {
			text = err.Error()
		}
		if text != test.want {
			t.Errorf("cache %s, aio %s, %+v, %+v: got %s, want %s", test.cache, test.aio, test.direct, test.engines, text, test.want)
		}
	}
}

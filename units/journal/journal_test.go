package journal

import (
	"os"
	"os/user"
	"strings"
	"testing"
	"time"
)

const at = "1700000000000001"

func TestEvent(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	entry := func(fields ...string) Entry {
		e := Entry{"__REALTIME_TIMESTAMP": at}
		for _, f := range fields {
			key, value, _ := strings.Cut(f, "=")
			e[key] = value
		}
		return e
	}
	id := func(k Kind) string { return "MESSAGE_ID=" + ID(k) }
	ended := []string{id(Ended), "VMCTL_VM=web", "VMCTL_DETAIL=crashed: x"}
	operation := []string{id(Operation), "VMCTL_VM=web", "VMCTL_OPERATION=stop", "VMCTL_USEC=1500000", "_UID=" + me.Uid}
	with := func(some []string, more ...string) Entry {
		return entry(append(append([]string{}, some...), more...)...)
	}
	time := time.UnixMicro(1700000000000001)
	for name, test := range map[string]struct {
		entry Entry
		uid   string
		want  Event // with the zero time: none
	}{
		"systemd's":                   {entry(id(Started), "_PID=1", "UNIT=vm@web.service", "JOB_RESULT=done"), "", Event{Time: time, VM: "web", Kind: Started}},
		"systemd's failure":           {entry(id(Failed), "_PID=1", "UNIT=vm@web.service", "UNIT_RESULT=signal"), "", Event{Time: time, VM: "web", Kind: Failed, Detail: "signal"}},
		"systemd's of another unit":   {entry(id(Started), "_PID=1", "UNIT=vm-image@web.service"), "", Event{}},
		"not systemd's":               {entry(id(Started), "_PID=10", "UNIT=vm@web.service"), "", Event{}},
		"a user's":                    {entry(id(Started), "_PID=9", "_UID=7", "_SYSTEMD_USER_UNIT=init.scope", "USER_UNIT=vm@web.service"), "7", Event{Time: time, VM: "web", Kind: Started}},
		"a user's, of the system":     {entry(id(Started), "_PID=9", "_UID=7", "_SYSTEMD_USER_UNIT=init.scope", "USER_UNIT=vm@web.service", "UNIT=vm@web.service"), "", Event{}},
		"root's":                      {with(ended, "_UID=0"), "", Event{Time: time, VM: "web", Kind: Ended, Detail: "crashed: x"}},
		"the machine's own":           {with(ended, "_UID=9", "_SYSTEMD_UNIT=vm@web.service"), "", Event{Time: time, VM: "web", Kind: Ended, Detail: "crashed: x"}},
		"another machine's":           {with(ended, "_UID=9", "_SYSTEMD_UNIT=vm@db.service"), "", Event{}},
		"anybody's":                   {with(ended, "_UID=1000"), "", Event{}},
		"an operation":                {with(operation, "VMCTL_FAILED=false", "OBJECT_SYSTEMD_UNIT=vm@web.service"), "", Event{Time: time, VM: "web", Kind: Operation, Operation: "stop", User: me.Username, Took: 1500 * 1e6, Seconds: 1.5}},
		"a user's operation":          {with(operation, "OBJECT_SYSTEMD_USER_UNIT=vm@web.service"), me.Uid, Event{Time: time, VM: "web", Kind: Operation, Operation: "stop", User: me.Username, Took: 1500 * 1e6, Seconds: 1.5}},
		"another's user's operation":  {with(operation, "OBJECT_SYSTEMD_USER_UNIT=vm@web.service"), "77777", Event{}},
		"a user's in the system's":    {with(operation, "OBJECT_SYSTEMD_USER_UNIT=vm@web.service"), "", Event{}},
		"no machine":                  {entry(id(Ended), "_UID=0", "VMCTL_VM=../x"), "", Event{}},
		"not of ours":                 {entry("MESSAGE_ID=0123", "_UID=0", "VMCTL_VM=web"), "", Event{}},
		"a field twice":               {Entry{"__REALTIME_TIMESTAMP": at, "MESSAGE_ID": ID(Ended), "_UID": "0", "VMCTL_VM": []any{"web", "db"}}, "", Event{}},
		"an operation of no machine":  {with(operation[:1], "VMCTL_OPERATION=stop"), "", Event{}},
		"a time that is not a number": {Entry{"__REALTIME_TIMESTAMP": "x", "MESSAGE_ID": ID(Ended), "_UID": "0", "VMCTL_VM": "web"}, "", Event{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := test.entry.Event(test.uid)
			if ok != !test.want.Time.IsZero() {
				t.Fatalf("%v: %+v", ok, got)
			}
			if ok && got != test.want {
				t.Errorf("got %+v\nwant %+v", got, test.want)
			}
		})
	}
}

// Each kind of ours has its text, and no other has one.
func TestCatalog(t *testing.T) {
	b, err := os.ReadFile("../../packaging/catalog/vmctl.catalog")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "-- "); ok {
			texts[id] = true
			if ids[id] == "" && id != callID {
				t.Errorf("%s is no kind", id)
			}
		}
	}
	for _, k := range []Kind{Paused, Resumed, Rebooted, Panicked, Watchdog, DiskError, ShutDown, Lost, Ended, Operation} {
		if !texts[ID(k)] {
			t.Errorf("%s has no text", k)
		}
	}
}

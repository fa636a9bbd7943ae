// Package journal keeps and reads what happens to machines: entries of systemd's
// journal with a MESSAGE_ID= for each kind (see packaging/catalog), ours and those
// that systemd itself writes of a unit. The journal's order is that in which things
// happened, and whoever reads slowly misses nothing.
//
// It knows kinds, fields and whom to believe; what an event means for a machine is
// the caller's.
package journal

import (
	"cmp"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/vmctl/vmctl/config"
)

// Kind is what has happened.
type Kind string

// The first six are systemd's, of the unit.
const (
	Starting   Kind = "starting"
	Started    Kind = "started"
	Stopping   Kind = "stopping"
	Stopped    Kind = "stopped"
	Failed     Kind = "failed"
	Restarting Kind = "restarting" // after a crash, in a while

	Paused    Kind = "paused"
	Resumed   Kind = "resumed"
	Rebooted  Kind = "rebooted"
	Panicked  Kind = "panicked"   // the guest's kernel
	Watchdog  Kind = "watchdog"   // it was not fed
	DiskError Kind = "disk-error" // the detail says which and why
	ShutDown  Kind = "shut-down"  // the guest, or whoever asked the hypervisor
	// The guest agent has opened its channel, or let go of it: the guest says so.
	AgentConnected    Kind = "agent-connected"
	AgentDisconnected Kind = "agent-disconnected"
	Lost              Kind = "lost"      // a program beside the hypervisor has ended; the detail says which
	Ended             Kind = "ended"     // the detail is why
	Operation         Kind = "operation" // somebody had something done
)

// ids are the kinds by the MESSAGE_ID= of their entries: systemd's own are in
// sd-messages.h, the catalog has ours.
var ids = map[string]Kind{
	"7d4958e842da4a758f6c1cdc7b36dcc5": Starting,
	"39f53479d3a045ac8e11786248231fbf": Started,
	"de5b426a63be47a7b6ac3eaac82e2f6f": Stopping,
	"9d1aaa27d60140bd96365438aad20286": Stopped,
	"d9b373ed55a64feb8242e02dbe79a49c": Failed,
	"5eb03494b6584870a536b337290809b3": Restarting,

	"fae206395acf4298a9110942cebddb6d": Paused,
	"7a20cba4938e4a498fef457b854e7a76": Resumed,
	"eeff4c8fd47042ef9198afcbf6640408": Rebooted,
	"5365587df52d4629833df65726f06b74": Panicked,
	"d8af2c7bf10144b7ba158464a4bfcfa7": Watchdog,
	"3e6ac8b519714efd90c3a97bd1e87794": DiskError,
	"94cf8bd55d694a3a9d7432c2a320afde": ShutDown,
	"a1739a0bd7ce4dd5be5ddfbfa6342e46": AgentConnected,
	"07cfe4a28a8240cea59d34ed82c7367d": AgentDisconnected,
	"0ebf3b2dbbd4474b8c1b0ae4a35bb4cb": Lost,
	"3bb129ded60e43c8af9728bd4fd49dd8": Ended,
	"27f5a36912144a4894a7d17a55f5b0b1": Operation,
}

// ID is the MESSAGE_ID= of a kind.
func ID(kind Kind) string {
	for id, k := range ids {
		if k == kind {
			return id
		}
	}
	return ""
}

// Event is one thing that has happened to a machine. The names of its fields in
// JSON stay.
type Event struct {
	Time   time.Time `json:"time"`
	VM     string    `json:"vm"`
	Kind   Kind      `json:"event"`
	Detail string    `json:"detail"`

	Cursor string `json:"-"` // of the entry, for journalctl --after-cursor

	// Of an operation alone. The detail is what came of it: where it failed, why.
	Operation string        `json:"operation,omitempty"`
	Device    string        `json:"device,omitempty"` // key of the disk or card that it was done to
	User      string        `json:"user,omitempty"`   // who had it done; to send, where it is not the sender, for whom
	Took      time.Duration `json:"-"`
	Seconds   float64       `json:"seconds,omitempty"`
	Failed    bool          `json:"failed,omitempty"`
}

// The fields of our entries.
const (
	fieldVM        = "VMCTL_VM"
	fieldDetail    = "VMCTL_DETAIL"
	fieldOperation = "VMCTL_OPERATION"
	fieldDevice    = "VMCTL_DEVICE"
	fieldTook      = "VMCTL_USEC"
	fieldFailed    = "VMCTL_FAILED"
	fieldCaller    = "VMCTL_CALLER"
)

// Send writes an event of ours, of a machine of the system or, with user, of the
// caller's own manager. The error is of the journal: there may be none.
func Send(e Event, user bool, text string, priority journal.Priority) error {
	fields := map[string]string{
		"MESSAGE_ID":        ID(e.Kind),
		"SYSLOG_IDENTIFIER": "vm-" + e.VM,
		fieldVM:             e.VM,
		fieldDetail:         e.Detail,
		// By which journalctl -u and systemctl status of the machine show what root has
		// written elsewhere.
		objectField(user): config.Unit(e.VM),
	}
	if e.Kind == Operation {
		fields[fieldOperation] = e.Operation
		fields[fieldDevice] = e.Device
		fields[fieldTook] = strconv.FormatInt(e.Took.Microseconds(), 10)
		fields[fieldFailed] = strconv.FormatBool(e.Failed)
		if e.User != "" {
			fields[fieldCaller] = e.User
		}
	}
	return journal.Send(text, priority, fields)
}

// objectField is the field for the unit that an entry is about, which the writer
// is not part of (systemd.journal-fields(7)).
func objectField(user bool) string {
	if user {
		return "OBJECT_SYSTEMD_USER_UNIT"
	}
	return "OBJECT_SYSTEMD_UNIT"
}

// Matches are the arguments of journalctl(1) for the entries of some kinds, or of
// all.
func Matches(kinds ...Kind) []string {
	var out []string
	for id, k := range ids {
		if len(kinds) == 0 || slices.Contains(kinds, k) {
			out = append(out, "MESSAGE_ID="+id)
		}
	}
	slices.Sort(out)
	return out
}

// Entry is an entry of the journal as journalctl --output=json prints it. A field
// that occurs twice or is not text is left out by our types: it is none of ours.
type Entry map[string]any

func (e Entry) text(field string) string {
	s, _ := e[field].(string)
	return s
}

// Event reads an entry: of a machine of the system, or of the manager of the user
// with the number uid, where that is not "". It is false where the entry is no
// such event, or written by somebody whose word does not count: of a machine that
// is systemd's, root's (or the user's), and that of the machine's own unit, and of
// an operation that of whoever did it.
func (e Entry) Event(uid string) (Event, bool) {
	out := Event{Kind: ids[e.text("MESSAGE_ID")], Cursor: e.text("__CURSOR")}
	usec, err := strconv.ParseInt(e.text("__REALTIME_TIMESTAMP"), 10, 64)
	if err != nil {
		return out, false
	}
	out.Time = time.UnixMicro(usec)
	switch out.Kind {
	case "":
		return out, false
	case Starting, Started, Stopping, Stopped, Failed, Restarting:
		return e.ofManager(uid, out)
	}
	out.VM, out.Detail = e.text(fieldVM), e.text(fieldDetail)
	if config.CheckName(out.VM) != nil {
		return out, false
	}
	own := config.Unit(out.VM)
	if out.Kind != Operation {
		return out, e.text("_UID") == cmp.Or(uid, "0") || uid == "" && e.text("_SYSTEMD_UNIT") == own
	}
	took, _ := strconv.ParseInt(e.text(fieldTook), 10, 64)
	out.Took = time.Duration(took) * time.Microsecond
	out.Seconds = out.Took.Seconds()
	out.Device = e.text(fieldDevice)
	out.Operation, out.Failed = e.text(fieldOperation), e.text(fieldFailed) == "true"
	out.User = userName(e)
	// Nobody else can do anything in another's name.
	if caller := e.text(fieldCaller); caller != "" && e.text("_UID") == "0" {
		out.User = caller
	}
	return out, out.Operation != "" && e.text(objectField(uid != "")) == own && (uid == "" || e.text("_UID") == uid)
}

// ofManager reads what systemd says of a unit.
func (e Entry) ofManager(uid string, out Event) (Event, bool) {
	field, said := "UNIT", e.text("_PID") == "1"
	if uid != "" {
		field, said = "USER_UNIT", e.text("_UID") == uid && e.text("_SYSTEMD_USER_UNIT") == "init.scope"
	}
	name, template := strings.CutPrefix(e.text(field), "vm@")
	name, service := strings.CutSuffix(name, ".service")
	out.VM = name
	if result := cmp.Or(e.text("UNIT_RESULT"), e.text("JOB_RESULT")); result != "done" {
		out.Detail = result
	}
	return out, said && template && service && config.CheckName(name) == nil
}

// noLogin is _AUDIT_LOGINUID= of who has not logged in.
const noLogin = "4294967295"

// userName is who wrote an entry, with who they had logged in as where that is
// somebody else: by sudo, for one.
func userName(e Entry) string {
	name := nameOf(e.text("_UID"))
	if login := e.text("_AUDIT_LOGINUID"); login != "" && login != noLogin && login != e.text("_UID") {
		return name + " (" + nameOf(login) + ")"
	}
	return name
}

func nameOf(uid string) string {
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return uid
}

package journal

import (
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/vmctl/vmctl/config"
)

// callID is the MESSAGE_ID= of calls. They are no events of machines: what they
// have done to one is told as an [Operation].
const callID = "b1f0a7c9f6d24f7e8a4c3e5d2b9610aa"

// Call is a call of the API.
type Call struct {
	Method  string // "/mvirt.VmService/StartVm"
	Peer    string // who has called
	VM      string // "" where it is of none, or none was found
	Code    string // of gRPC: "OK", "NotFound"
	Message string // where it is not OK, why
	Took    time.Duration
	Look    bool // it changes nothing: the journal of the machine's unit leaves it out
}

// SendCall writes a call that has ended. The error is of the journal.
func SendCall(c Call, text string, priority journal.Priority) error {
	fields := map[string]string{
		"MESSAGE_ID":        callID,
		"SYSLOG_IDENTIFIER": "vmctl-api",
		"VMCTL_METHOD":      c.Method,
		"VMCTL_PEER":        c.Peer,
		"VMCTL_RESULT":      c.Code,
		fieldDetail:         c.Message,
		fieldTook:           strconv.FormatInt(c.Took.Microseconds(), 10),
	}
	if c.VM != "" {
		fields[fieldVM] = c.VM
	}
	if c.VM != "" && !c.Look {
		fields[objectField(false)] = config.Unit(c.VM)
	}
	return journal.Send(text, priority, fields)
}

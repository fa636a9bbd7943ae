package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// settings decodes [unit] or [service].
func (d *decoder) settings(t *tree, section string) []Setting {
	var out []Setting
	for i, name := range t.keys {
		d.enter(name)
		node := t.nodes[i]
		values, ok := node.([]any)
		if !ok {
			values = []any{node}
		}
		if reason := refused(section, name); reason != "" {
			d.mistake("", reason)
			values = nil
		}
		for _, value := range values {
			text, want := settingValue(value)
			if want != "" {
				d.want(want, value)
				break
			}
			out = append(out, Setting{name, text})
		}
		d.leave()
	}
	return out
}

func settingValue(value any) (text, want string) {
	switch v := value.(type) {
	case bool:
		return strconv.FormatBool(v), ""
	case int64:
		return strconv.FormatInt(v, 10), ""
	case string:
		// A backslash at the end would take the next line of the unit along.
		if hasControl(v) || strings.HasSuffix(v, `\`) {
			return "", "a value of one line, with no backslash at its end"
		}
		return v, ""
	}
	return "", "a string, true, false, an integer or a list of them"
}

// refused says why a setting cannot be passed on, "" where it can. Refused are
// those that vmctl's own start, stop and restart stand on, and those that have
// a key of their own.
func refused(section, name string) string {
	letters := strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == ""
	if name == "" || !letters || digits(name[:1]) {
		return "want the name of a setting, such as " + map[string]string{"unit": "OnFailure", "service": "Nice"}[section]
	}
	for _, r := range refusals {
		if r.section == section && slices.Contains(strings.Fields(r.names), name) {
			return "cannot be passed on: " + r.reason
		}
	}
	return ""
}

// refusals are the settings that a definition cannot pass on.
var refusals = []struct{ section, names, reason string }{
	{"unit", "Description", "say description"},
	{"unit", "SourcePath", "vmctl names the definition there"},
	{"unit", "DefaultDependencies", "without them the machine would not be shut down with the host"},
	{"unit", "JobTimeoutSec JobRunningTimeoutSec", "say lifecycle.start_timeout and lifecycle.stop_timeout"},

	{"service", "Type NotifyAccess BusName PIDFile GuessMainPID RemainAfterExit ExitType", "vmctl tells systemd when the machine runs and which process it is"},
	{"service", "ExecStart ExecStartPre ExecStartPost ExecStop ExecStopPost ExecReload", "vmctl starts and stops the machine there"},
	{"service", "KillMode KillSignal RestartKillSignal FinalKillSignal SendSIGKILL SendSIGHUP WatchdogSignal", "the machine is ended by vmctl, first asking the guest"},
	{"service", "User Group DynamicUser PAMName", "each machine has a user of its own, so that none can read another's disks"},
	{"service", "RuntimeDirectory RuntimeDirectoryMode RuntimeDirectoryPreserve", "the machine's sockets are there"},
	{"service", "RootDirectory RootImage RootHash RootVerity", "vmctl's own programs have to be found"},
	{"service", "Restart", "say lifecycle.restart"},
	{"service", "RestartSec", "say lifecycle.restart_delay"},
	{"service", "RestartForceExitStatus RestartPreventExitStatus SuccessExitStatus", "the exit status says why the machine ended; say lifecycle.restart and lifecycle.on_panic"},
	{"service", "TimeoutSec TimeoutStopSec TimeoutAbortSec TimeoutStopFailureMode", "say lifecycle.stop_timeout"},
	{"service", "TimeoutStartSec TimeoutStartFailureMode", "say lifecycle.start_timeout or lifecycle.ready_timeout"},
	{"service", "WatchdogSec", "the hypervisor does not feed systemd's watchdog; the guest's is [watchdog]"},
	{"service", "StandardInput StandardInputText StandardInputData StandardOutput StandardError TTYPath", "the machine's console is [console], and the hypervisor's messages belong into the journal"},
	{"service", "OpenFile Sockets FileDescriptorStoreMax", "the hypervisor's own descriptors have the same numbers"},
	{"service", "Slice", "say resources.slice"},
}

// credentials decodes [credentials]. Their values are shown nowhere.
func (d *decoder) credentials(t *tree) []Credential {
	var out []Credential
	for i, name := range t.keys {
		d.enter(name)
		c := Credential{Name: name}
		node := t.nodes[i]
		if !credentialName(name) {
			d.mistake("", "want the name of a credential (letters, digits and ._-, at most 128)")
		} else if text, ok := node.(string); ok {
			if strings.Contains(text, "\x00") {
				d.mistake("", "want a text without NUL")
			}
			c.Value = Secret(text)
		} else if file, ok := node.(*tree); ok && file.has("file") {
			c.File = d.credentialFile(file)
		} else if ok {
			d.mistake("", fmt.Sprintf("want a string or { file = \"…\" }; a name with dots has to be quoted, such as %q", name+".…"))
		} else {
			d.mistake("", `want a string or { file = "…" }, got another kind of value`)
		}
		out = append(out, c)
		d.leave()
	}
	return out
}

func (d *decoder) credentialFile(t *tree) string {
	path := ""
	for i, key := range t.keys {
		d.enter(key)
		if text, ok := t.nodes[i].(string); key != "file" {
			d.mistake("", `unknown key, want only "file"`)
		} else if want := wantPath(text); !ok || want != "" {
			d.want("an absolute path", t.nodes[i])
		} else {
			path = text
		}
		d.leave()
	}
	return path
}

func credentialName(s string) bool {
	return s != "" && len(s) <= 128 && s != "." && s != ".." &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}

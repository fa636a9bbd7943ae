// Man writes vmctl.toml.5: the prose of vmctl.toml.5.in, with the reference of
// every key made from the schema that the loader reads by, and the examples
// from the files that are installed. What a hypervisor cannot do yet is what
// it refuses to plan.
//
//	go run ./packaging/man
//
// The pages of the commands, vmctl-disk(1) and so on, vmctl itself writes as it is
// installed (vmctl manual DIR).
//
// The page that comes out is kept beside it, so that installing needs no Go; a
// test fails where it is stale.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/all"
	"github.com/vmctl/vmctl/packaging/man/roff"
)

func main() {
	const dir = "packaging/man"
	text, err := page(dir)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "vmctl.toml.5"), []byte(text), 0o644)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "man: %v (run it from the top of the repository)\n", err)
		os.Exit(1)
	}
}

// page is the whole of vmctl.toml.5. dir is the folder with its frame.
func page(dir string) (string, error) {
	frame, err := os.ReadFile(filepath.Join(dir, "vmctl.toml.5.in"))
	if err != nil {
		return "", err
	}
	shown, err := examples(filepath.Join(dir, "../examples"))
	if err != nil {
		return "", err
	}
	networks, err := examples(filepath.Join(dir, "../examples/networks"))
	if err != nil {
		return "", err
	}
	environments, err := examples(filepath.Join(dir, "../examples/environments"))
	if err != nil {
		return "", err
	}
	return strings.NewReplacer(
		".\\\" @KEYS@\n", keys(config.Schema(), config.Keys(), missing()),
		".\\\" @NETWORKS@\n", keys(config.NetworkSchema(), config.NetworkKeys(), nil),
		".\\\" @SECURITY_GROUPS@\n", keys(config.SecurityGroupSchema(), config.SecurityGroupKeys(), nil),
		".\\\" @SETTINGS@\n", keys(config.Schema(), config.SettingsKeys(), nil),
		".\\\" @IMAGES@\n", keys(config.Schema(), config.ImageKeys(), nil),
		".\\\" @PARAMETERS@\n", keys(config.Schema(), config.ParameterKeys(), nil),
		".\\\" @HYPERVISORS@\n", differences(),
		".\\\" @COMMANDS@\n", commands(),
		".\\\" @EXAMPLES@\n", shown,
		".\\\" @NETWORKEXAMPLES@\n", networks,
		".\\\" @ENVIRONMENTS@\n", environments,
	).Replace(string(frame)), nil
}

// keys writes the reference of keys, with a heading for each table, and what
// is missing of them. schema has the tables.
func keys(schema map[string]any, docs []config.KeyDoc, missing map[string]string) string {
	var b strings.Builder
	tables := schema["properties"].(map[string]any)
	in := ""
	for _, k := range docs {
		table, name := split(k.Key)
		if table != in {
			in = table
			top, _, _ := strings.Cut(table, ".")
			fmt.Fprintf(&b, ".SS [%s]\n%s.\n", roff.Escape(table), sentence(tables[top].(map[string]any)["description"].(string)))
			if note := missing[table]; note != "" {
				fmt.Fprintf(&b, "%s\n", roff.Escape(note))
			}
		}
		fmt.Fprintf(&b, ".TP\n.BR %s \" (%s)\"\n%s\n", roff.Escape(name), roff.Escape(k.Type), roff.Escape(about(k)))
		if note := missing[k.Key]; note != "" && missing[table] == "" {
			fmt.Fprintf(&b, "%s\n", roff.Escape(note))
		}
	}
	return b.String()
}

// split cuts a key into its table, "" for the top level, and the rest.
func split(key string) (table, name string) {
	for _, sep := range []string{".NAME.", "."} {
		if i := strings.LastIndex(key, sep); i >= 0 {
			cut := i + len(sep)
			return key[:cut-1], key[cut:]
		}
	}
	return "", key
}

// about is what there is to say of a key.
func about(k config.KeyDoc) string {
	s := k.Doc + "."
	if len(k.Enum) > 0 {
		s += " One of " + strings.Join(quoted(k.Enum), ", ") + "."
	}
	switch {
	case k.Min != "" && k.Max != "":
		s += fmt.Sprintf(" From %s to %s.", k.Min, k.Max)
	case k.Min != "":
		s += fmt.Sprintf(" At least %s.", k.Min)
	case k.Max != "":
		s += fmt.Sprintf(" At most %s.", k.Max)
	}
	if k.Default != "" {
		s += " Default: " + k.Default + "."
	}
	if k.Secret {
		s += " Secret: shown nowhere."
	}
	return s
}

func quoted(values []string) []string {
	out := make([]string, len(values))
	for i, v := range values {
		if out[i] = `"` + v + `"`; v == "true" || v == "false" {
			out[i] = v
		}
	}
	return out
}

// missing is what is not built yet, by key or table ("disk.NAME.image", "tpm").
func missing() map[string]string {
	notes := map[string]string{}
	for _, h := range all.Table() {
		name := h.Name()
		for key, text := range refusals(h) {
			switch text {
			case "not supported by " + name + " yet":
				notes[key] = strings.TrimSpace(notes[key] + " Not yet supported by " + name + ".")
			default:
				value, _, _ := strings.Cut(text, " is not supported")
				notes[key] = strings.TrimSpace(notes[key] + " " + value + " is not yet supported by " + name + ".")
			}
		}
	}
	for _, k := range config.Keys() {
		for _, name := range k.Enum {
			if _, built := all.ByName(name); k.Key == "hypervisor" && !built {
				notes[k.Key] = fmt.Sprintf("%q is not yet supported.", name)
			}
		}
		// A refused value, where there is another that is not refused.
		if notes[k.Key] != "" && k.Default != "" {
			notes[k.Key] = strings.Replace(notes[k.Key], "Not yet supported", "Anything but the default is not yet supported", 1)
		}
	}
	return notes
}

// refusals is what h refuses of machines that use every key, as not built yet.
func refusals(h hypervisor.Hypervisor) map[string]string {
	host := hypervisor.Host{
		CPUVirtualization: true,
		Programs:          map[string]string{"qemu-system-x86_64": "/usr/bin/qemu-system-x86_64"},
	}
	out := map[string]string{}
	for _, m := range config.Examples() {
		_, problems := h.Plan(m, host, config.SystemPaths(""))
		for _, p := range problems {
			if strings.Contains(p.Text, "not supported by "+h.Name()+" yet") {
				out[general(p.Key)] = p.Text
			}
		}
	}
	return out
}

// general puts NAME in place of a device's name.
func general(key string) string {
	parts := strings.Split(key, ".")
	for _, k := range config.Keys() {
		pattern := strings.Split(k.Key, ".")
		if len(parts) > 1 && len(pattern) > 1 && pattern[0] == parts[0] && pattern[1] == "NAME" {
			parts[1] = "NAME"
		}
	}
	return strings.Join(parts, ".")
}

// examples are the definitions of a folder, whole.
func examples(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.toml"))
	if err != nil || len(files) == 0 {
		return "", fmt.Errorf("no examples in %s: %v", dir, err)
	}
	var b strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, ".SS %s\n.EX\n%s.EE\n", roff.Escape(filepath.Base(file)), literal(string(text)))
	}
	return b.String(), nil
}

// literal escapes lines that are shown as they are.
func literal(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		const most = 90
		line = strings.TrimRight(line, "\n")
		if r := []rune(line); len(r) > most {
			line = string(r[:most-1]) + "…"
		}
		b.WriteString(roff.Escape(line) + "\n")
	}
	return b.String()
}

// sentence escapes a text and begins it with a capital letter.
func sentence(s string) string { return roff.Escape(strings.ToUpper(s[:1]) + s[1:]) }

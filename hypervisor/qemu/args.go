package qemu

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Everything that is quoted for QEMU is quoted here. QEMU has two syntaxes:
// "head,key=value,…" where a comma inside a value is written twice, and JSON.
// Options that take a plain file name (-kernel, -initrd, -bios) or plain text
// (-append) are parsed by nobody and passed as they are.

// options joins parts, each "key=value" or a bare word, to one argument.
// Empty parts are left out, so that a part can be given under a condition.
func options(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		if p == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strings.ReplaceAll(p, ",", ",,"))
	}
	return b.String()
}

// when returns part if it is wanted.
func when(wanted bool, part string) string {
	if wanted {
		return part
	}
	return ""
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// jsonArg is v as the JSON that -blockdev takes. The paths in it stay legible:
// nothing is escaped for HTML.
func jsonArg(v any) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	// Only unsupported types and cycles fail; blockNode has neither.
	if err := enc.Encode(v); err != nil {
		panic(err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

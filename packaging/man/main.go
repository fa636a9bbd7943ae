// Man writes vmctl.toml(5), the manual page of a definition, from the same
// struct tags by which definitions are read: packaging/man/vmctl.toml.5 is its
// output, and a test keeps it current.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/vmctl/vmctl/config"
)

func main() {
	if err := write(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
}

// write writes the page.
func write(w io.Writer) error {
	var b strings.Builder
	b.WriteString(head)
	keys(&b, config.Keys())
	b.WriteString(settings)
	keys(&b, config.SettingsKeys())
	b.WriteString(tail)
	_, err := io.WriteString(w, b.String())
	return err
}

// keys lists keys, under a heading for each table.
func keys(b *strings.Builder, all []config.KeyDoc) {
	heading := ""
	for _, k := range all {
		table, key := split(k.Key)
		if table != heading {
			heading = table
			fmt.Fprintf(b, ".SS [%s]\n", roff(table))
		}
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(key), roff(about(k)))
	}
}

// split parts a dotted key from its table.
func split(key string) (table, name string) {
	if i := strings.LastIndexByte(key, '.'); i >= 0 {
		return key[:i], key[i+1:]
	}
	return "", key
}

// about says all that there is to say of a key.
func about(k config.KeyDoc) string {
	kind := k.Type
	if len(k.Enum) > 0 {
		kind = strings.Join(k.Enum, ", ")
	}
	if k.Default != "" {
		kind += "; default " + k.Default
	}
	if k.Secret {
		kind += "; never shown"
	}
	return k.Doc + " (" + kind + ")"
}

// roff is s as ASCII text of a manual page: nothing in it is a request or an
// escape.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `…`, `...`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

const head = `.TH vmctl.toml 5 "" vmctl "Virtual machines as systemd services"
.SH NAME
vmctl.toml \- definition of a virtual machine, settings of the host
.SH SYNOPSIS
.nf
/etc/vmctl/vms/\fINAME\fR.toml
/etc/vmctl/vms/\fINAME\fR.toml.d/*.toml
/etc/vmctl/vms/vms.toml.d/*.toml
/etc/vmctl/templates/\fINAME\fR.toml
/etc/vmctl/vmctl.toml
.fi
.SH DESCRIPTION
A machine is a TOML file, named after it. The same trees below /run/vmctl and
/usr/lib/vmctl are read too: of several files of one name the first in the order
/run, /etc, /usr/lib wins, and drop\-ins of all of them are merged in the order of
their file names. Those in vms.toml.d are for all machines. An empty file, or a
link to /dev/null, masks what it stands in front of. Machines of a user's own
service manager are in $XDG_CONFIG_HOME/vmctl.
.PP
A name is made of a\-z, 0\-9 and hyphens, not at its ends, and has at most 63
characters. A size is a number with K, M, G or T (powers of 1024); a time is
written as systemd does, "90s" or "1h 30min". Unknown keys are errors:
.B vmctl check
tells each with its file and line. A change holds from the next start on, once
systemd has read it:
.B vmctl reload
or
.B systemctl daemon\-reload
has it do so, and
.B vmctl start
does where it is needed.
.SH EXAMPLE
.nf
description = "Public web server"
cpus = 2
memory = "2G"
autostart = true

[disk.root]
size = "20G"

[nic.lan]
user = true
forward = ["2222:22/tcp"]

[cloud_init]
ssh_keys = ["ssh\-ed25519 AAAA... alice"]
.fi
.SH KEYS
.SS Top level
`

const settings = `.SH SETTINGS OF THE HOST
These stand in vmctl.toml, and its drop\-ins in vmctl.toml.d.
.SS Top level
`

const tail = `.SH CLOUD-INIT
The guest finds a NoCloud seed on a disk labelled cidata. Given user_data is
passed on byte for byte; what ssh_keys, user and password_hash say then goes into
the vendor\-data, over which user\-data wins. Without user_data they make the
user\-data. A value of one line that begins with "/" names a file. The
instance\-id is the machine's UUID.
.B vmctl cloud\-init
.I NAME
shows what the guest will get.
.SH SEE ALSO
.BR vmctl (8),
.BR systemd.unit (5),
.BR systemd.resource\-control (5),
.BR systemd.system\-credentials (7)
`

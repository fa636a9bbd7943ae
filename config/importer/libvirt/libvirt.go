// Package libvirt makes definitions of libvirt's domain and network XML, as virsh
// dumpxml and virsh net-dumpxml print it (https://libvirt.org/formatdomain.html,
// https://libvirt.org/formatnetwork.html).
package libvirt

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/config/importer"
)

// namespaces are those of elements that go into QEMU's own business.
var namespaces = map[string]string{
	"http://libvirt.org/schemas/domain/qemu/1.0":  "qemu:",
	"http://libvirt.org/schemas/network/qemu/1.0": "qemu:",
}

// Convert reads domains and networks, one after another. The error is a
// [config.Problem] with file and line.
func Convert(file string, data []byte) (importer.Result, error) {
	var all importer.Result
	roots, err := importer.ParseXML(file, data, namespaces)
	if err != nil {
		return all, err
	}
	for _, root := range roots {
		var d *importer.Definition
		switch root.Name {
		case "domain":
			d, err = convertDomain(file, root)
		case "network":
			d, err = convertNetwork(file, root)
		default:
			err = wrong(file, root, "want <domain> or <network>, as virsh dumpxml and virsh net-dumpxml print them, got <%s>", root.Name)
		}
		if err != nil {
			return importer.Result{}, err
		}
		all.Definitions = append(all.Definitions, d)
	}
	return all, nil
}

// wrong is an error at a part of the file.
func wrong(file string, n *importer.Node, format string, args ...any) error {
	return config.Problem{File: file, Line: n.Line, Text: fmt.Sprintf(format, args...)}
}

// units are those of sizes, in bytes.
var units = map[string]int64{
	"b": 1, "bytes": 1,
	"kb": 1000, "k": 1 << 10, "kib": 1 << 10,
	"mb": 1000 * 1000, "m": 1 << 20, "mib": 1 << 20,
	"gb": 1000 * 1000 * 1000, "g": 1 << 30, "gib": 1 << 30,
	"tb": 1000 * 1000 * 1000 * 1000, "t": 1 << 40, "tib": 1 << 40,
}

// size reads a number with its attribute unit, which is KiB where it has none; 0
// where it is none, and unlimited where it is more than any host has.
func size(n *importer.Node) config.Size {
	count, err := strconv.ParseInt(n.Text(), 10, 64)
	unit := units[strings.ToLower(cmp.Or(n.Attr("unit"), "KiB"))]
	switch {
	case err != nil || unit == 0 || count < 0:
		return 0
	case count > unlimited/unit:
		return unlimited
	}
	return config.Size(count * unit)
}

// unlimited is a size that is no limit, in bytes.
const unlimited = 1 << 53

// number reads a whole number, -1 where it is none.
func number(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// isOn says whether a switch such as <acpi/> or <smm state="on"/> is on.
func isOn(n *importer.Node) bool {
	state := n.Attr("state")
	return n != nil && (state == "" || state == "on")
}

package main

import (
	"net"
	"net/netip"
	"reflect"
	"testing"
)

func TestModulesAreWantedByTheirDevices(t *testing.T) {
	x := parseIndex("module virtio\nmodule virtio_blk virtio\nalias virtio:d00000002v* virtio_blk\nalias acpi*:PNP0C0C:* button\n" +
		"alias usb:v*p*d*dc*dsc*dp*ic08isc06ip50in* usb_storage\nalias pci:v00008086d0000[0-9]* x\n")
	if want := []string{"virtio"}; !reflect.DeepEqual(x.depends["virtio_blk"], want) {
		t.Errorf("dependencies: got %q, want %q", x.depends["virtio_blk"], want)
	}
	for id, want := range map[string][]string{
		"virtio:d00000002v00001AF4": {"virtio_blk"},
		"acpi:PNP0C0C:":             {"button"},
		"usb:v46F4p0001d0000dc00dsc00dp00ic08isc06ip50in00": {"usb_storage"},
		"pci:v00008086d00001237sv":                          {"x"},
		"pci:v00001AF4d00001000":                            nil,
	} {
		if got := x.wanted([]string{id}); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q, want %q", id, got, want)
		}
	}
}

func TestParamsOfModules(t *testing.T) {
	cmdline := []string{"quiet", "virtio_mmio.device=512@0xfeb00e00:12", "virtio-mmio.device=512@0xfeb00c00:13", "x.y=z"}
	if got, want := params(cmdline, "virtio_mmio"), "device=512@0xfeb00e00:12 device=512@0xfeb00c00:13"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHostname(t *testing.T) {
	for meta, want := range map[string]string{
		`{"instance-id":"i","local-hostname":"web"}`:        "web",
		`{"hostname":"web2"}`:                               "web2",
		"instance-id: i\nlocal-hostname: web3\n":            "web3",
		"local-hostname: \"web4\"\npublic-keys:\n  - ssh-x": "web4",
		"instance-id: i\n":                                  "",
		"":                                                  "",
	} {
		if got := hostname([]byte(meta)); got != want {
			t.Errorf("%q: got %q, want %q", meta, got, want)
		}
	}
}

func TestCredentialsInFirmwareTables(t *testing.T) {
	raw := append([]byte{11, 5, 0, 1, 2}, "io.systemd.credential:a=b=c\x00io.systemd.credential.binary:d=ZQ==\x00other\x00\x00"...)
	var got []string
	for _, text := range oemStrings(raw) {
		if name, value, ok := credential(text); ok {
			got = append(got, name+"="+value)
		}
	}
	if want := []string{"a=b=c", "d=e"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, short := range [][]byte{nil, {11}, {11, 200, 0}} {
		if got := oemStrings(short); got != nil {
			t.Errorf("%v: got %q", short, got)
		}
	}
}

func TestAgentAnswers(t *testing.T) {
	g := &guest{}
	call := agentCall{Execute: "guest-sync-delimited"}
	call.Arguments.ID = 42
	if got, want := string(g.answer(call)), "\xff{\"return\":42}\n"; got != want {
		t.Errorf("sync: got %q, want %q", got, want)
	}
	if got, want := string(g.answer(agentCall{Execute: "guest-ping"})), "{\"return\":{}}\n"; got != want {
		t.Errorf("ping: got %q, want %q", got, want)
	}
	if got, want := string(g.answer(agentCall{Execute: "x"})), `{"error":{"class":"CommandNotFound","desc":"no command x"}}`+"\n"; got != want {
		t.Errorf("unknown: got %q, want %q", got, want)
	}
}

func TestCommandsAreNamedOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range commands() {
		if seen[c.name] {
			t.Errorf("%s stands there twice", c.name)
		}
		seen[c.name] = true
	}
}

func TestAddressOfDHCPv6(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	query := solicit(mac)
	if len(query) != 4+4+10+4+4+2+4+12 || query[0] != solicitMessage {
		t.Errorf("query: % x", query)
	}
	address := netip.MustParseAddr("fd00::7")
	identity := option(make([]byte, 12), addressOption, append(address.AsSlice(), make([]byte, 8)...))
	answer := option(append([]byte{replyMessage}, query[1:4]...), clientIDOption, []byte("x"))
	answer = option(answer, identityOption, identity)
	if got, ok := leased(query, answer); !ok || got != address {
		t.Errorf("got %v %v", got, ok)
	}
	for n := range answer {
		if got, ok := leased(query, answer[:n]); ok {
			t.Errorf("of the first %d bytes: got %v", n, got)
		}
	}
	answer[1]++
	if got, ok := leased(query, answer); ok {
		t.Errorf("of an answer to another: got %v", got)
	}
}

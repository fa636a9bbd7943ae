package guestagent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

// tells plays an agent that has one answer to all questions.
func tells(text string) guest {
	return func(conn net.Conn, lines *bufio.Scanner) {
		answer(conn, lines)
		for lines.Scan() {
			io.WriteString(conn, text+"\n")
		}
	}
}

func TestInterfaces(t *testing.T) {
	a := dial(t, tells(strings.ReplaceAll(`{"return": [
		{"name": "lo", "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "127.0.0.1", "prefix": 8}]},
		{"name": "eth0", "hardware-address": "52:54:00:AB:00:01", "ip-addresses": [
			{"ip-address": "192.0.2.1", "prefix": 24}, {"ip-address": "fe80::1%eth0"}, {"ip-address": "::ffff:192.0.2.2"},
			{"ip-address": "\u001b[31m"}, {}, {"ip-address": "192.0.2.300"}]},
		{"name": "ib0", "hardware-address": "00:00:00:00:fe:80:00:00:00:00:00:00:02:00:5e:10:00:00:00:01"},
		{"name": "x", "hardware-address": "; rm -rf /"},
		{"name": "down", "hardware-address": "52:54:00:00:00:02"}]}`, "\n", " ")))
	got, err := a.Interfaces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const want = "[{52:54:00:ab:00:01 [192.0.2.1 fe80::1 192.0.2.2]} {52:54:00:00:00:02 []}]"
	if fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestInterfacesOfALiar(t *testing.T) {
	many := strings.TrimSuffix(strings.Repeat(`{"hardware-address":"52:54:00:00:00:01","ip-addresses":[`+strings.TrimSuffix(strings.Repeat(`{"ip-address":"192.0.2.1"},`, 100), ",")+`]},`, 200), ",")
	got, err := dial(t, tells(`{"return": [`+many+`]}`)).Interfaces(t.Context())
	if err != nil || len(got) != maxInterfaces || len(got[0].Addresses) != maxAddresses {
		t.Errorf("got %d interfaces, %v", len(got), err)
	}
	for _, text := range []string{`{"return": {}}`, `{"return": [1]}`, `{"return": [{"ip-addresses": "x"}]}`, `{"error": {"class": "CommandNotFound", "desc": "no"}}`, `{`} {
		if got, err := dial(t, tells(text)).Interfaces(t.Context()); err == nil {
			t.Errorf("%s: got %v", text, got)
		}
	}
	if _, err := dial(t, func(c net.Conn, l *bufio.Scanner) { answer(c, l); silence(c) }).Interfaces(soon(t)); err == nil {
		t.Error("silence is an answer")
	}
}

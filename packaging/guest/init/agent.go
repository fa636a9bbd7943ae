package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const agentPort = "org.qemu.guest_agent.0"

// serveAgent answers a few calls of the QEMU guest agent: those that it takes to
// shut a guest down, and the question for its addresses.
func (g *guest) serveAgent() {
	port, err := openAgentPort()
	if err != nil {
		g.say("guest agent: %v", err)
		return
	}
	g.say("guest agent answers")
	for {
		// A new decoder for each connection: what the last one left is gone.
		err := g.answerCalls(port)
		if err != nil && !errors.Is(err, io.EOF) {
			g.say("guest agent: %v", err)
		}
		time.Sleep(100 * time.Millisecond) // reads end at once while no one is connected
	}
}

func openAgentPort() (*os.File, error) {
	for _, dir := range glob("/sys/class/virtio-ports/*") {
		if readLine(dir+"/name") == agentPort {
			fd, err := unix.Open("/dev/"+filepath.Base(dir), unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			return os.NewFile(uintptr(fd), agentPort), nil
		}
	}
	return nil, errors.New("no port named " + agentPort)
}

type agentCall struct {
	Execute   string `json:"execute"`
	Arguments struct {
		ID   int64  `json:"id"`
		Mode string `json:"mode"`
	} `json:"arguments"`
}

func (g *guest) answerCalls(port *os.File) error {
	calls := json.NewDecoder(skipDelimiters{port})
	for {
		var call agentCall
		if err := calls.Decode(&call); err != nil {
			return err
		}
		if _, err := port.Write(g.answer(call)); err != nil {
			return err
		}
	}
}

// answer carries a call out and returns what to say; nothing after a
// successful shutdown, as the protocol has it.
func (g *guest) answer(call agentCall) []byte {
	var prefix []byte
	answer := map[string]any{"return": map[string]any{}}
	switch call.Execute {
	case "guest-ping":
	case "guest-sync":
		answer["return"] = call.Arguments.ID
	case "guest-sync-delimited":
		prefix = []byte{0xff}
		answer["return"] = call.Arguments.ID
	case "guest-network-get-interfaces":
		answer["return"] = agentInterfaces()
	case "guest-shutdown":
		g.say("guest agent: shutdown (%s)", call.Arguments.Mode)
		if call.Arguments.Mode == "reboot" {
			go g.reboot()
		} else {
			go g.powerOff()
		}
		return nil
	default:
		answer = map[string]any{"error": map[string]string{"class": "CommandNotFound", "desc": "no command " + call.Execute}}
	}
	text, err := json.Marshal(answer)
	if err != nil {
		panic(err) // maps of strings and numbers
	}
	return append(append(prefix, text...), '\n')
}

// agentInterface is one of QEMU's GuestNetworkInterface, as far as it matters.
type agentInterface struct {
	Name      string         `json:"name"`
	MAC       string         `json:"hardware-address,omitempty"`
	Addresses []agentAddress `json:"ip-addresses"`
}

type agentAddress struct {
	Address string `json:"ip-address"`
}

func agentInterfaces() []agentInterface {
	all := []agentInterface{}
	cards, _ := net.Interfaces() // an empty list says as much as an error
	for _, card := range cards {
		i := agentInterface{Name: card.Name, MAC: card.HardwareAddr.String(), Addresses: []agentAddress{}}
		addresses, _ := card.Addrs()
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok {
				i.Addresses = append(i.Addresses, agentAddress{n.IP.String()})
			}
		}
		all = append(all, i)
	}
	return all
}

// skipDelimiters leaves out the byte 0xff, which is in no JSON text and with
// which a client makes an agent forget half a call.
type skipDelimiters struct{ r io.Reader }

func (s skipDelimiters) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	kept := b[:0]
	for _, c := range b[:n] {
		if c != 0xff {
			kept = append(kept, c)
		}
	}
	return len(kept), err
}

package netsetup

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// limited is the card of the network lan with limits, plugged in, and its queue:
// what would be the guest.
func limited(t *testing.T, in, out int64) (CardState, *os.File) {
	t.Helper()
	network, machine := load(t, txtar.Parse([]byte(lan)))
	if err := Up(Network(network)); err != nil {
		t.Fatal(err)
	}
	nic := machine.NICs[0]
	nic.RateIn, nic.RateOut = config.Size(in), config.Size(out)
	card := Card("web", nic, network, Lease{}, HostBridge{})
	queues, err := Plug(card)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(queues) })
	return card, queues[0]
}

// limits are what tc and nft say of a card's interface.
func limits(t *testing.T, card CardState) string {
	t.Helper()
	var all strings.Builder
	for _, command := range [][]string{{"tc", "qdisc", "show", "dev", card.Interface}, {"nft", "list", "tables", "netdev"}, {"nft", "list", "ruleset", "netdev"}} {
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
		all.Write(out)
	}
	return all.String()
}

func TestAdjust(t *testing.T) {
	inNamespace(t)
	card, _ := limited(t, 1<<20, 2<<20)
	before := limits(t, card)
	for _, want := range []string{"tbf 1: root", "rate 8388Kbit burst 128Kb", "limit rate over 2 mbytes/second burst 128 kbytes drop", `device "` + card.Interface + `"`} {
		if !strings.Contains(before, want) {
			t.Errorf("want %s, got %s", want, before)
		}
	}
	set := func(in, out int64) string {
		t.Helper()
		card.RateIn, card.RateOut = in, out
		if err := Adjust(card); err != nil {
			t.Fatal(err)
		}
		return limits(t, card)
	}
	if got := set(10<<20, 0); strings.Contains(got, "vmctl_rate") || !strings.Contains(got, "tbf 1: root") || !strings.Contains(got, "rate 83886Kbit") {
		t.Errorf("the one without the other: %s", got)
	}
	for range 2 {
		if got := set(0, 0); strings.Contains(got, "tbf") || strings.Contains(got, "vmctl_rate") {
			t.Errorf("without limits: %s", got)
		}
	}
	card.Down = true
	set(0, 0)
	if link, err := netlink.LinkByName(card.Interface); err != nil || link.Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("with the link down: %v, %v", link, err)
	}
	card.Down = false
	// The least and the most that a definition can say.
	set(1<<10, 1<<10)
	set(10<<30, 10<<30)
	if got := set(1<<20, 2<<20); got != before {
		t.Errorf("again: %s", got)
	}
	if err := Unplug("web", Unplugged{config.NIC{Name: "net", Network: "lan"}, nil}); err != nil {
		t.Fatal(err)
	}
	if got := limits(t, card); strings.Contains(got, "netdev") {
		t.Errorf("unplugged: %s", got)
	}
}

// TestRate: much less passes a limited card than one that is not, either way.
func TestRate(t *testing.T) {
	const rate, size, frames = 64 << 10, 1400, 4000
	inNamespace(t)
	card, queue := limited(t, 0, 0)
	bridge, err := netlink.LinkByName(card.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	counted := func(name string, count func(*netlink.LinkStatistics) uint64) uint64 {
		t.Helper()
		link, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return count(link.Attrs().Statistics)
	}
	// From the guest, of which the bridge sees what comes through.
	fromGuest := func() uint64 {
		t.Helper()
		received := func() uint64 {
			return counted(card.Bridge, func(s *netlink.LinkStatistics) uint64 { return s.RxBytes })
		}
		before := received()
		mac, err := net.ParseMAC(string(nicOf(t).MAC))
		if err != nil {
			t.Fatal(err)
		}
		frame := make([]byte, 10+size) // after a header of virtio that says nothing
		copy(frame[10:], bridge.Attrs().HardwareAddr)
		copy(frame[16:], mac)
		frame[22], frame[23] = 0x80, 0x35 // RARP, which nobody answers
		for range frames {
			if _, err := queue.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
		return received() - before
	}
	// To the guest, which reads what comes through.
	toGuest := func() (read uint64) {
		t.Helper()
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		frame := make([]byte, size)
		for i := range 6 {
			frame[i] = 0xff
		}
		frame[12], frame[13] = 0x88, 0xb5
		b := make([]byte, 4096)
		drain := func() {
			for {
				n, err := unix.Read(int(queue.Fd()), b)
				if err != nil {
					return
				}
				read += uint64(n)
			}
		}
		for range frames {
			// What waits is no one else's concern.
			err := unix.Sendto(fd, frame, unix.MSG_DONTWAIT, &unix.SockaddrLinklayer{Ifindex: bridge.Attrs().Index, Halen: 6})
			if err != nil && err != unix.ENOBUFS && err != unix.EAGAIN {
				t.Fatal(err)
			}
			drain()
		}
		return read
	}
	const most = frames * size
	for _, way := range []struct {
		name    string
		send    func() uint64
		in, out int64
	}{{"from the guest", fromGuest, 0, rate}, {"to the guest", toGuest, rate, 0}} {
		card.RateIn, card.RateOut = 0, 0
		if err := Adjust(card); err != nil {
			t.Fatal(err)
		}
		if got := way.send(); got < most/2 {
			t.Errorf("%s, without a limit: %d of %d bytes", way.name, got, most)
		}
		card.RateIn, card.RateOut = way.in, way.out
		if err := Adjust(card); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		got := way.send()
		if may := uint64(time.Since(begun).Seconds()*rate) + rate + 3*minBurst; got > may {
			t.Errorf("%s: %d bytes in %s, want at most %d", way.name, got, time.Since(begun), may)
		}
		if got == 0 {
			t.Errorf("%s: nothing comes through", way.name)
		}
	}
}

func nicOf(t *testing.T) config.NIC {
	t.Helper()
	_, machine := load(t, txtar.Parse([]byte(lan)))
	return machine.NICs[0]
}

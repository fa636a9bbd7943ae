//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"os"
	"regexp"
	"testing"
	"time"
)

// BenchmarkNetwork sends data from the host to a guest, which sends it back, by a
// card on a network; and the same to the same guest by the same command line of
// QEMU in no sandbox, on a TAP interface made by hand, with no filter of its
// own.
func BenchmarkNetwork(b *testing.B) {
	// The address that the little guest gives its first card by itself.
	newNetwork(b, "bench", "subnet = \"10.0.2.0/24\"\ngateway = \"10.0.2.2\"\nsubnet6 = \"none\"\n")
	v := newVM(b, "bench", "[nic.lan]\nnetwork = \"bench\"\naddress = \"10.0.2.15\"\n")
	b.Run("vmctl", func(b *testing.B) {
		v.start()
		defer run(b, "systemctl", "stop", v.unit())
		echo(b)
	})
	b.Run("by-hand", func(b *testing.B) {
		run(b, "systemctl", "start", "vm-network@bench.service")
		run(b, "ip", "tuntap", "add", "tapbench", "mode", "tap", "vnet_hdr")
		defer run(b, "ip", "link", "delete", "tapbench")
		run(b, "ip", "link", "set", "tapbench", "master", "vmbr-bench", "up")
		newBareUnit(b, v, "bare", false)
		const file = "/etc/systemd/system/bare.service"
		unit, err := os.ReadFile(file)
		if err != nil {
			b.Fatal(err)
		}
		card := regexp.MustCompile(`(tap,id=net-lan),fd=\d+`)
		if !card.Match(unit) {
			b.Fatalf("no card in %s", unit)
		}
		writeFile(b, file, string(card.ReplaceAll(unit, []byte("$1,ifname=tapbench,script=no,downscript=no"))))
		run(b, "systemctl", "daemon-reload")
		run(b, "systemctl", "start", "bare")
		defer run(b, "systemctl", "stop", "bare")
		echo(b)
	})
}

// echo measures how fast the guest at 10.0.2.15 sends back what it is sent, and
// that it is all of it.
func echo(b *testing.B) {
	b.Helper()
	data := bytes.Repeat([]byte("vmctl---"), 2<<20)
	var rates samples
	eventually(b, "the guest answers", func() bool {
		c, err := net.DialTimeout("tcp", "10.0.2.15:7", time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	for b.Loop() {
		c, err := net.Dial("tcp", "10.0.2.15:7")
		if err != nil {
			b.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		in := bufio.NewReader(c)
		if _, err := in.ReadString('\n'); err != nil { // hello
			b.Fatal(err)
		}
		begun := time.Now()
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(data)
			sent <- err
		}()
		back := make([]byte, len(data))
		if _, err := io.ReadFull(in, back); err != nil || !bytes.Equal(back, data) {
			b.Fatalf("what came back is not what was sent: %v", err)
		}
		rates = append(rates, float64(len(data))/1e6/time.Since(begun).Seconds())
		if err := <-sent; err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
	only(b, rates.median(), "MB/s")
}

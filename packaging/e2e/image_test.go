//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const images = "/var/lib/vmctl/images/"

// gate serves a file, half of it at once, the rest once it is opened.
type gate struct {
	content []byte
	open    chan struct{}
	whole   atomic.Int32 // how often all was sent
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", fmt.Sprint(len(g.content)))
	half := len(g.content) / 2
	// An answer that nobody waits for any more is no error of ours.
	_, _ = w.Write(g.content[:half])
	w.(http.Flusher).Flush()
	select {
	case <-g.open:
	case <-r.Context().Done():
		return
	}
	if _, err := w.Write(g.content[half:]); err == nil {
		g.whole.Add(1)
	}
}

// Two machines of one image that is not there yet, and takes longer than a start
// may: both wait for one pull, and each has its own disk then. The image stays
// what it was, and cannot be deleted while they need it.
func TestImagePulledAndShared(t *testing.T) {
	newerSuiteOnly(t, "images are pulled by ourselves, and disks of images are tried on both")
	t.Parallel()
	dir := hostDir(t, "image")
	content, err := os.ReadFile(image(t, filepath.Join(dir, "golden.img"), "golden", 4*megabyte))
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{content: content, open: make(chan struct{})}
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	table := "/etc/vmctl/images.toml.d/e2e.toml"
	writeFile(t, table, "[e2e-golden]\nurl = \""+server.URL+"/golden.img\"\n")
	t.Cleanup(func() {
		os.Remove(table)
		try("systemctl", "stop", "vm-image@e2e-golden.service")
		try("vmctl", "image", "delete", "--yes", "e2e-golden")
	})
	const timeout = 20 * time.Second
	definition := func(size string) string {
		return fmt.Sprintf("lifecycle.start_timeout = %q\n[disk.root]\nimage = \"e2e-golden\"\nsize = %q\n[disk.forgets]\nimage = \"e2e-golden\"\nephemeral = true\n", timeout, size)
	}
	one, two := newVM(t, "image-one", definition("8M")), newVM(t, "image-two", definition("16M"))
	vms := []*vm{one, two}
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "start", "--no-block", one.unit(), two.unit())
	for _, v := range vms {
		eventually(t, v.unit()+" says how far the image is", func() bool {
			return strings.Contains(v.property("StatusText"), "e2e-golden: downloading")
		})
	}
	contains(t, try("systemctl", "status", "vm-image@e2e-golden.service", "--no-pager").all(), "activating", "downloading")
	if _, err := os.Stat(images + "e2e-golden.img"); err == nil {
		t.Error("half an image is visible")
	}
	fail(t, 3, "vmctl", "image", "delete", "--yes", "e2e-golden")
	time.Sleep(timeout + 5*time.Second) // not how long it takes, but that it may
	// Systemd counts the time-out from the start's begin again, and it is over.
	run(t, "systemctl", "daemon-reload")
	time.Sleep(time.Second)
	for _, v := range vms {
		if state := v.property("SubState"); state != "start-pre" {
			t.Fatalf("%s is %s while its image is pulled", v.unit(), state)
		}
	}
	close(g.open)
	for _, v := range vms {
		v.expectReady()
	}
	run(t, "systemctl", "daemon-reload")
	for _, v := range vms {
		if got := v.property("TimeoutStartUSec"); got != "20s" {
			t.Errorf("%s, which runs, has the time-out %s for its next start", v.name, got)
		}
	}
	if n := g.whole.Load(); n != 1 {
		t.Errorf("the image was sent %d times", n)
	}

	disks := map[*vm]map[string]guestDisk{}
	for _, v := range vms {
		disks[v] = v.guestDisks()
		for _, disk := range []string{"root", "forgets"} {
			if got := v.read(disks[v][disk]); got != "golden" {
				t.Errorf("%s: %s reads %q, want what the image has", v.name, disk, got)
			}
			v.write(disks[v][disk], "of "+v.name)
		}
	}
	if a, b := disks[one]["root"].size, disks[two]["root"].size; a != fmt.Sprint(8*megabyte) || b != fmt.Sprint(16*megabyte) {
		t.Errorf("the disks have %s and %s bytes", a, b)
	}
	// The process sees the image that it needs, read-only, and no other.
	contains(t, run(t, "nsenter", "-t", fmt.Sprint(one.mainPID()), "-m", "ls", images), "e2e-golden.img")
	if seen := run(t, "nsenter", "-t", fmt.Sprint(one.mainPID()), "-m", "ls", images); seen != "e2e-golden.img" {
		t.Errorf("the machine sees the images %q", seen)
	}

	stderr := fail(t, 4, "vmctl", "image", "delete", "--yes", "e2e-golden")
	contains(t, stderr, "delete e2e-golden: e2e-golden is what each of the disks of image-one and image-two stands on")
	for _, v := range vms {
		run(t, "systemctl", "stop", v.unit())
	}
	contains(t, fail(t, 4, "vmctl", "image", "delete", "--yes", "e2e-golden"), "image-one and image-two")
	for _, v := range vms {
		v.boot()
		seen := v.guestDisks()
		if got := v.read(seen["root"]); got != "of "+v.name {
			t.Errorf("%s: after a restart the guest reads %q", v.name, got)
		}
		if got := v.read(seen["forgets"]); got != "golden" {
			t.Errorf("%s: the disk that forgets reads %q", v.name, got)
		}
		run(t, "systemctl", "stop", v.unit())
	}
	contains(t, run(t, "vmctl", "image", "verify", "e2e-golden"), "e2e-golden: sound")

	// An image that the disk does not stand on is refused, and so is none.
	for _, change := range []string{`image = "other"`, `readonly = false`} {
		one.define(littleGuest("cloud", "") + strings.Replace(definition("8M"), `image = "e2e-golden"`, change, 1))
		run(t, "systemctl", "daemon-reload")
		fail(t, 1, "systemctl", "start", one.unit())
		contains(t, one.exitDetail(), "the disk is there already and stands on "+images+"e2e-golden.img")
	}
	run(t, "vmctl", "delete", "--yes", one.name)
	contains(t, fail(t, 4, "vmctl", "image", "delete", "--yes", "e2e-golden"), "is what the disk of image-two stands on")
	run(t, "vmctl", "delete", "--yes", two.name)
	run(t, "vmctl", "image", "delete", "--yes", "e2e-golden")
}

// What cannot be had is said at the start, with the key and what to type.
func TestImageMissing(t *testing.T) {
	newerSuiteOnly(t, "nothing of it depends on a version")
	t.Parallel()
	table := "/etc/vmctl/images.toml.d/e2e-missing.toml"
	writeFile(t, table, "[e2e-offline]\nurl = \"http://127.0.0.1:9/offline.img\"\n")
	t.Cleanup(func() { os.Remove(table) })
	v := newVM(t, "image-missing", "lifecycle.restart = \"no\"\n[disk.root]\nimage = \"no-such\"\n")
	run(t, "systemctl", "daemon-reload")
	fail(t, 1, "systemctl", "start", v.unit())
	contains(t, v.exitDetail(), v.file()+":", "disk.root.image: no image is stored by the name no-such", "vmctl image import FILE --name no-such")

	v.define(littleGuest("cloud", "") + "lifecycle.restart = \"no\"\n[disk.root]\nimage = \"e2e-offline\"\n")
	run(t, "systemctl", "daemon-reload")
	fail(t, 1, "systemctl", "start", v.unit())
	contains(t, v.exitDetail(), "disk.root.image: pull e2e-offline", "http://127.0.0.1:9/offline.img cannot be reached, is this host offline?")
}

// A raw disk is a copy of its image: the guest sees the same, and the image can go
// once the copy is made.
func TestImageCopied(t *testing.T) {
	newerSuiteOnly(t, "nothing of it depends on a version")
	t.Parallel()
	dir := hostDir(t, "image-copied")
	golden := filepath.Join(dir, "e2e-copied.qcow2")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", image(t, filepath.Join(dir, "golden.img"), "golden", 4*megabyte), golden)
	run(t, "vmctl", "image", "import", golden)
	v := newVM(t, "image-copied", `
[disk.root]
image = "e2e-copied"
format = "raw"
size = "8M"
`)
	v.boot()
	disk := v.guestDisks()["root"]
	if got := v.read(disk); got != "golden" || disk.size != fmt.Sprint(8*megabyte) {
		t.Errorf("%+v reads %q", disk, got)
	}
	v.write(disk, "mine")
	run(t, "vmctl", "image", "delete", "--yes", "e2e-copied")
	run(t, "systemctl", "restart", v.unit())
	v.expectReady()
	if got := v.read(v.guestDisks()["root"]); got != "mine" {
		t.Errorf("after a restart without the image the guest reads %q", got)
	}
	run(t, "systemctl", "stop", v.unit())
	contains(t, imageText(t, filepath.Join(v.stateDir(), "disk-root.raw")), "mine")
}

// slow serves a file in ranges, and not fast.
type slow struct {
	content []byte
	resumed atomic.Int32 // answers that went on where another had broken off
}

func (s *slow) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Range") != "" {
		s.resumed.Add(1)
	}
	w.Header().Set("ETag", `"one"`)
	http.ServeContent(slowWriter{w}, r, "", time.Time{}, bytes.NewReader(s.content))
}

type slowWriter struct{ http.ResponseWriter }

func (w slowWriter) Write(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	n, err := w.ResponseWriter.Write(p)
	w.ResponseWriter.(http.Flusher).Flush()
	return n, err
}

// What pulls an image is killed at random moments, by hand and as a unit: half of
// an image is never seen, nothing stays locked, and the next one goes on.
func TestImagePullKilled(t *testing.T) {
	newerSuiteOnly(t, "what is cut off is ours, and done undisturbed on both")
	t.Parallel()
	s := &slow{content: make([]byte, 24*megabyte)}
	if _, err := rand.NewChaCha8([32]byte{1}).Read(s.content); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	table := "/etc/vmctl/images.toml.d/e2e-killed.toml"
	writeFile(t, table, "[e2e-killed]\nurl = \""+server.URL+"/killed.img\"\n")
	const unit = "vm-image@e2e-killed.service"
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("journal of %s:\n%s", unit, try("journalctl", "-u", unit, "-n", "30", "-o", "short-precise", "--no-pager").all())
		}
		os.Remove(table)
		try("systemctl", "stop", unit)
		try("vmctl", "image", "delete", "--yes", "e2e-killed")
	})
	byHand := func() {
		cmd := exec.Command("vmctl", "image", "pull", "e2e-killed")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond)
		_ = cmd.Process.Kill() // or it has ended
		_ = cmd.Wait()
	}
	byUnit := func() {
		try("systemctl", "reset-failed", unit)
		run(t, "systemctl", "start", "--no-block", unit)
		time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond)
		try("systemctl", "kill", "--signal=KILL", unit)
		waitEnded(t, unit)
	}
	for range 20 {
		for _, kill := range []func(){byHand, byUnit} {
			kill()
			_, err := os.Stat(images + "e2e-killed.json")
			if stored := err == nil; stored {
				contains(t, run(t, "vmctl", "image", "verify", "e2e-killed"), "sound")
				run(t, "vmctl", "image", "delete", "--yes", "e2e-killed")
			} else if try("vmctl", "image", "show", "e2e-killed").code != 3 {
				t.Error("half an image is seen")
			}
		}
	}
	try("systemctl", "reset-failed", unit)
	run(t, "systemctl", "start", unit)
	contains(t, run(t, "vmctl", "image", "verify", "e2e-killed"), "e2e-killed: sound")
	if got, err := os.ReadFile(images + "e2e-killed.img"); err != nil || !bytes.Equal(got, s.content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if s.resumed.Load() == 0 {
		t.Error("no pull went on where another was killed")
	}
	left, err := filepath.Glob(images + ".e2e-killed*")
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

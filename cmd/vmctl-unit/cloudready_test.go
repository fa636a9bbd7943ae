package main

import (
	"testing"

	"github.com/vmctl/vmctl/hypervisor"
)

// TestCloudReady: a guest of cloud-hypervisor's tells by its vsock that it has booted.
func TestCloudReady(t *testing.T) {
	h := newCloudHost(t, "[lifecycle]\nready = \"notify\"\n")
	p := h.start()
	h.notify.wait(t, "STATUS=Running, waiting for the guest to have booted")
	if uid, mode := h.stat(h.paths.VsockSocket(h.vm) + "_1"); uid != vmUser || mode != 0o600 {
		t.Errorf("the socket has the owner %d and the mode %o", uid, mode)
	}
	ready := h.command(nil, "ready", h.vm)
	if err := ready.Start(); err != nil {
		t.Fatal(err)
	}
	h.ask("hello", "hello")
	h.ask("ready", "told\r\n")
	if err := ready.Wait(); err != nil {
		t.Error(err)
	}
	var r hypervisor.Readiness
	h.readJSON(h.paths.Readiness(h.vm), &r)
	if !r.Ready {
		t.Errorf("got %+v", r)
	}
	p.Process.Kill()
	h.cleanup(p)
}

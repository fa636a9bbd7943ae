package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/godbus/dbus/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// check asks a polkit about machines, for a user that is not root.
func check(t *testing.T, p *polkit, names ...string) []error {
	var objects []object
	for _, name := range names {
		objects = append(objects, object{vmObject, name})
	}
	who := &caller{Name: "someone", uid: 12345, pid: int32(os.Getpid()), local: true}
	return p.check(t.Context(), &call{caller: who, method: "/mvirt.VmService/GetVm"}, objects)
}

// Where there is no bus, there is no polkit; where there is one that does not
// answer, nobody may.
func TestPolkitWithoutAnswer(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+dir+"/bus")
	if err := check(t, newPolkit(), "vm")[0]; err != nil {
		t.Errorf("without a bus: %v", err)
	}
	l, err := net.Listen("unix", dir+"/bus")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	for _, err := range check(t, newPolkit(), "vm", "other") {
		wantCode(t, "a bus that hangs up", err, codes.PermissionDenied)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	wantCode(t, "a bus that has died", check(t, newPolkit(), "vm")[0], codes.PermissionDenied)
}

// fakePolkit denies the machine "secret".
type fakePolkit struct{ asked atomic.Int64 }

func (f *fakePolkit) CheckAuthorization(_ subject, _ string, details map[string]string, _ uint32, _ string) (verdict, *dbus.Error) {
	f.asked.Add(1)
	return verdict{Authorized: details["vm"] != "secret", Details: map[string]string{}}, nil
}

func TestPolkit(t *testing.T) {
	services := testBus(t)
	p := newPolkit()
	if err := check(t, p, "vm")[0]; err != nil {
		t.Errorf("without polkit: %v", err)
	}

	// One that is installed, and does not start.
	file := filepath.Join(services, "polkit.service")
	if err := os.WriteFile(file, []byte("[D-BUS Service]\nName="+polkitName+"\nExec=/bin/false\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	other, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.BusObject().Call("org.freedesktop.DBus.ReloadConfig", 0).Err; err != nil {
		t.Fatal(err)
	}
	wantCode(t, "polkit that does not start", check(t, p, "vm")[0], codes.PermissionDenied)

	f := &fakePolkit{}
	if err := other.Export(f, polkitPath, polkitName+".Authority"); err != nil {
		t.Fatal(err)
	}
	if _, err := other.RequestName(polkitName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range 500 {
		names = append(names, fmt.Sprintf("vm%d", i))
	}
	names = append(names, "secret")
	for i, err := range check(t, p, names...) {
		if want := names[i] == "secret"; (status.Code(err) == codes.PermissionDenied) != want || !want && err != nil {
			t.Errorf("%s: %v", names[i], err)
		}
	}
	if n := f.asked.Load(); n != int64(len(names)) {
		t.Errorf("asked %d times, want %d", n, len(names))
	}

	// All calls have one connection, which is made anew.
	var all []string
	count := func() int {
		t.Helper()
		if err := other.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&all); err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	before := count()
	for range 20 {
		check(t, p, "vm")
	}
	if n := count(); n != before {
		t.Errorf("%d names at the bus, %d before", n, before)
	}
	p.bus.Close()
	if err := check(t, p, "vm")[0]; err != nil {
		t.Error(err)
	}
}

// testBus is a bus that is the system's for this test; it returns where its
// services are.
func testBus(t *testing.T) (services string) {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("there is no dbus-daemon")
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(config, []byte(`<busconfig>
<type>session</type><listen>unix:path=`+dir+`/bus</listen><auth>EXTERNAL</auth><servicedir>`+dir+`</servicedir>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy>
</busconfig>`), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "--config-file="+config, "--nofork", "--nopidfile", "--print-address=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); cmd.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+dir+"/bus")
	return dir
}

package qemu_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image/color"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/qemu"
)

// What people reach of a machine with each kind of display: nobody without a
// password, a picture, its keys, and the hypervisor's own commands.
func TestReach(t *testing.T) {
	for _, test := range []struct {
		kind, machine, device string
		heads                 int // of which there are pictures
	}{
		{"vnc", "q35", "virtio", 2}, {"vnc", "pc", "vga", 1}, {"spice", "q35", "qxl", 1}, {"spice", "pc", "virtio", 3},
	} {
		t.Run(test.kind+" "+test.machine, func(t *testing.T) {
			kind := test.kind
			m := start(t, fmt.Sprintf("machine = %q\n[display]\ntype = %q\ndevice = %q\nheads = %d\nclipboard = true\n", test.machine, kind, test.device, test.heads))
			m.want(hypervisor.Started, "")
			c := m.control()
			display := c.(hypervisor.DisplayControl)
			m.do(func(ctx context.Context) error { return display.Authorize(ctx, kind, "12345678", time.Minute) })
			for head := range test.heads {
				picture, err := display.Screenshot(t.Context(), head)
				if err != nil {
					t.Fatal(err)
				}
				if size := picture.Bounds().Size(); size.X < 640 || size.Y < 400 {
					t.Errorf("%v pixels", size)
				}
			}
			if _, err := display.Screenshot(t.Context(), 7); err == nil {
				t.Error("a picture of a monitor that there is not")
			}
			if sets, err := c.(hypervisor.Commander).Native(t.Context(), `{"execute": "query-fdsets"}`); err != nil || sets != "[]" {
				t.Errorf("descriptors are left: %s, %v", sets, err)
			}
		})
	}
}

func TestEveryKeyIsKnown(t *testing.T) {
	m := start(t, "")
	m.want(hypervisor.Started, "")
	keys := m.control().(hypervisor.KeySender)
	for _, key := range (qemu.QEMU{}).Keys() {
		m.do(func(ctx context.Context) error { return keys.SendKeys(ctx, time.Millisecond, key) })
	}
}

func TestCommands(t *testing.T) {
	m := start(t, "")
	m.want(hypervisor.Started, "")
	c := m.control().(hypervisor.Commander)
	if answer, err := c.Human(t.Context(), "info status"); err != nil || !strings.Contains(answer, "running") {
		t.Errorf("%q, %v", answer, err)
	}
	answer, err := c.Native(t.Context(), `{"execute": "qom-get", "arguments": {"path": "/machine", "property": "type"}}`)
	if err != nil || !strings.Contains(answer, "q35") {
		t.Errorf("%s, %v", answer, err)
	}
	for _, command := range []string{"", "info", "{}", "[]", `{"execute": 1}`, `{"execute": "stop", "argument": {}}`, `{"execute": "stop"} {"execute": "quit"}`} {
		if _, err := c.Native(t.Context(), command); err == nil || !strings.Contains(err.Error(), "want a QMP command") {
			t.Errorf("%q: %v", command, err)
		}
	}
	if _, err := c.Native(t.Context(), `{"execute": "nonsense"}`); err == nil {
		t.Error("nonsense was done")
	}
	m.status(c.(hypervisor.Control), hypervisor.StatusRunning)
}

// A conversation ends once all is answered, and not before.
func TestConverse(t *testing.T) {
	m := start(t, "")
	m.want(hypervisor.Started, "")
	talk := func(in io.Reader) ([]map[string]any, error) {
		var out bytes.Buffer
		err := qemu.QEMU{}.Converse(t.Context(), m.paths.QMPSocket("vm"), in, &out)
		var said []map[string]any
		for line := range strings.Lines(out.String()) {
			var v map[string]any
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				t.Errorf("%v in %q", err, line)
			}
			said = append(said, v)
		}
		return said, err
	}
	said, err := talk(strings.NewReader("{\"execute\":\n\"qmp_capabilities\"}{\"execute\": \"query-name\", \"id\": \"x\"} {\"execute\": \"nonsense\"}"))
	if err != nil || len(said) != 4 || said[0]["QMP"] == nil || said[2]["id"] != "x" || said[3]["error"] == nil {
		t.Errorf("%v, %v", said, err)
	}
	if said, err := talk(strings.NewReader("")); err != nil || len(said) > 1 {
		t.Errorf("nothing said: %v, %v", said, err)
	}
	if _, err := talk(strings.NewReader("info status\n")); err == nil || !strings.Contains(err.Error(), "want commands in JSON") {
		t.Errorf("garbage: %v", err)
	}
	if _, err := talk(brokenInput{}); !errors.Is(err, errNoInput) {
		t.Errorf("input that fails: %v", err)
	}
	if _, err := talk(strings.NewReader(`{"execute": "qmp_capabilities"} {"execute": "quit"} {"execute": "query-name"}`)); err != nil {
		t.Errorf("its end: %v", err)
	}
}

var errNoInput = errors.New("no input")

type brokenInput struct{}

func (brokenInput) Read([]byte) (int, error) { return 0, errNoInput }

func TestDecodePPM(t *testing.T) {
	picture, err := qemu.DecodePPM([]byte("P6\n2 1\n255\n\x01\x02\x03\xff\xfe\xfd"))
	if err != nil || picture.Bounds().Dx() != 2 || picture.At(0, 0) != (color.NRGBA{1, 2, 3, 255}) || picture.At(1, 0) != (color.NRGBA{255, 254, 253, 255}) {
		t.Errorf("%v, %v", picture, err)
	}
	for _, bad := range []string{
		"", "P6", "P6\n", "P6\n1 1\n255", "P6\n1 1\n255\n", "P6\n1 1\n255\n12", "P6\n1 1\n255\n1234", "P5\n1 1\n255\n123", "P6\n1 1\n65535\n123",
		"P6\n0 1\n255\n", "P6\n-1 -1\n255\n123", "P6\n99999999999999999999 1\n255\n123", "P6\n4611686018427387904 4\n255\n", "P6\nx 1\n255\n123",
	} {
		if picture, err := qemu.DecodePPM([]byte(bad)); err == nil {
			t.Errorf("%q: %v", bad, picture.Bounds())
		}
	}
}

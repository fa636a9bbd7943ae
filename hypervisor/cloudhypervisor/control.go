package cloudhypervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/vmctl/vmctl/hypervisor"
)

// control is a running cloud-hypervisor.
type control struct{ *client }

var (
	_ hypervisor.DiskMeter    = control{}
	_ hypervisor.Commander    = control{}
	_ hypervisor.PanicWatcher = CloudHypervisor{}
)

// LeavesPanics implements [hypervisor.PanicWatcher].
func (CloudHypervisor) LeavesPanics() {}

// Control implements [hypervisor.Hypervisor]. That somebody accepts the connection
// does not say that cloud-hypervisor has come so far as to answer.
func (CloudHypervisor) Control(ctx context.Context, socket string) (hypervisor.Control, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("connecting to cloud-hypervisor: %w", err)
	}
	return control{newClient(conn)}, nil
}

// ControlType implements [hypervisor.Hypervisor].
func (CloudHypervisor) ControlType() reflect.Type { return reflect.TypeFor[control]() }

// info is the answer to vm.info, as far as it is used.
type info struct {
	State string `json:"state"`
}

// Status implements [hypervisor.Control]. A machine that is not there is being made,
// or has ended.
func (c control) Status(ctx context.Context) (hypervisor.Status, error) {
	var is info
	if err := c.get(ctx, "vm.info", &is); err != nil {
		return "", err
	}
	switch is.State {
	case "Running":
		return hypervisor.StatusRunning, nil
	case "Paused", "BreakPoint":
		return hypervisor.StatusPaused, nil
	case "Created", "Shutdown":
		return hypervisor.StatusStopping, nil
	}
	return "", fmt.Errorf("vm.info: cloud-hypervisor says the state %.40q", is.State)
}

func (c control) PowerButton(ctx context.Context) error {
	return c.put(ctx, "vm.power-button", nil, nil)
}

// Pause is no error of a machine that is paused, nor Resume of one that runs.
func (c control) Pause(ctx context.Context) error {
	return c.become(ctx, hypervisor.StatusPaused, "vm.pause")
}

func (c control) Resume(ctx context.Context) error {
	return c.become(ctx, hypervisor.StatusRunning, "vm.resume")
}

func (c control) become(ctx context.Context, want hypervisor.Status, path string) error {
	err := c.put(ctx, path, nil, nil)
	var refused *Error
	if !errors.As(err, &refused) {
		return err
	}
	if is, infoErr := c.Status(ctx); infoErr != nil || is != want {
		return err
	}
	return nil
}

// Reset implements [hypervisor.Control]. Only a machine that runs can be reset.
func (c control) Reset(ctx context.Context) error {
	if status, err := c.Status(ctx); err == nil && status == hypervisor.StatusPaused {
		if err := c.Resume(ctx); err != nil {
			return err
		}
	}
	return c.put(ctx, "vm.reboot", nil, nil)
}

// Quit may lose the race for the answer to cloud-hypervisor's end, which is as good.
func (c control) Quit(ctx context.Context) error {
	err := c.put(ctx, "vmm.shutdown", nil, nil)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

func (c control) Close() error { return c.conn.Close() }

// DiskTraffic implements [hypervisor.DiskMeter].
func (c control) DiskTraffic(ctx context.Context) (map[string]hypervisor.DiskTraffic, error) {
	var counters map[string]map[string]uint64
	if err := c.get(ctx, "vm.counters", &counters); err != nil {
		return nil, err
	}
	traffic := map[string]hypervisor.DiskTraffic{}
	for id, n := range counters {
		if name, ok := strings.CutPrefix(id, diskID("")); ok {
			traffic[name] = hypervisor.DiskTraffic{ReadBytes: n["read_bytes"], WriteBytes: n["write_bytes"], Reads: n["read_ops"], Writes: n["write_ops"]}
		}
	}
	return traffic, nil
}

// Human implements [hypervisor.Commander]: a command is a request by its name, with
// what it takes in JSON after it, e.g. `vm.resize {"desired_vcpus": 2}`.
func (c control) Human(ctx context.Context, command string) (string, error) {
	answer, err := c.Native(ctx, command)
	if err != nil || answer == "" {
		return answer, err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, []byte(answer), "", "  "); err != nil {
		return "", err
	}
	return b.String(), nil
}

// requestName is what a request may be called: nothing that could end its line.
var requestName = regexp.MustCompile(`^vmm?\.[a-z-]+$`)

// Native implements [hypervisor.Commander].
func (c control) Native(ctx context.Context, command string) (string, error) {
	name, body, _ := strings.Cut(strings.TrimSpace(command), " ")
	if !requestName.MatchString(name) {
		return "", fmt.Errorf("want a request such as vm.info or vm.resize {\"desired_vcpus\": 2}, got %q", command)
	}
	var content any
	if body = strings.TrimSpace(body); body != "" {
		if !json.Valid([]byte(body)) {
			return "", fmt.Errorf("%s: want JSON, got %q", name, body)
		}
		content = json.RawMessage(body)
	}
	method := "PUT"
	if slices.Contains([]string{"vmm.ping", "vm.info", "vm.counters"}, name) {
		method = "GET"
	}
	var answer json.RawMessage
	err := c.request(ctx, call{method: method, path: name, body: content}, &answer)
	return string(answer), err
}

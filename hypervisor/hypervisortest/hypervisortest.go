// Package hypervisortest is what every hypervisor must hold to, as a test.
package hypervisortest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// Subject is the hypervisor under test.
type Subject struct {
	Hypervisor hypervisor.Hypervisor
	// Host is one on which it can do all that it knows.
	Host hypervisor.Host
	// Constant are the keys of devices that every machine of it has, the same.
	Constant []string
	// Elsewhere are keys of which nothing is in its plans, because others act on
	// them.
	Elsewhere []string
	// Card is what a network card that it can have is plugged into, as its table
	// in a definition.
	Card string
	// Opened says which files a plan's command line has the hypervisor open,
	// by parsing it as the hypervisor would.
	Opened func(t *testing.T, plan *hypervisor.Plan) []string
}

// Run tests it.
func Run(t *testing.T, s Subject) {
	t.Run("examples", s.examples)
	t.Run("devices", s.devices)
	t.Run("keys", s.keys)
	t.Run("sockets", s.sockets)
	t.Run("hostile", s.hostile)
	t.Run("secrets", s.secrets)
}

func (s Subject) plan(m *config.Machine) (*hypervisor.Plan, []config.Problem) {
	return s.Hypervisor.Plan(m, s.Host, config.SystemPaths(""))
}

// examples: a machine is planned or refused, the same each time; what is
// refused is named; what is planned can be executed.
func (s Subject) examples(t *testing.T) {
	for _, m := range config.Examples() {
		before := marshal(t, m)
		plan, problems := s.plan(m)
		again, problemsAgain := s.plan(m)
		if !reflect.DeepEqual(plan, again) || !reflect.DeepEqual(problems, problemsAgain) {
			t.Errorf("%s: planning twice gave two plans", m.Name)
		}
		if marshal(t, m) != before {
			t.Errorf("%s: planning changed the machine", m.Name)
		}
		if (plan == nil) != (len(problems) > 0) {
			t.Errorf("%s: plan %v with problems %v", m.Name, plan != nil, problems)
		}
		for _, p := range problems {
			if p.Key == "" || p.Text == "" {
				t.Errorf("%s: a problem without key or text: %v", m.Name, p)
			}
		}
		if plan != nil && !filepath.IsAbs(plan.Argv[0]) {
			t.Errorf("%s: %q is not absolute", m.Name, plan.Argv[0])
		}
	}
}

// devices: each device alone in a machine is planned, which changes the plan,
// or refused by its own key.
func (s Subject) devices(t *testing.T) {
	for _, example := range config.Examples() {
		for _, d := range example.Devices() {
			if slices.Contains(s.Constant, d.Key()) {
				continue
			}
			m := s.bare(t)
			if example.MachineType != "microvm" {
				m.MachineType = example.MachineType
			}
			without, problems := s.plan(m)
			if problems != nil && m.MachineType != "q35" && problems[0].Key == "machine" {
				m.MachineType = "q35"
				without, problems = s.plan(m)
			}
			if problems != nil {
				t.Fatalf("the bare machine: %v", problems)
			}
			give(t, m, d)
			with, problems := s.plan(m)
			for _, p := range problems {
				if p.Key != d.Key() && !strings.HasPrefix(p.Key, d.Key()+".") {
					t.Errorf("%s of %s is refused by the key %q: %s", d.Key(), example.Name, p.Key, p.Text)
				}
			}
			if problems == nil && reflect.DeepEqual(without, with) {
				t.Errorf("%s of %s is neither planned nor refused", d.Key(), example.Name)
			}
		}
	}
}

// sockets: the longest legal name leaves every socket's path legal, with and
// without its terminating zero byte (unix(7): 108).
func (s Subject) sockets(t *testing.T) {
	m := s.bare(t)
	m.Name = strings.Repeat("x", 63)
	m.GuestAgent.Enabled = true
	plan, problems := s.plan(m)
	if problems != nil && problems[0].Key == "guest_agent.enabled" { // it has no channel
		m.GuestAgent.Enabled = false
		plan, problems = s.plan(m)
	}
	if problems != nil {
		t.Fatal(problems)
	}
	for _, d := range plan.Descriptors {
		if len(d.Path) > 107 {
			t.Errorf("%s has %d bytes", d.Path, len(d.Path))
		}
	}
}

// hostile: whatever a path is made of, the hypervisor opens that path and
// nothing else is read out of it.
func (s Subject) hostile(t *testing.T) {
	for _, path := range []string{
		"/srv/a,readonly=on,b", "/srv/a,,b", `/srv/"a" 'b'`, `/srv/a\b\`, "/srv/100%n", "/srv/$HOME", "/srv/ü☃", "/srv/ ", "/srv/a=b:c;d",
		"/srv/<a>&b", "/srv/a\tb", "/srv/{\"driver\":\"raw\"}", "/srv/-kernel", "/srv/[a]", "/srv/json:{}", "/srv/nbd://a",
	} {
		m := s.bare(t)
		m.Boot.Kernel, m.Boot.Initrd = path+"k", path+"i"
		m.Disks = []config.Disk{disk(path)}
		plan, problems := s.plan(m)
		if problems != nil {
			t.Fatal(problems)
		}
		files := s.Opened(t, plan)
		for _, want := range []string{path, path + "k", path + "i"} {
			if !slices.Contains(files, want) {
				t.Errorf("%q is not among %q", want, files)
			}
			if !slices.ContainsFunc(plan.Files, func(f hypervisor.File) bool { return f.Path == want }) {
				t.Errorf("%q is not among the files of the plan", want)
			}
		}
		clean := s.bare(t)
		clean.Boot.Kernel, clean.Boot.Initrd = "/srv/k", "/srv/i"
		clean.Disks = []config.Disk{disk("/srv/plain")}
		plain, problems := s.plan(clean)
		if problems != nil {
			t.Fatal(problems)
		}
		if len(plan.Argv) != len(plain.Argv) {
			t.Errorf("%q changes the number of arguments", path)
		}
	}
}

// secrets: no secret is in what others can see of a plan.
func (s Subject) secrets(t *testing.T) {
	m := s.bare(t)
	m.CloudInit = config.CloudInit{Enabled: true, UserData: "s3cret", PasswordHash: "s3cret"}
	m.Credentials = []config.Credential{{Name: "password", Value: "s3cret"}}
	plan, problems := s.plan(m)
	for _, p := range problems {
		if strings.Contains(p.Error(), "s3cret") {
			t.Errorf("a problem with a secret: %v", p)
		}
	}
	if plan != nil && strings.Contains(marshal(t, plan)+fmt.Sprint(plan.Argv), "s3cret") {
		t.Error("a plan with a secret")
	}
}

// bare is a machine with no device, which only has a kernel.
func (s Subject) bare(t *testing.T) *config.Machine {
	t.Helper()
	file := filepath.Join(t.TempDir(), "bare.toml")
	text := `
hypervisor = "` + s.Hypervisor.Name() + `"
accel = "kvm"
[boot]
kernel = "/boot/vmlinuz"
[console]
device = "virtio"
[serial]
enabled = false
[guest_agent]
enabled = false
[balloon]
enabled = false
[vsock]
enabled = false
`
	if !slices.Contains(s.Constant, "rng") {
		text += "[rng]\nenabled = false\n"
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	vm := config.LoadFile(config.SystemPaths(""), file)
	if vm.Machine == nil {
		t.Fatal(vm.Problems)
	}
	return vm.Machine
}

func disk(path string) config.Disk {
	return config.Disk{Name: "root", Path: path, Bus: "virtio", Media: "disk", Format: "raw", Cache: "auto", AIO: "auto", Discard: true, Serial: "root"}
}

// give makes d the only device of m.
func give(t *testing.T, m *config.Machine, d config.Device) {
	t.Helper()
	switch d := d.(type) {
	case config.Disk:
		m.Disks = append(m.Disks, d)
	case config.NIC:
		m.NICs = append(m.NICs, d)
	case config.Share:
		m.Shares = append(m.Shares, d)
	case config.PCI:
		m.PCI = append(m.PCI, d)
	case config.USB:
		m.USB = append(m.USB, d)
	case config.Credential:
		m.Credentials = append(m.Credentials, d)
	case config.Serial:
		m.Serial = d
	case config.GuestAgent:
		m.GuestAgent = d
	case config.Vsock:
		m.Vsock = d
	case config.TPM:
		m.TPM = d
	case config.Watchdog:
		m.Watchdog = d
	case config.RNG:
		m.RNG = d
	case config.Balloon:
		m.Balloon = d
	case config.Display:
		m.Display = d
	default:
		t.Fatalf("this suite does not know %T", d)
	}
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

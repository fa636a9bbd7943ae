package cloudhypervisor

import (
	"flag"
	"slices"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/hypervisortest"
)

var update = flag.Bool("update", false, "rewrite what the golden files want")

func subject() hypervisortest.Subject {
	return hypervisortest.Subject{
		Hypervisor: CloudHypervisor{},
		// A host with everything.
		Host: hypervisor.Host{
			CPUVirtualization: true,
			Nodes:             map[string]bool{"/dev/kvm": true, "/dev/net/tun": true},
			Programs: map[string]string{
				"cloud-hypervisor": "/usr/bin/cloud-hypervisor", "virtiofsd": "/usr/libexec/virtiofsd", "swtpm": "/usr/bin/swtpm",
			},
			CloudFirmware: []string{"/usr/share/cloudhv-efi-x86-64/CLOUDHV.fd"},
			HugepageSize:  2 << 20,
			Systemd:       257,
		},
		Constant:  []string{"rng"},
		Elsewhere: []string{"lifecycle.on_panic"}, // the monitor
		Card:      `network = "default"`,
		Opened:    opened,
	}
}

func TestSuite(t *testing.T) { hypervisortest.Run(t, subject()) }
func TestPlan(t *testing.T)  { subject().Golden(t, *update) }

// TestLongNames: what is found by the path of a socket has one that the kernel takes,
// or is refused.
func TestLongNames(t *testing.T) {
	long := strings.Repeat("x", 63)
	m := subject().Load(t, long, "[tpm]\nenabled = true\n[share.src]\npath = \"/srv\"\n")
	if plan, problems := subject().Hypervisor.Plan(m, subject().Host, config.SystemPaths("")); plan == nil {
		t.Error(problems)
	}
	m.Shares[0].Name = long
	_, problems := subject().Hypervisor.Plan(m, subject().Host, config.SystemPaths(""))
	if len(problems) != 1 || problems[0].Key != "share."+long || !strings.Contains(problems[0].Text, "have 58 characters less") {
		t.Error(problems)
	}
}

// TestHotPeer: a vhost-user peer takes memory that it can map, and root to show its
// socket to a machine that runs.
func TestHotPeer(t *testing.T) {
	for _, test := range []struct {
		shared, user bool
		want         string // part of the problem, "" for none
	}{
		{shared: true},
		{want: "nic.x.vhost_user: vm was started with memory that no other process can map"},
		{shared: true, user: true, want: "nic.x.vhost_user: a user's own machine sees no more of the host than at its start: it has /run/s by a restart alone"},
		{user: true, want: "/run/s by a restart alone"}, // and not by shared memory either
	} {
		m := subject().Load(t, "vm", "[nic.x]\nvhost_user = \"/run/s\"\n")
		m.MemoryOptions.Shared = test.shared
		started := *m
		started.NICs = nil
		paths := config.SystemPaths("")
		paths.User = test.user
		plan, problems := CloudHypervisor{}.PlanNIC(hypervisor.HotNIC{Machine: m, NIC: m.NICs[0], Host: subject().Host, Paths: paths, StartedAs: &started})
		if test.want == "" {
			if len(problems) > 0 || len(plan.Files) != 1 || plan.Files[0].At != paths.ShownFile("vm", "nic.x") {
				t.Errorf("got %+v, %v", plan, problems)
			}
		} else if len(problems) != 1 || !strings.Contains(problems[0].Key+": "+problems[0].Text, test.want) {
			t.Errorf("%+v: got %v", test, problems)
		}
	}
}

// opened are the files that a command line names.
func opened(t *testing.T, plan *hypervisor.Plan) []string {
	var files []string
	for _, disk := range values(plan.Argv, "--disk") {
		parsed, err := parseOptions(disk, version{53, 0})
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, parsed["path"])
	}
	for _, name := range []string{"--kernel", "--initramfs", "--firmware"} {
		if i := slices.Index(plan.Argv, name); i >= 0 {
			files = append(files, plan.Argv[i+1])
		}
	}
	return files
}

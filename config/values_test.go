package config

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"1B": 1, "1K": 1 << 10, "512M": 512 << 20, "20GiB": 20 << 30, "2T": 2 << 40, "1TiB": 1 << 40, "1.5G": 3 << 29, "0.5K": 512,
		"1.50M": 3 << 19, "0B": 0, "0.0G": 0, "8388607T": 8388607 << 40, "9223372036854775807B": 1<<63 - 1, "007M": 7 << 20,
	} {
		got, wanted := parseSize(text)
		if got != want || wanted != "" {
			t.Errorf("%q gave %d, want %d (%s)", text, got, want, wanted)
		}
		if back, wanted := parseSize(got.String()); back != got {
			t.Errorf("%q is written %q, which gave %d (%s)", text, got, back, wanted)
		}
	}
	for _, text := range []string{
		"", "G", "1", "-1G", "+1G", "1 G", " 1G", "1G ", "1g", "1GB", "1P", "1.G", ".5G", "1.5.5G", "1,5G", "0.3B", "1e3M",
		"8388608T", "99999999T", "99999999999999999999B", "9223372036854775808B", "0.9999999999999T", "1G1G", "٣G", "1.123456789G", "0x10M",
	} {
		if got, wanted := parseSize(text); wanted == "" {
			t.Errorf("%q gave %d", text, got)
		}
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "90": 90 * time.Second, "0": 0, "3min": 3 * time.Minute, "1h 30min": 90 * time.Minute, "1h30min": 90 * time.Minute,
		"500ms": 500 * time.Millisecond, "2 min 5": 125 * time.Second, "1.5s": 1500 * time.Millisecond, "1us": time.Microsecond, "1µs": time.Microsecond,
		"1w 1d": 8 * 24 * time.Hour, "1M": 30*24*time.Hour + 10*time.Hour + 33*time.Minute + 36*time.Second, "1y": 365*24*time.Hour + 6*time.Hour,
		" 5 seconds ": 5 * time.Second,
	} {
		got, ok := parseDuration(text)
		if !ok || time.Duration(got) != want {
			t.Errorf("%q gave %s, %v, want %s", text, time.Duration(got), ok, want)
		}
		if d, err := ParseDuration(text); err != nil || d != got {
			t.Errorf("%q gave %s, %v", text, d, err)
		}
		if back, ok := parseDuration(got.String()); !ok || back != got {
			t.Errorf("%q is written %q, which gave %s", text, got, time.Duration(back))
		}
	}
	if got, ok := parseDuration("infinity"); !ok || got != Infinity || got.String() != "infinity" {
		t.Errorf("infinity gave %s, %v", got, ok)
	}
	for _, text := range []string{"", " ", "s", "-1s", "1x", "1,5s", "s1", "1s2x", "infinity 1s", "293y", "1y 292y", "999999999999999999999s", "1.s", "0x1s"} {
		if got, ok := parseDuration(text); ok {
			t.Errorf("%q gave %s", text, got)
		}
		if _, err := ParseDuration(text); err == nil || !strings.HasPrefix(err.Error(), "want a span of time") {
			t.Errorf("%q gave %v", text, err)
		}
	}
}

func TestForward(t *testing.T) {
	for text, want := range map[string]Forward{
		"2222:22/tcp":         {"", 2222, 22, TCP},
		"2222:22":             {"", 2222, 22, TCP},
		"5353:53/udp":         {"", 5353, 53, UDP},
		"127.0.0.1:8080:80":   {"127.0.0.1", 8080, 80, TCP},
		"[::1]:8080:80/tcp":   {"::1", 8080, 80, TCP},
		"[0:0::1]:1:65535":    {"::1", 1, 65535, TCP},
		"0.0.0.0:8080:80/udp": {"0.0.0.0", 8080, 80, UDP},
	} {
		got, wanted := parseForward(text)
		if got != want || wanted != "" {
			t.Errorf("%q gave %+v, want %+v (%s)", text, got, want, wanted)
		}
		if back, wanted := parseForward(got.String()); back != got {
			t.Errorf("%q is written %q, which gave %+v (%s)", text, got, back, wanted)
		}
	}
	for _, text := range []string{
		"", "22", ":22", "22:", "0:22", "22:0", "65536:22", "22:65536", "-1:22", "+1:22", "a:b", "22:22/", "22:22/TCP", "22:22/sctp", "22:22/tcp/udp",
		"::1:8080:80", "[127.0.0.1]:8080:80", "[::1:8080:80", "::1]:8080:80", "localhost:8080:80", "127.0.0.1:8080", ":8080:80", "[]:8080:80",
		"[fe80::1%eth0]:8080:80", "1:2:3:4", " 22:22",
	} {
		if got, wanted := parseForward(text); wanted == "" {
			t.Errorf("%q gave %+v", text, got)
		}
	}
}

func TestOverlaps(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"80:80", "80:81", true},
		{"80:80/tcp", "80:80/udp", false},
		{"80:80", "81:80", false},
		{"127.0.0.1:80:80", "127.0.0.2:80:80", false},
		{"127.0.0.1:80:80", "80:80", true},
		{"127.0.0.1:80:80", "0.0.0.0:80:80", true},
		{"[::1]:80:80", "127.0.0.1:80:80", false},
		{"[::1]:80:80", "[::]:80:80", true},
		{"0.0.0.0:80:80", "[::]:80:80", false},
		{"0.0.0.0:80:80", "[::1]:80:80", false},
		{"[::]:80:80", "80:80", true},
	} {
		a, _ := parseForward(c.a)
		b, _ := parseForward(c.b)
		if a.overlaps(b) != c.want || b.overlaps(a) != c.want {
			t.Errorf("%s and %s: got %v, want %v", c.a, c.b, a.overlaps(b), c.want)
		}
	}
}

func TestCheckName(t *testing.T) {
	long := strings.Repeat("a-", 31) + "a"
	for _, name := range []string{"a", "0", "web-1", "a--b", long} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "-", "-a", "a-", "A", "a.b", "a_b", "a/b", "ä", "a b", "a\n", "..", long + "a", "a@b", "%i"} {
		if CheckName(name) == nil {
			t.Errorf("%q is a name", name)
		}
	}
}

// TestDerived keeps what is derived legal, stable, and apart for other hosts,
// machines and cards.
func TestDerived(t *testing.T) {
	if got, want := DeriveMAC("host", "web", "lan"), DeriveMAC("host", "web", "lan"); got != want {
		t.Errorf("got %s, then %s", got, want)
	}
	seen := map[MAC]bool{}
	for _, parts := range [][3]string{{"h", "web", "lan"}, {"i", "web", "lan"}, {"h", "web2", "lan"}, {"h", "web", "wan"}, {"h", "we", "blan"}} {
		mac := DeriveMAC(parts[0], parts[1], parts[2])
		var again MAC
		if want := again.parse(string(mac)); want != "" || again != mac {
			t.Errorf("%s: want %s", mac, want)
		}
		if seen[mac] {
			t.Errorf("%v has the address of another", parts)
		}
		seen[mac] = true
	}
	uuid := DeriveUUID("host", "web")
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(string(uuid)) {
		t.Errorf("%s is no UUID of version 8", uuid)
	}
	if cid := DeriveCID("host", "web"); cid < 1<<20 || cid > 1<<20+1<<31 {
		t.Errorf("got %d", cid)
	}
}

// TestPathLengths keeps the sockets of the longest name within what the kernel
// takes.
func TestPathLengths(t *testing.T) {
	name := strings.Repeat("a", maxName)
	p := SystemPaths("")
	for _, path := range []string{p.ConsoleSocket(name), p.ControlSocket(name), p.QMPSocket(name), p.AgentSocket(name)} {
		if len(path) > 107 {
			t.Errorf("%s has %d bytes", path, len(path))
		}
	}
}

// TestProblem finds the line of any key of a machine that was loaded, and does
// without where there is none.
func TestProblem(t *testing.T) {
	vm := buildText(t, "cpus = 2\n\n[disk.root]\nsize = \"1G\"\n[credentials]\n\"a.b.c\" = \"x\"\n[nic]\nlan = { user = true }\n")
	if vm.Machine == nil {
		t.Fatal(vm.Problems)
	}
	for key, want := range map[string]string{
		"cpus":              "test.toml:1: cpus: want 3",
		"disk.root":         "test.toml:3: disk.root: want 3",
		"disk.root.size":    "test.toml:4: disk.root.size: want 3",
		"disk.root.bus":     "test.toml:3: disk.root.bus: want 3",
		"credentials.a.b.c": "test.toml:6: credentials.a.b.c: want 3",
		"nic.lan":           "test.toml:8: nic.lan: want 3",
		"nic.lan.user":      "test.toml:8: nic.lan.user: want 3",
		"tpm.enabled":       "test.toml: tpm.enabled: want 3",
		"":                  "test.toml: want 3",
	} {
		if got := vm.Machine.Problem(key, "want %d", 3).Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	text, err := json.Marshal(vm.Machine)
	if err != nil {
		t.Fatal(err)
	}
	var back Machine
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if got := back.Problem("cpus", "want 3").Error(); got != "cpus: want 3" {
		t.Errorf("after JSON got %q", got)
	}
}

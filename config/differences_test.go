package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
)

func TestDifferences(t *testing.T) {
	parse := func(text string) *Machine {
		t.Helper()
		p := hostPaths(t)
		write(t, p.VMDirs[0]+"/web.toml", text)
		vm := LoadFile(p, p.VMDirs[0]+"/web.toml")
		if len(vm.Problems) > 0 {
			t.Fatal(vm.Problems)
		}
		// As in a record.
		b, err := json.Marshal(vm.Machine)
		if err != nil {
			t.Fatal(err)
		}
		m := new(Machine)
		if err := json.Unmarshal(b, m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	base := "[disk.a]\nsize = \"1G\"\n[nic.lan]\nuser = true\nforward = [\"2222:22\"]\n"
	for name, test := range map[string]struct {
		from, to string
		want     []Difference
	}{
		"nothing": {base, base, nil},
		"values": {"cpus = 2\nautostart = true\n" + base, "memory = \"2G\"\n" + base + "[lifecycle]\nstop_timeout = \"1min\"\n", []Difference{
			{"cpus", "2", "1"}, {"memory", `"1G"`, `"2G"`}, {"autostart", "true", "false"}, {"cpu.cores", "2", "1"}, {"lifecycle.stop_timeout", `"180s"`, `"60s"`}}},
		"lists": {base, "requires = [\"db\", \"x\"]\n[disk.a]\nsize = \"1G\"\n[nic.lan]\nnetwork = \"default\"\naddress = \"10.0.0.2\"\n[service]\nNice = 3\n", []Difference{
			{"requires", "", `["db", "x"]`}, {"nic.lan.network", "", `"default"`}, {"nic.lan.user", "true", "false"}, {"nic.lan.address", "", `"10.0.0.2"`}, {"nic.lan.forward", `["2222:22/tcp"]`, ""}, {"service", "", `[Nice = "3"]`}}},
		"devices": {base, "[disk.b]\nsize = \"1G\"\nformat = \"raw\"\n[nic.lan]\nuser = true\nforward = [\"2222:22\"]\n", []Difference{
			{"disk.a", `{ size = "1G", format = "qcow2", serial = "a" }`, ""}, {"disk.b", "", `{ size = "1G", format = "raw", serial = "b" }`}}},
		"rules": {base, "[disk.a]\nsize = \"1G\"\n[nic.lan]\nnetwork = \"default\"\nallow_in = [\"tcp/22 from 10.0.0.0/8\"]\ndeny_out = [\"icmp to 10.0.0.1\", \"any\"]\n[nic.wan]\nbridge = \"br0\"\nmac = \"52:54:00:00:00:01\"\ndeny_in = [\"udp/8000-8100\"]\n", []Difference{
			{"nic.lan.network", "", `"default"`}, {"nic.lan.user", "true", "false"},
			{"nic.lan.forward", `["2222:22/tcp"]`, ""}, {"nic.lan.allow_in", "", `["tcp/22 from 10.0.0.0/8"]`}, {"nic.lan.deny_out", "", `["icmp to 10.0.0.1", "any"]`},
			{"nic.wan", "", `{ bridge = "br0", mac = "52:54:00:00:00:01", queues = 1, deny_in = ["udp/8000-8100"] }`}}},
		"secrets": {base + "[cloud_init]\npassword_hash = \"$6$a\"\n[credentials]\nx = \"1\"\n", base + "[cloud_init]\npassword_hash = \"$6$b\"\n[credentials]\nx = \"2\"\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Differences(parse(test.from), parse(test.to)); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %q\nwant %q", got, test.want)
			}
		})
	}
}

// Each value is written as a definition has it, none as JSON.
func TestDifferencesKnowEveryType(t *testing.T) {
	var look func(s *table, header string)
	look = func(s *table, header string) {
		for _, f := range s.fields {
			if f.sub != nil {
				look(f.sub, join(header, f.key))
				continue
			}
			typ := f.typ
			for typ.Kind() == reflect.Slice || typ.Kind() == reflect.Pointer {
				typ = typ.Elem()
			}
			if _, text := reflect.Zero(typ).Interface().(fmt.Stringer); text {
				continue
			}
			switch typ {
			case reflect.TypeFor[Argument](): // in no record: what it does is
				continue
			case reflect.TypeFor[Rule](), reflect.TypeFor[Setting](), reflect.TypeFor[Credential]():
				continue
			}
			if typ.Kind() == reflect.Struct || typ.Kind() == reflect.Map {
				t.Errorf("%s: nothing writes a %v", join(header, f.key), typ)
			}
		}
	}
	look(schemaOf(reflect.TypeFor[Machine]()), "")
}

// Package cloudinit knows what cloud-init in a guest is told: the four files
// of a NoCloud seed, and the ISO image that carries them.
//
// It knows nothing of hypervisors or units: who attaches the image, and where
// it lies, is not its business. It reads files only through the function that
// it is given.
//
// What is not given is made from the definition:
//
//   - meta-data: the machine's UUID as instance-id, so that cloud-init does its
//     once-per-instance work once in the machine's life, and the hostname;
//   - network-config: DHCP on every card, found by its MAC address;
//   - user-data: a cloud-config of hostname, ssh_keys, user and password_hash.
//
// Given user_data is passed on byte for byte. What ssh_keys, user and
// password_hash say then goes into vendor-data, which cloud-init merges below
// user-data: a key that user-data sets itself wins. With vendor_data given as
// well there is no place left for them, and that is an error.
package cloudinit

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// MaxFile is the largest file, in bytes, that a definition may name for the
// seed. cloud-init itself is slow long before that.
const MaxFile = 16 << 20

// File is one file of the seed.
type File struct {
	Name string `json:"name"` // as NoCloud wants it: "user-data"
	Data []byte `json:"-"`
}

// Files returns the files of m's seed, always the same four in the same order.
// read reads a file that the definition names; [ReadFile] is the one to use
// outside of tests. An error is a [config.Problem] and names the key.
func Files(m *config.Machine, read func(path string) ([]byte, error)) ([]File, error) {
	c := m.CloudInit
	userData, vendorData := cloudConfig(seedConfig{Hostname: hostname(m)}), cloudConfig(seedConfig{})
	if c.UserData == "" {
		userData = cloudConfig(userConfig(m))
	} else if key := accountKey(c); key != "" {
		if c.VendorData != "" {
			return nil, m.Problem(key, "want it in user_data or vendor_data, since both are given")
		}
		vendorData = cloudConfig(userConfig(m))
	}
	files := []File{
		{"user-data", userData},
		{"meta-data", marshal(metaData{InstanceID: string(m.UUID), LocalHostname: hostname(m)})},
		{"network-config", marshal(networkConfig(m))},
		{"vendor-data", vendorData},
	}
	given := []struct {
		key  string
		text config.Text
	}{
		{"cloud_init.user_data", c.UserData},
		{"cloud_init.meta_data", c.MetaData},
		{"cloud_init.network_config", c.NetworkConfig},
		{"cloud_init.vendor_data", c.VendorData},
	}
	for i, g := range given {
		if g.text == "" {
			continue
		}
		data, err := content(g.text, read)
		if err != nil {
			return nil, m.Problem(g.key, "%v", err)
		}
		files[i].Data = data
	}
	return files, nil
}

// content is what t says, or what the file has that it names.
func content(t config.Text, read func(path string) ([]byte, error)) ([]byte, error) {
	if path, ok := t.Path(); ok {
		return read(path)
	}
	return []byte(t), nil
}

// ReadFile reads a regular file of at most [MaxFile] bytes. Anything else,
// such as a FIFO or a device, is an error instead of a wait without end.
func ReadFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: want a regular file, got %s", path, info.Mode().Type())
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxFile {
		return nil, fmt.Errorf("%s: want at most %d bytes", path, MaxFile)
	}
	return data, nil
}

// hostname is what the guest is to call itself.
func hostname(m *config.Machine) string { return cmp.Or(m.CloudInit.Hostname, m.Name) }

// accountKey is the first key given of those that describe the user, "" where
// none is.
func accountKey(c config.CloudInit) string {
	switch {
	case len(c.SSHKeys) > 0:
		return "cloud_init.ssh_keys"
	case c.User != "":
		return "cloud_init.user"
	case c.PasswordHash != "":
		return "cloud_init.password_hash"
	}
	return ""
}

// seedConfig is the part of cloud-init's cloud-config that we write.
type seedConfig struct {
	Hostname   string   `json:"hostname,omitempty"`
	PreferFQDN *bool    `json:"prefer_fqdn_over_hostname,omitempty"`
	User       *account `json:"user,omitempty"`
	SSHKeys    []string `json:"ssh_authorized_keys,omitempty"`
}

// account changes the image's default user, which keeps the groups, the shell
// and the sudo rule that the distribution gives it.
type account struct {
	Name string `json:"name,omitempty"`
	// hashed_passwd and not the top-level "password": cloud-init takes a
	// yescrypt hash there for the password itself.
	HashedPassword string `json:"hashed_passwd,omitempty"`
	LockPassword   *bool  `json:"lock_passwd,omitempty"`
}

// userConfig is what the definition says by keys of its own.
func userConfig(m *config.Machine) seedConfig {
	c := m.CloudInit
	s := seedConfig{Hostname: hostname(m), PreferFQDN: new(false), SSHKeys: c.SSHKeys}
	if c.User != "" || c.PasswordHash != "" {
		s.User = &account{Name: c.User, HashedPassword: string(c.PasswordHash)}
	}
	if c.PasswordHash != "" {
		s.User.LockPassword = new(false)
	}
	return s
}

// metaData is NoCloud's meta-data.
type metaData struct {
	InstanceID    string `json:"instance-id"`
	LocalHostname string `json:"local-hostname"`
}

// netConfig is cloud-init's network-config, version 2.
type netConfig struct {
	Version   int                 `json:"version"`
	Ethernets map[string]ethernet `json:"ethernets"`
}

// ethernet is one card of a netConfig.
type ethernet struct {
	Match match `json:"match"`
	DHCP4 bool  `json:"dhcp4"`
	DHCP6 bool  `json:"dhcp6"`
}

type match struct {
	MACAddress string `json:"macaddress"`
}

// networkConfig asks for DHCP on every card. Without cards it says so, lest
// cloud-init look for one to configure. encoding/json sorts the keys of a map,
// so the text is the same each time.
func networkConfig(m *config.Machine) netConfig {
	cards := map[string]ethernet{}
	for _, n := range m.NICs {
		cards[n.Name] = ethernet{Match: match{string(n.MAC)}, DHCP4: true, DHCP6: true}
	}
	return netConfig{Version: 2, Ethernets: cards}
}

// cloudConfig writes s as a cloud-config. JSON is YAML, so nothing in a value
// can break out of it.
func cloudConfig(s seedConfig) []byte {
	return append([]byte("#cloud-config\n"), marshal(s)...)
}

// marshal returns v as indented JSON with a newline. Characters such as "<"
// stay themselves: they are for people, and no HTML is near.
func marshal(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	// Only unsupported types and cyclic values fail; none is here.
	if err := enc.Encode(v); err != nil {
		panic(err)
	}
	return b.Bytes()
}

package hypervisor

import (
	"encoding/base64"

	"github.com/vmctl/vmctl/config"
)

// CredentialText is what paths.Credential of c holds, for a credential whose
// value (or file's content) is content: the SMBIOS string that
// systemd.system-credentials(7) describes, in its form for any bytes.
func CredentialText(c config.Credential, content []byte) []byte {
	return []byte("io.systemd.credential.binary:" + c.Name + "=" + base64.StdEncoding.EncodeToString(content))
}

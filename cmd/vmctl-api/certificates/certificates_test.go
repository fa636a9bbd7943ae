package certificates

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func newDir(t *testing.T) Dir {
	t.Helper()
	d := Dir{Path: filepath.Join(t.TempDir(), "api")}
	if err := d.Prepare("host", []string{"localhost"}, nil); err != nil {
		t.Fatal(err)
	}
	return d
}

// Credentials of the service come before the files of their names.
func TestCredentials(t *testing.T) {
	d, other := newDir(t), newDir(t)
	if _, _, err := other.Issue("ops", Operator, time.Hour); err != nil {
		t.Fatal(err)
	}
	if n, err := other.Revoke("ops"); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	both := Dir{Path: d.Path, Credentials: other.Path}
	got, err := both.Config()
	if err != nil {
		t.Fatal(err)
	}
	want, err := other.Config()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Certificates[0].Certificate[0], want.Certificates[0].Certificate[0]) || !got.ClientCAs.Equal(want.ClientCAs) {
		t.Error("the files are taken, and not the credentials")
	}
	if trust, err := both.Trust(); err != nil || len(trust.revoked) != 1 {
		t.Errorf("%v, %v, want one that was revoked", trust, err)
	}
	// Without a list among them that of the files is taken, which is another authority's.
	if err := os.Remove(other.Path + "/crl.pem"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Issue("ops", Operator, time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Revoke("ops"); err != nil {
		t.Fatal(err)
	}
	if _, err := both.Trust(); err == nil {
		t.Error("a list of another authority is believed")
	}
	// One that is there and cannot be read is not passed over.
	if err := os.Mkdir(other.Path+"/crl.pem", 0o755); err != nil {
		t.Fatal(err)
	}
	os.Remove(d.Path + "/crl.pem")
	if _, err := both.Trust(); err == nil {
		t.Error("a list that cannot be read is passed over")
	}
}

// Where certificates are another authority's, or its key is not here, the role at
// least is taken.
func TestRevokeTakesRole(t *testing.T) {
	d := newDir(t)
	if _, err := d.Revoke("nobody"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("revoking nobody: %v", err)
	}
	if err := os.WriteFile(d.Path+"/clients/theirs", []byte(Operator), 0o644); err != nil {
		t.Fatal(err)
	}
	if n, err := d.Revoke("theirs"); n != 0 || err != nil {
		t.Errorf("one of another authority: %d, %v", n, err)
	}
	if _, _, err := d.Issue("ours", Operator, time.Hour); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(d.Path + "/ca.key")
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(d.Path + "/ca.key")
	if _, err := d.Revoke("ours"); err == nil || !strings.Contains(err.Error(), "ours has no role any more; revoking its certificates: the authority's key: ") {
		t.Errorf("without the key: %v", err)
	}
	for _, name := range []string{"theirs", "ours"} {
		if _, err := d.Role(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s has a role: %v", name, err)
		}
	}
	// The rest can be done later.
	if err := os.WriteFile(d.Path+"/ca.key", key, 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := d.Revoke("ours"); n != 1 || err != nil {
		t.Errorf("with the key again: %d, %v", n, err)
	}
}

func TestRevokeAtOnce(t *testing.T) {
	d := newDir(t)
	const many = 20
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			name := fmt.Sprintf("client%d", i)
			if _, _, err := d.Issue(name, Viewer, time.Hour); err != nil {
				t.Error(err)
			}
			if n, err := d.Revoke(name); n != 1 || err != nil {
				t.Error(n, err)
			}
		})
	}
	wg.Wait()
	authority, err := d.ca()
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := d.revoked(authority); len(entries) != many || err != nil {
		t.Errorf("%d certificates are revoked, want %d: %v", len(entries), many, err)
	}
}

// One list of what was revoked is of one authority.
func TestBundle(t *testing.T) {
	d := newDir(t)
	text, err := os.ReadFile(d.Path + "/ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.Path+"/ca.pem", append(text, text...), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Config(); err == nil || !strings.Contains(err.Error(), "ca.pem: want the certificate of one authority") {
		t.Errorf("a bundle: %v", err)
	}
}

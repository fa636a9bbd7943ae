package pull

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// signed is a file of testdata/signed.
func signed(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata/signed", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func keysOf(t *testing.T, names ...string) *Keys {
	t.Helper()
	var all string
	for _, name := range names {
		all += signed(t, name)
	}
	keys, err := ParseKeys("keys", []byte(all))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

const publisher = "BA7C9D89D2B6F9340EC04834FB0BB4948E0B7CF6"

// Signatures as gpg makes them, each in its place, and everything that is wrong
// with one: what is not signed is not stored.
func TestSigned(t *testing.T) {
	for _, test := range []struct {
		name      string
		keys      []string // publisher.asc where there are none
		list      string   // that is served; "" for none: the image itself is signed
		signature string   // that is served; "" for none, "none" for one that is named but not there
		edit      func(*server)
		sum       Sum
		want      string // an error; "" for none
	}{
		{name: "detached, binary", list: "SHA256SUMS", signature: "SHA256SUMS.gpg"},
		{name: "detached, binary key", keys: []string{"publisher.gpg"}, list: "SHA256SUMS", signature: "SHA256SUMS.gpg"},
		{name: "detached, text, by two", list: "SHA256SUMS", signature: "SHA256SUMS.asc"},
		{name: "several keys", keys: []string{"else.asc", "old.asc", "publisher.asc"}, list: "SHA256SUMS", signature: "SHA256SUMS.gpg"},
		{name: "around the list", list: "CHECKSUM"},
		{name: "of the image", signature: "disk.img.sig"},
		{name: "and the checksum", list: "CHECKSUM", sum: sha256Of(content(1))},
		{name: "another checksum", list: "CHECKSUM", sum: sha256Of(content(2)),
			want: "URL/list: want the checksum " + sha256Of(content(2)).String() + ", got " + sha256Of(content(1)).String()},
		{name: "by somebody else", list: "SHA256SUMS", signature: "SHA256SUMS.else",
			want: "URL/list: want a signature by " + publisher + " (keys), got one by "},
		{name: "key of somebody else", keys: []string{"else.asc"}, list: "CHECKSUM", want: "URL/list: want a signature by "},
		{name: "list changed", list: "SHA256SUMS", signature: "SHA256SUMS.gpg",
			edit: func(s *server) { s.lists["/list"] += " " }, want: "URL/list: wrong signature: "},
		{name: "changed inside", list: "CHECKSUM",
			edit: func(s *server) { s.lists["/list"] = strings.Replace(s.lists["/list"], "d7", "d8", 1) }, want: "URL/list: wrong signature: "},
		// Beside what is signed: of no account.
		{name: "added outside", list: "CHECKSUM", edit: func(s *server) {
			s.content = content(2)
			line := "SHA256 (disk.img) = " + sha256Of(content(2)).Hex + "\n"
			s.lists["/list"] = line + s.lists["/list"] + line
		}, want: "URL/disk.img: wrong checksum: want sha256:d7"},
		{name: "not signed", list: "SHA256SUMS", want: "URL/list: it has no signature in it, and no other is named"},
		{name: "signature not there", list: "SHA256SUMS", signature: "none", want: "the publisher's signature: URL/signature: the server says 404"},
		{name: "signature of the image not there", signature: "none", want: "the publisher's signature: URL/signature: the server says 404"},
		{name: "a page for a signature", list: "SHA256SUMS", signature: "README", want: "URL/list: the signature cannot be read: "},
		{name: "a key for a signature", list: "SHA256SUMS", signature: "publisher.gpg", want: "URL/list: wrong signature: "},
		{name: "nothing for a signature", list: "SHA256SUMS", signature: "SHA256SUMS.gpg", edit: func(s *server) { s.lists["/signature"] = "" }, want: "URL/list: there is no signature in it"},
		{name: "by a weak algorithm", list: "SHA256SUMS", signature: "SHA256SUMS.sha1", want: "URL/list: wrong signature: "},
		{name: "image changed", signature: "disk.img.sig", edit: func(s *server) { s.content = content(2) }, want: "URL/disk.img: wrong signature: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, p := newServer(t), newPuller(t)
			s.missing = "/signature"
			r := Request{Name: "a", URL: s.url(), Checksum: test.sum, Keys: keysOf(t, "publisher.asc")}
			if test.keys != nil {
				r.Keys = keysOf(t, test.keys...)
			}
			if test.list != "" {
				r.Checksums, s.lists["/list"] = s.URL+"/list", signed(t, test.list)
			}
			if test.signature != "" {
				r.Signature = s.URL + "/signature"
				if test.signature != "none" {
					s.lists["/signature"] = signed(t, test.signature)
				}
			}
			if test.edit != nil {
				test.edit(s)
			}
			i, _, err := p.Pull(t.Context(), r)
			if test.want == "" {
				if err != nil || i.SignedBy != publisher {
					t.Fatalf("got %+v, %v", i, err)
				}
				stored(t, p, "a", content(1))
				return
			}
			if err == nil || !strings.HasPrefix(strings.ReplaceAll(err.Error(), s.URL, "URL"), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
			nothingStored(t, p)
			nothingLeft(t, p)
		})
	}
}

// A signature that was made while its key was good is good for ever.
func TestExpiredKey(t *testing.T) {
	s, p := newServer(t), newPuller(t)
	s.lists["/list"], s.lists["/signature"] = signed(t, "SHA256SUMS"), signed(t, "SHA256SUMS.old")
	r := Request{Name: "a", URL: s.url(), Checksums: s.URL + "/list", Signature: s.URL + "/signature", Keys: keysOf(t, "old.asc")}
	if _, _, err := p.Pull(t.Context(), r); err != nil {
		t.Error(err)
	}
}

// An image without a signature is pulled again where one is asked for.
func TestUpdateSigned(t *testing.T) {
	s, p := newServer(t), newPuller(t)
	s.lists["/list"] = signed(t, "CHECKSUM")
	r := Request{Name: "a", URL: s.url(), Checksums: s.URL + "/list", Update: true}
	for _, want := range []struct {
		keys  *Keys
		fresh bool
		by    string
	}{{nil, true, ""}, {nil, false, ""}, {keysOf(t, "publisher.asc"), true, publisher}, {keysOf(t, "publisher.asc"), false, publisher}} {
		r.Keys = want.keys
		if i, fresh, err := p.Pull(t.Context(), r); err != nil || fresh != want.fresh || i.SignedBy != want.by {
			t.Errorf("got %+v, %v, %v; want %+v", i, fresh, err, want)
		}
	}
}

func TestParseKeys(t *testing.T) {
	for _, bad := range []string{"", "text", "SHA256SUMS.asc", "CHECKSUM"} {
		text := bad
		if _, err := os.Stat(filepath.Join("testdata/signed", bad)); err == nil && bad != "" {
			text = signed(t, bad)
		}
		if k, err := ParseKeys("x.gpg", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), "x.gpg: want OpenPGP public keys") {
			t.Errorf("%q: got %v, %v", bad, k, err)
		}
	}
	if _, err := ParseKeys("x", []byte(publicKey+"\n\nAAAA\n")); err == nil {
		t.Error("half a key was read")
	}
}

func FuzzKeys(f *testing.F) {
	for _, name := range []string{"publisher.asc", "publisher.gpg", "CHECKSUM", "SHA256SUMS.asc", "SHA256SUMS.gpg"} {
		b, err := os.ReadFile(filepath.Join("testdata/signed", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	text, err := os.ReadFile("testdata/signed/publisher.asc")
	if err != nil {
		f.Fatal(err)
	}
	keys, err := ParseKeys("x", text)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = ParseKeys("x", b) // ends, whatever it says
		if by, err := keys.detached(strings.NewReader("not what anybody has signed"), b, nil); err == nil {
			t.Errorf("signed by %s", by)
		}
		if _, _, err := keys.clear(b, nil); err == nil && !strings.Contains(string(b), "disk.img") {
			t.Error("signed")
		}
	})
}

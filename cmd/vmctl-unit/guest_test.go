package main

import (
	"encoding/hex"
	"os"
	"testing"
)

// guestCode is testdata/guest.s, assembled.
const guestCode = "fa31c08ed8fcba0206b80001efbe5c7cac84c07416e80200ebf688c4bafd" +
	"03eca82074fbbaf80388e0eec3ba0006edf6c4017519bafd03eca80174ef" +
	"baf803ec3c7074093c72740ee8cfffebdeba0406b80020efebf7b0fee664" +
	"ebfa67756573742069732075700d0a00"

// writeGuest writes a disk from which the guest boots.
func writeGuest(t testing.TB, path string) {
	t.Helper()
	code, err := hex.DecodeString(guestCode)
	if err != nil {
		t.Fatal(err)
	}
	disk := make([]byte, 1<<20)
	copy(disk, code)
	disk[510], disk[511] = 0x55, 0xaa
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
}

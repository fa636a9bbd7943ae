package main

import (
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// systemd takes a user of the host that has the name for the machine's own.
func TestMachineRunsAsNobodyElse(t *testing.T) {
	a := app{vm: "web", paths: config.SystemPaths("")}
	for uid, ok := range map[int]bool{0: false, 1000: false, 61183: false, 61184: true, 65519: true, 65534: false} {
		if err := a.checkUser(uid); (err == nil) != ok {
			t.Errorf("uid %d: %v", uid, err)
		}
	}
	if err := a.checkUser(1000); !strings.Contains(err.Error(), "vm-web") {
		t.Errorf("%v does not name the user", err)
	}
	a.paths = config.UserPaths("/h/.config", "/h/.local/share", "/run/user/1000")
	if err := a.checkUser(1000); err != nil {
		t.Errorf("a user's own: %v", err)
	}
}

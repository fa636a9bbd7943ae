package main

import (
	"testing"

	"github.com/vmctl/vmctl/units/bus"
)

func TestDown(t *testing.T) {
	for _, test := range []struct {
		unit bus.UnitStatus
		down bool
	}{
		{bus.UnitStatus{Active: "inactive"}, true},
		{bus.UnitStatus{Active: "failed"}, true},
		{bus.UnitStatus{Active: "inactive", Job: "start"}, false},
		{bus.UnitStatus{Active: "failed", Job: "restart"}, false},
		{bus.UnitStatus{Active: "activating", Sub: "auto-restart"}, false},
	} {
		if err := down(test.unit); (err == nil) != test.down {
			t.Errorf("%+v: %v", test.unit, err)
		}
	}
}

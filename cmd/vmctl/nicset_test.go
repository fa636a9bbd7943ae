package main

import "testing"

func TestRateFlag(t *testing.T) {
	r := rateFlag(7)
	if err := r.Set("0B"); err != nil || r != 0 {
		t.Errorf("0B is %d, %v", r, err)
	}
	if err := r.Set("5M"); err != nil || r.String() != "5M" {
		t.Errorf("5M is %s, %v", r.String(), err)
	}
	if err := r.Set("x"); err == nil {
		t.Error("no error")
	}
}

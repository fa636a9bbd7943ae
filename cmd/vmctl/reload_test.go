package main

import (
	"reflect"
	"testing"
)

func TestCompare(t *testing.T) {
	before := map[string]string{"a": "1", "b": "1", "c": "1"}
	after := map[string]string{"a": "1", "b": "2", "d": "1"}
	got := compare(before, after)
	want := reloaded{Added: []string{"d"}, Changed: []string{"b"}, Removed: []string{"c"}, Restart: []string{}, Invalid: []string{}, Gone: []string{}, Enabled: []string{}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

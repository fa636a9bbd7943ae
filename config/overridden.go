package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// DropInMark begins the drop-ins that vmctl keeps of a machine. Another file by the
// same name is a person's, and left alone.
const DropInMark = "# Written by vmctl "

// overridden finds what is written in files that have changed after a drop-in of
// vmctl's, and does not hold, since the drop-in says otherwise and comes after them.
func overridden(own []*source) []Problem {
	var all []Problem
	for i, kept := range own {
		if !kept.kept {
			continue
		}
		at := kept.places()
		for _, by := range own[:i] {
			if by.kept || by.places == nil || !by.changed.After(kept.changed) {
				continue
			}
			for _, key := range slices.Sorted(maps.Keys(at)) {
				path := strings.Split(key, ".")
				then, written := kept.tree.get(path...), by.tree.get(path...)
				if _, isTable := then.(*tree); isTable || then == nil || written == nil || reflect.DeepEqual(then, written) {
					continue
				}
				all = append(all, Problem{File: by.file, Line: by.places()[key].line, Key: key,
					Text: fmt.Sprintf("does not hold, since vmctl has set it otherwise in %s:%d, which comes after this file", kept.file, at[key].line)})
			}
		}
	}
	SortProblems(all)
	return all
}

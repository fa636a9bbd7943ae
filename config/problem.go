package config

import (
	"cmp"
	"fmt"
	"slices"
)

// Problem is one thing wrong with a definition. It reads
// "file:line: key: what was wanted, what was there".
type Problem struct {
	File string `json:"file"`
	Line int    `json:"line,omitempty"` // from 1; 0 where no line is to blame
	Key  string `json:"key,omitempty"`  // dotted, e.g. "disk.root.size"
	Text string `json:"text"`
}

func (p Problem) Error() string {
	s := p.File
	if p.Line > 0 {
		s += fmt.Sprintf(":%d", p.Line)
	}
	for _, part := range []string{p.Key, p.Text} {
		if s != "" && part != "" {
			s += ": "
		}
		s += part
	}
	return s
}

// SortProblems puts problems in the order of file and line, keeping the order
// of those that share a line.
func SortProblems(ps []Problem) {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
}

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/vmctl/vmctl/config"
)

// format is what -o says.
type format string

const (
	textFormat format = "text"
	jsonFormat format = "json"
)

// String, Set and Type make a format a pflag.Value.
func (f *format) String() string { return string(*f) }

func (f *format) Set(s string) error {
	switch format(s) {
	case textFormat, jsonFormat:
		*f = format(s)
		return nil
	}
	return fmt.Errorf("want text or json")
}

func (f *format) Type() string { return "format" }

// span is the value of a flag that takes a span of time, in the notation of
// definitions.
type span time.Duration

// String, Set and Type make a span a pflag.Value.
func (s *span) String() string {
	if *s == 0 {
		return "0" // which is no default for the help to tell of
	}
	return config.Duration(*s).String()
}

func (s *span) Set(text string) error {
	d, err := config.ParseDuration(text)
	*s = span(d)
	return err
}

func (s *span) Type() string { return "TIME" }

// json prints v on stdout.
func (u *ui) json(v any) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return writeJSON(u.out, v)
}

// line prints v on stdout, as one of the lines of what goes on for a while.
func (u *ui) line(v any) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return json.NewEncoder(u.out).Encode(v)
}

// writeTable writes rows in aligned columns; the last column is not padded.
func writeTable(w io.Writer, rows [][]string) error {
	var width []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		last := len(row) - 1
		for last > 0 && row[last] == "" {
			last--
		}
		for i, cell := range row[:last+1] {
			b.WriteString(cell)
			if i < last {
				b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// sizeText is a number of bytes as people write it: "512M", "1.5G".
func sizeText(bytes int64) string {
	units := "BKMGTP"
	value, unit := float64(bytes), 0
	for value >= 1024 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	if unit == 0 {
		return strconv.FormatInt(bytes, 10) + "B"
	}
	return strings.TrimSuffix(strconv.FormatFloat(value, 'f', 1, 64), ".0") + units[unit:unit+1]
}

// yesNo is a bool for people.
func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// printable is s on one line, without what a terminal would obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

// printAll prints all about several things: in JSON a list, or the thing itself
// where it is only one; for people the rows of each, with an empty line between.
func printAll[T any](u *ui, all []T, rows func(T) [][]string) error {
	if u.format == jsonFormat && len(all) == 1 {
		return u.json(all[0])
	}
	if u.format == jsonFormat {
		return u.json(all)
	}
	for i, one := range all {
		if i > 0 {
			u.printf("")
		}
		if err := writeTable(u.out, rows(one)); err != nil {
			return err
		}
	}
	return nil
}

// listState is the state of what a list tells of, marked where changes wait.
func listState(s state, pending bool) string {
	if pending {
		return string(s) + "*"
	}
	return string(s)
}

// listText is the last cell of a row. What is wrong with a thing is more urgent
// than what it is for.
func listText(description, problem string) string {
	if problem != "" {
		description = "error: " + problem
	}
	return strings.TrimSpace(printable(description))
}

package main

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
)

// family is one metric, of all things that have it: as vmctl metrics -o json
// prints it. The names of metrics and labels stay.
type family struct {
	Name    string   `json:"name"` // without the "_total" of a counter's samples
	Type    string   `json:"type"` // counter or gauge
	Unit    string   `json:"unit"` // "bytes", "seconds", or "" for a number; the name ends with it
	Help    string   `json:"help"`
	Samples []metric `json:"samples"`
}

// metric is one number of a family.
type metric struct {
	labels []string // names and values in turn
	value  float64
}

// MarshalJSON has the labels as an object.
func (m metric) MarshalJSON() ([]byte, error) {
	labels := map[string]string{}
	for pair := range slices.Chunk(m.labels, 2) {
		labels[pair[0]] = pair[1]
	}
	return json.Marshal(struct {
		Labels map[string]string `json:"labels"`
		Value  float64           `json:"value"`
	}{labels, m.value})
}

// Types of families.
const (
	counterType = "counter" // only grows, until it begins anew
	gaugeType   = "gauge"
)

// newFamily is one without samples yet. Its unit is what its name ends with.
func newFamily(kind, name, help string) *family {
	f := &family{Name: name, Type: kind, Help: help, Samples: []metric{}}
	for _, unit := range []string{"bytes", "seconds"} {
		if strings.HasSuffix(name, "_"+unit) {
			f.Unit = unit
		}
	}
	return f
}

// add adds a number; labels are names and values in turn.
func (f *family) add(value float64, labels ...string) {
	f.Samples = append(f.Samples, metric{labels, value})
}

// addKnown adds a number that may not be known.
func (f *family) addKnown(value *uint64, labels ...string) {
	if value != nil {
		f.add(float64(*value), labels...)
	}
}

// escapeLabel writes the value of a label as it is between quotes.
func escapeLabel(s string) string {
	if !strings.ContainsAny(s, "\\\n\"") {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`).Replace(strings.ToValidUTF8(s, "\uFFFD"))
}

// openMetrics writes families by OpenMetrics 1.0.
func openMetrics(families []family) []byte {
	var b bytes.Buffer
	for _, f := range families {
		b.WriteString("# TYPE " + f.Name + " " + f.Type + "\n")
		if f.Unit != "" {
			b.WriteString("# UNIT " + f.Name + " " + f.Unit + "\n")
		}
		b.WriteString("# HELP " + f.Name + " " + f.Help + "\n")
		f.writeSamples(&b)
	}
	b.WriteString("# EOF\n")
	return b.Bytes()
}

// prometheusText writes families by the older text format 0.0.4 of Prometheus,
// which knows no units, and calls a counter by the name of its samples.
func prometheusText(families []family) []byte {
	var b bytes.Buffer
	for _, f := range families {
		b.WriteString("# HELP " + f.sampleName() + " " + f.Help + "\n# TYPE " + f.sampleName() + " " + f.Type + "\n")
		f.writeSamples(&b)
	}
	return b.Bytes()
}

func (f family) sampleName() string {
	if f.Type == counterType {
		return f.Name + "_total"
	}
	return f.Name
}

func (f family) writeSamples(b *bytes.Buffer) {
	name := f.sampleName()
	for _, m := range f.Samples {
		b.WriteString(name)
		before := byte('{')
		for pair := range slices.Chunk(m.labels, 2) {
			b.WriteByte(before)
			b.WriteString(pair[0] + `="` + escapeLabel(pair[1]) + `"`)
			before = ','
		}
		if len(m.labels) > 0 {
			b.WriteByte('}')
		}
		b.WriteString(" " + numberText(m.value) + "\n")
	}
}

// numberText writes a number, those of bytes as people do.
func numberText(v float64) string {
	if math.Abs(v) < 1e18 {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

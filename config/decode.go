package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// parser is a value with a notation of its own. parse returns what a message
// says was wanted, "" where the value is good.
type parser interface{ parse(v any) (want string) }

// decoder fills a struct from a tree by the schema and gathers all problems.
type decoder struct {
	path  []string // of the table or value at hand
	wrong []mistake
	bad   map[string]bool // keys that have a problem already
	vague map[string]bool // tables with unknown keys: what they lack may be meant by them
}

// mistake is a problem before it is known in which file and line.
type mistake struct {
	key  string // for people
	at   string // what to look up the line by: the key, or an element of its list
	text string
}

// maxMistakes is how many problems of one machine are told. Nobody reads more,
// and a file of another kind can have as many as it has lines.
const maxMistakes = 100

func (d *decoder) full() bool { return len(d.wrong) > maxMistakes }

func (d *decoder) mistake(at, text string) {
	if d.full() {
		return
	}
	key := strings.Join(d.path, ".")
	if d.bad == nil {
		d.bad = map[string]bool{}
	}
	d.bad[key] = true
	if at == "" {
		at = key
	}
	d.wrong = append(d.wrong, mistake{shown(d.path), at, text})
}

// mistakeAt is mistake for a key that is not the one at hand.
func (d *decoder) mistakeAt(key, at, text string) {
	path := d.path
	d.path = strings.Split(key, ".")
	d.mistake(at, text)
	d.path = path
}

// problems returns what was wrong with values that came from the files of o.
func (d *decoder) problems(o origin) []Problem {
	var out []Problem
	for _, w := range d.wrong[:min(len(d.wrong), maxMistakes)] {
		out = append(out, o.problem(w.key, w.at, w.text))
	}
	if d.full() {
		file, _ := o.locate("")
		out = append(out, Problem{File: file, Text: fmt.Sprintf("more than %d problems, the rest is not told", maxMistakes)})
	}
	return out
}

func (d *decoder) want(want string, got any) {
	d.mistake("", "want "+want+", got "+show(got))
}

func (d *decoder) enter(key string) { d.path = append(d.path, key) }
func (d *decoder) leave()           { d.path = d.path[:len(d.path)-1] }

// table decodes t into v, a struct that has its defaults.
func (d *decoder) table(s *table, t *tree, v reflect.Value) {
	for i, key := range t.keys {
		if d.full() {
			return
		}
		d.enter(key)
		if f := s.byKey[key]; f == nil {
			d.mistake("", unknown(s, key))
			if d.vague == nil {
				d.vague = map[string]bool{}
			}
			d.vague[strings.Join(d.path[:len(d.path)-1], ".")] = true
		} else {
			d.field(f, t.nodes[i], v.Field(f.index))
		}
		d.leave()
	}
}

// field decodes one key of a table into v.
func (d *decoder) field(f *field, node any, v reflect.Value) {
	t, isTable := node.(*tree)
	switch list := v.Addr().Interface().(type) {
	case *[]Setting:
		if isTable {
			*list = d.settings(t, f.key)
			return
		}
	case *[]Credential:
		if isTable {
			*list = d.credentials(t)
			return
		}
	}
	switch {
	case f.named && isTable:
		d.named(f, t, v)
	case f.named:
		d.want("named tables such as ["+f.key+".NAME]", node)
	case f.sub != nil && isTable:
		d.table(f.sub, t, v)
	case f.sub != nil || f.typ == reflect.TypeFor[[]Argument]() || f.typ == reflect.TypeFor[[]Setting]() || f.typ == reflect.TypeFor[[]Credential]():
		d.want("a table", node)
	case f.typ.Kind() == reflect.Slice:
		d.list(f, node, v)
	default:
		if want := f.set(v, node); want != "" {
			d.refuse(f, want, node)
		}
	}
}

// refuse is want, but for the values of secrets, which it does not show.
func (d *decoder) refuse(f *field, want string, got any) {
	if _, text := got.(string); text && f.secret {
		d.mistake("", "want "+want+", got another (not shown)")
		return
	}
	d.want(want, got)
}

// named decodes the named tables of one kind of device.
func (d *decoder) named(f *field, t *tree, v reflect.Value) {
	out := reflect.MakeSlice(f.typ, len(t.keys), len(t.keys))
	n := 0
	for i, name := range t.keys {
		d.enter(name)
		node := t.nodes[i]
		sub, ok := node.(*tree)
		want := wantName(name)
		switch {
		case !ok && f.sub.byKey[name] != nil:
			d.want("the key in a named table such as ["+f.key+".NAME]", node)
		case !ok:
			d.want("a table", node)
		case want != "":
			d.want(want, name)
		default:
			one := out.Index(n)
			one.Set(f.sub.zero)
			one.Field(f.name).SetString(name)
			d.table(f.sub, sub, one)
			n++
		}
		d.leave()
	}
	v.Set(out.Slice(0, n))
}

// list decodes a list, blaming single elements by their line.
func (d *decoder) list(f *field, node any, v reflect.Value) {
	values, ok := node.([]any)
	if text, single := node.(string); single {
		d.want("a list such as ["+show(text)+"]", node)
		return
	}
	if !ok {
		d.want("a list", node)
		return
	}
	out := reflect.MakeSlice(f.typ, len(values), len(values))
	for i, value := range values {
		if want := f.set(out.Index(i), value); want != "" {
			d.mistake(index(strings.Join(d.path, "."), i), "want "+want+", got "+show(value))
		}
	}
	v.Set(out)
}

// set puts one TOML value into v and returns what was wanted, "" where the
// value is good.
func (f *field) set(v reflect.Value, value any) (want string) {
	switch p := v.Addr().Interface().(type) {
	case *string:
		return f.setString(p, value)
	case *bool:
		b, ok := value.(bool)
		if !ok {
			return "true or false"
		}
		*p = b
	case **bool:
		b, ok := value.(bool)
		if !ok {
			return "true or false"
		}
		*p = &b
	case *int, *int64, *uint32:
		n, ok := value.(int64)
		if want := f.wantNumber(); !ok || !f.within(n) || !fits(v, n) {
			return want
		}
		if v.CanUint() {
			v.SetUint(uint64(n))
		} else {
			v.SetInt(n)
		}
	case *Size:
		want := p.parse(value)
		switch {
		case want != "":
			return want
		case *p == 0 && f.min == nil:
			return wantSome
		case !f.within(int64(*p)):
			return f.wantSize()
		}
	case *Forward:
		s, ok := value.(string)
		if !ok {
			return wantForward
		}
		*p, want = parseForward(s)
		return want
	case *Rule:
		s, _ := value.(string)
		*p, want = parseRule(s, preposition(f.form))
		return want
	case *netip.Addr:
		s, _ := value.(string)
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return `an IP address such as "192.168.100.10"`
		}
		*p = a
	case parser:
		return p.parse(value)
	default:
		panic("no notation for " + v.Type().String())
	}
	return ""
}

func (f *field) setString(p *string, value any) (want string) {
	if b, ok := value.(bool); ok && f.has("true") {
		*p = strconv.FormatBool(b)
		return ""
	}
	if n, ok := value.(int64); ok && f.integer {
		value = strconv.FormatInt(n, 10)
	}
	s, ok := value.(string)
	switch {
	case f.enum != nil && (!ok || !f.has(s) || s == "true" || s == "false"):
		return f.wantEnum()
	case !ok && f.integer:
		return "a string or an integer"
	case !ok:
		return "a string"
	case hasControl(s):
		return "a string of one line without control characters"
	}
	if f.form != "" {
		if want := wants(f.form, s); want != "" {
			return want
		}
	}
	*p = s
	return ""
}

func (f *field) has(value string) bool {
	for _, e := range f.enum {
		if e == value {
			return true
		}
	}
	return false
}

func (f *field) within(n int64) bool {
	return (f.min == nil || n >= *f.min) && (f.max == nil || n <= *f.max)
}

func fits(v reflect.Value, n int64) bool {
	if v.CanUint() {
		return n >= 0 && !v.OverflowUint(uint64(n))
	}
	return !v.OverflowInt(n)
}

func (f *field) wantNumber() string {
	switch {
	case f.min != nil && f.max != nil:
		return fmt.Sprintf("an integer from %d to %d", *f.min, *f.max)
	case f.min != nil:
		return fmt.Sprintf("an integer of at least %d", *f.min)
	}
	return "an integer"
}

func (f *field) wantSize() string {
	switch {
	case f.min != nil && f.max != nil:
		return fmt.Sprintf("a size from %s to %s", Size(*f.min), Size(*f.max))
	case f.min != nil:
		return fmt.Sprintf("a size of at least %s", Size(*f.min))
	}
	return fmt.Sprintf("a size of at most %s", Size(*f.max))
}

func (f *field) wantEnum() string {
	quoted := make([]string, len(f.enum))
	for i, e := range f.enum {
		if quoted[i] = strconv.Quote(e); e == "true" || e == "false" {
			quoted[i] = e
		}
	}
	last := len(quoted) - 1
	return strings.Join(quoted[:last], ", ") + " or " + quoted[last]
}

// unknown is the message for a key that table s does not have.
func unknown(s *table, key string) string {
	known := make([]string, len(s.fields))
	for i, f := range s.fields {
		known[i] = f.key
	}
	best := nearest(strings.ToLower(key), known)
	if best == "" {
		best = s.below(key)
	}
	if best == "" {
		return "unknown key"
	}
	return fmt.Sprintf("unknown key, did you mean %q?", best)
}

// nearest is what of known a slip of the fingers may have turned into name, the
// first of several; "" where none is near.
func nearest(name string, known []string) string {
	best, distance := "", 1+max(1, len(name)/3)
	for _, k := range known {
		if n := edits(name, k, distance); n < distance {
			best, distance = k, n
		}
	}
	return best
}

// didYouMean is what is added to a message on a name that is not known.
func didYouMean(name string, known []string) string {
	if best := nearest(name, known); best != "" {
		return fmt.Sprintf(", did you mean %q?", best)
	}
	return ""
}

// below returns the dotted key of the only table in s that has the key.
func (s *table) below(key string) (found string) {
	for _, f := range s.fields {
		if f.sub == nil || f.named || f.sub.byKey[key] == nil {
			continue
		}
		if found != "" {
			return ""
		}
		found = f.key + "." + key
	}
	return found
}

// edits counts the letters to insert, remove, change or swap with their
// neighbour to make b of a, up to limit.
func edits(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return min(rows[len(a)][len(b)], limit)
}

// show writes a TOML value for a message, in one line and not too long.
func show(v any) string {
	switch v := v.(type) {
	case string:
		const most = 80
		if len(v) > most {
			return strconv.Quote(v[:most]) + "…"
		}
		return strconv.Quote(v)
	case *tree, map[string]any:
		return "a table"
	case []map[string]any:
		return "a list of tables"
	case []any:
		return "a list"
	case time.Time:
		return "a date or time"
	}
	return fmt.Sprint(v)
}

// shown is a dotted key for people: parts that would not print well are
// quoted.
func shown(path []string) string {
	key := ""
	for _, part := range path {
		if part == "" || len(part) > 2*maxName || strings.Trim(part, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
			part = show(part)
		}
		key = join(key, part)
	}
	return key
}

func join(key, part string) string {
	if key == "" {
		return part
	}
	return key + "." + part
}

// index is what one element of a list is looked up by.
func index(key string, i int) string { return key + "[" + strconv.Itoa(i) + "]" }

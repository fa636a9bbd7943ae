package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// IDRange says which users, or groups, of the host those of a guest are: Count of
// them, in order.
type IDRange struct {
	Guest, Host int64 // the first ones
	Count       int64
}

// IDs is how many users, or groups, there are: the last number of 32 bits is
// none.
const IDs = 1<<32 - 1

// ParseIDRange reads GUEST:HOST:COUNT.
func ParseIDRange(s string) (r IDRange, ok bool) {
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return r, false
	}
	for i, into := range []*int64{&r.Guest, &r.Host, &r.Count} {
		n, err := strconv.ParseUint(parts[i], 10, 32)
		if err != nil || parts[i] != strconv.FormatUint(n, 10) {
			return r, false
		}
		*into = int64(n)
	}
	return r, r.Count > 0 && r.Guest+r.Count <= IDs && r.Host+r.Count <= IDs
}

func (r IDRange) overlaps(o IDRange) bool {
	meet := func(a, b int64) bool { return a < b+o.Count && b < a+r.Count }
	return meet(r.Guest, o.Guest) || meet(r.Host, o.Host)
}

// IDSpan is Count users or groups from First on.
type IDSpan struct{ First, Count int64 }

// IDGaps are those that are in none of the spans, which do not overlap.
func IDGaps(spans []IDSpan) []IDSpan {
	spans = slices.SortedFunc(slices.Values(spans), func(a, b IDSpan) int { return cmp.Compare(a.First, b.First) })
	var gaps []IDSpan
	next := int64(0)
	for _, s := range append(spans, IDSpan{First: IDs}) {
		if s.First > next {
			gaps = append(gaps, IDSpan{next, s.First - next})
		}
		next = s.First + s.Count
	}
	return gaps
}

package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// wantSize is what a message says where no size was given.
const wantSize = `a size such as "512M" or "20G"`

// unitOf returns the factor of a unit of sizes, 0 for what is none.
func unitOf(s string) int64 {
	switch s {
	case "B":
		return 1
	case "K", "KiB":
		return 1 << 10
	case "M", "MiB":
		return 1 << 20
	case "G", "GiB":
		return 1 << 30
	case "T", "TiB":
		return 1 << 40
	}
	return 0
}

// wantSome is what is wanted where a size of nothing makes no sense.
const wantSome = "a size of at least one byte"

// parseSize reads a size. What it returns beside it says what was wanted, ""
// where the size is good.
func parseSize(s string) (Size, string) {
	end := strings.LastIndexAny(s, "0123456789.") + 1
	unit := unitOf(s[end:])
	if end == 0 || unit == 0 {
		return 0, wantSize
	}
	n, ok := scaled(s[:end], unit)
	switch {
	case !ok:
		return 0, wantSize
	case n < 0:
		return 0, "a size that fits into 63 bits"
	}
	return Size(n), ""
}

// ParseSize reads a size in the notation of definitions.
func ParseSize(s string) (Size, error) {
	size, want := parseSize(s)
	if want == "" && size == 0 {
		want = wantSome
	}
	if want != "" {
		return 0, fmt.Errorf("want %s, got %s", want, show(s))
	}
	return size, nil
}

// scaled returns the decimal number s times unit, -1 where that overflows. It
// is false where s is no number, or the result no whole one.
func scaled(s string, unit int64) (int64, bool) {
	whole, fraction, point := strings.Cut(s, ".")
	if !digits(whole) || point && !digits(fraction) {
		return 0, false
	}
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || n > math.MaxInt64/unit {
		return -1, true
	}
	n *= unit
	fraction = strings.TrimRight(fraction, "0")
	tens := int64(1)
	for range len(fraction) {
		if tens *= 10; tens > 1e6 {
			return 0, false
		}
	}
	if fraction != "" {
		f, err := strconv.ParseInt(fraction, 10, 64)
		if err != nil || f > math.MaxInt64/unit || f*unit%tens != 0 {
			return 0, false
		}
		if n += f * unit / tens; n < 0 {
			return -1, true
		}
	}
	return n, true
}

// digits says whether s is one decimal digit or more, and nothing else.
func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// String writes s in the largest unit that divides it.
func (s Size) String() string {
	for _, u := range []string{"T", "G", "M", "K"} {
		if n := unitOf(u); s != 0 && int64(s)%n == 0 {
			return strconv.FormatInt(int64(s)/n, 10) + u
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// parse reads a size from a TOML value.
func (s *Size) parse(v any) (want string) {
	text, ok := v.(string)
	if !ok {
		return wantSize
	}
	*s, want = parseSize(text)
	return want
}

// parse reads true, false or the size of the pages from a TOML value.
func (h *Hugepages) parse(v any) string {
	switch v {
	case true:
		*h = -1
	case false:
		*h = 0
	case "2M", "2MiB":
		*h = 2 << 20
	case "1G", "1GiB":
		*h = 1 << 30
	default:
		return `true, false, "2M" or "1G"`
	}
	return ""
}

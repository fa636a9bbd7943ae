package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const wantDuration = `a span of time such as "90s", "3min" or "infinity"`

// spanOf returns the length of a unit of systemd.time(7), 0 for what is none.
// No unit means seconds.
func spanOf(unit string) time.Duration {
	const day = 24 * time.Hour
	switch unit {
	case "usec", "us", "µs", "μs":
		return time.Microsecond
	case "msec", "ms":
		return time.Millisecond
	case "", "seconds", "second", "sec", "s":
		return time.Second
	case "minutes", "minute", "min", "m":
		return time.Minute
	case "hours", "hour", "hr", "h":
		return time.Hour
	case "days", "day", "d":
		return day
	case "weeks", "week", "w":
		return 7 * day
	case "months", "month", "M":
		return 3044 * day / 100
	case "years", "year", "y":
		return 36525 * day / 100
	}
	return 0
}

// parseDuration reads a span of time in systemd's notation. It is false where
// it is none, or longer than 292 years.
func parseDuration(s string) (Duration, bool) {
	if s = strings.TrimSpace(s); s == "infinity" {
		return Infinity, true
	}
	sum := int64(0)
	for rest := s; rest != ""; {
		n := len(rest) - len(strings.TrimLeft(rest, "0123456789."))
		number := rest[:n]
		rest = strings.TrimLeft(rest[n:], " ")
		u := strings.IndexAny(rest, "0123456789 ")
		if u < 0 {
			u = len(rest)
		}
		unit := spanOf(rest[:u])
		rest = strings.TrimLeft(rest[u:], " ")
		if number == "" || unit == 0 {
			return 0, false
		}
		part, ok := scaled(number, int64(unit))
		if !ok || part < 0 || part > math.MaxInt64-1-sum {
			return 0, false
		}
		sum += part
	}
	return Duration(sum), s != ""
}

// ParseDuration reads a span of time as definitions have it: in systemd's
// notation, "90", "90s", "1min 30s" or "infinity".
func ParseDuration(s string) (Duration, error) {
	d, ok := parseDuration(s)
	if !ok {
		return 0, fmt.Errorf("want %s, got %s", wantDuration, show(s))
	}
	return d, nil
}

// String writes d as systemd reads it: whole seconds where it is that.
func (d Duration) String() string {
	switch {
	case d == Infinity:
		return "infinity"
	case d%Duration(time.Second) == 0:
		return strconv.FormatInt(int64(d)/int64(time.Second), 10) + "s"
	}
	return strconv.FormatInt(int64(d)/int64(time.Microsecond), 10) + "us"
}

// parse reads a span of time from a TOML value; a number is seconds.
func (d *Duration) parse(v any) string {
	switch v := v.(type) {
	case int64:
		if v >= 0 && v <= math.MaxInt64/int64(time.Second)-1 {
			*d = Duration(v) * Duration(time.Second)
			return ""
		}
	case string:
		if got, ok := parseDuration(v); ok {
			*d = got
			return ""
		}
	}
	return wantDuration
}

package spec

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
)

// parseDuration reads "250ms", "1m30s": what time.ParseDuration reads, but nothing negative.
func parseDuration(s string) (time.Duration, *wrong) {
	d, err := time.ParseDuration(s)
	if err == nil && d >= 0 {
		return d, nil
	}
	w := &wrong{fmt.Sprintf("%q is not a duration", short(s)), `write a number with its unit (ms, s, m, h): "250ms", "30s", "10m"`}
	compact := strings.ToLower(strings.ReplaceAll(s, " ", ""))
	digits := strings.TrimRight(compact, "abcdefghijklmnopqrstuvwxyzµ")
	n, nerr := strconv.ParseInt(digits, 10, 32)
	if nerr != nil || n < 0 {
		return 0, w
	}
	switch unit := compact[len(digits):]; {
	case unit == "":
		w.what = fmt.Sprintf("%q has no unit", short(s))
		w.remedy = fmt.Sprintf(`write "%ds" or "%dms"`, n, n)
	case strings.HasPrefix("days", unit):
		w.remedy = fmt.Sprintf(`days are written in hours: "%dh"`, n*24)
	case strings.HasPrefix("seconds", unit) || unit == "secs":
		w.remedy = fmt.Sprintf(`did you mean "%ds"?`, n)
	case strings.HasPrefix("minutes", unit) || unit == "mins":
		w.remedy = fmt.Sprintf(`did you mean "%dm"?`, n)
	case strings.HasPrefix("hours", unit) || unit == "hrs":
		w.remedy = fmt.Sprintf(`did you mean "%dh"?`, n)
	case unit == "ms" || unit == "msec" || unit == "msecs" || unit == "millis" || unit == "milliseconds":
		w.remedy = fmt.Sprintf(`did you mean "%dms"?`, n)
	}
	return 0, w
}

// formatDuration writes d as operators write it: 10m, not 10m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

var units = []struct {
	name string
	size int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// parseSize reads "64MiB" and "0".
func parseSize(s string) (int64, *wrong) {
	digits := s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err == nil {
		if s == "0" {
			return 0, nil
		}
		for _, u := range units {
			if s[len(digits):] != u.name {
				continue
			}
			if n > (1<<62)/u.size {
				return 0, &wrong{fmt.Sprintf("%q is too large", short(s)), "choose at most 1024TiB"}
			}
			return n * u.size, nil
		}
	}
	w := &wrong{fmt.Sprintf("%q is not a size", short(s)), `write a whole number with its unit (B, KiB, MiB, GiB, TiB): "64MiB"`}
	unit := strings.ToLower(strings.TrimSpace(s[len(digits):]))
	if err == nil && unit == "" {
		w.what, w.remedy = fmt.Sprintf("%q has no unit", short(s)), fmt.Sprintf(`write "%dMiB" or "%dB"`, n, n)
	} else if err == nil {
		for _, u := range units {
			low := strings.ToLower(u.name)
			if unit == low || unit == low[:1] || u.size > 1 && unit == low[:1]+"b" {
				w.remedy = fmt.Sprintf("did you mean %q? Units are powers of 1024: B, KiB, MiB, GiB, TiB", strconv.FormatInt(n, 10)+u.name)
			}
		}
	}
	return 0, w
}

// formatSize writes n with the largest unit that divides it.
func formatSize(n int64) string {
	if n == 0 {
		return "0"
	}
	for _, u := range units {
		if n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// quote writes a string literal, with ${ and %{ escaped.
func quote(s string) string {
	return string(hclwrite.TokensForValue(cty.StringVal(s)).Bytes())
}

func quoteList(list []string) string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = quote(s)
	}
	return "[" + strings.Join(q, ", ") + "]"
}

// literalOf writes a compiled field as it stands in the file.
func literalOf(k *Key, field any) string {
	switch p := field.(type) {
	case *string:
		if k.Type == Count && !contains(k.Values, *p) {
			return *p
		}
		return quote(*p)
	case *int:
		return strconv.Itoa(*p)
	case *int64:
		return quote(formatSize(*p))
	case *bool:
		return strconv.FormatBool(*p)
	case *time.Duration:
		return quote(formatDuration(*p))
	case *[]string:
		return quoteList(*p)
	case *map[string]string:
		names := sortedKeys(*p)
		for i, n := range names {
			names[i] = n + " = " + quote((*p)[n])
		}
		if len(names) == 0 {
			return "{}"
		}
		return "{ " + strings.Join(names, ", ") + " }"
	}
	panic(errors.New("spec: key " + k.Name + " has a field of a type that the table does not know"))
}

// defaultLiteral is the default as it would be written, or "".
func (k *Key) defaultLiteral() string {
	switch d := k.Default.(type) {
	case string:
		return literalOf(k, &d)
	case int:
		return literalOf(k, &d)
	case int64:
		return literalOf(k, &d)
	case bool:
		return literalOf(k, &d)
	case time.Duration:
		return literalOf(k, &d)
	case []string:
		return literalOf(k, &d)
	}
	return ""
}

// bounds says which numbers k accepts.
func (k *Key) bounds() string {
	show := func(n int64) string {
		switch k.Type {
		case Duration:
			return formatDuration(time.Duration(n))
		case Size:
			return formatSize(n)
		}
		return strconv.FormatInt(n, 10)
	}
	if k.Max == 0 {
		return "at least " + show(k.Min)
	}
	s := show(k.Min) + " to " + show(k.Max)
	if k.zeroAllowed() && k.Min > 0 {
		s = "0 or " + s
	}
	return s
}

// zeroAllowed: a size that need not be given is 0 where there is none.
func (k *Key) zeroAllowed() bool { return k.Type == Size && !k.Required && k.Default == nil }

func (k *Key) within(n int64) bool {
	return n == 0 && k.zeroAllowed() || n >= k.Min && (k.Max == 0 || n <= k.Max)
}

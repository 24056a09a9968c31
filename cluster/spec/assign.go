package spec

import (
	"fmt"
	"strings"
	"time"
)

// assign puts l into a compiled field, or says what is wrong with it. path is where the positions of a list's items are
// kept.
func (d *decoder) assign(k *Key, field any, l literal, path, where string) bool {
	switch k.Type {
	case List, Argv:
		return d.assignList(k, field.(*[]string), l, path, where)
	case Map:
		return d.assignMap(k, field.(*map[string]string), l, where)
	case Bool:
		if l.kind != aBool {
			return d.mistyped(k, l, where)
		}
		*field.(*bool) = l.b
		return true
	case Int, Count:
		return d.assignNumber(k, field, l, where)
	case Duration, Size:
		return d.assignMeasure(k, field, l, where)
	}
	if l.kind != aString {
		return d.mistyped(k, l, where)
	}
	s, ok := d.check(k, l, where)
	if ok {
		*field.(*string) = s
	}
	return ok
}

func (d *decoder) assignNumber(k *Key, field any, l literal, where string) bool {
	if k.Type == Count && l.kind == aString {
		s, ok := d.check(k, l, where)
		if ok {
			*field.(*string) = s
		}
		return ok
	}
	if l.kind != aNumber {
		return d.mistyped(k, l, where)
	}
	n, whole := l.whole()
	switch {
	case !whole:
		d.add(l.at, where, fmt.Sprintf("%s wants a whole number", k.Name), "choose "+k.bounds())
		return false
	case !k.within(n):
		d.add(l.at, where, fmt.Sprintf("%s = %d is out of bounds", k.Name, n), "choose "+k.bounds())
		return false
	}
	if k.Type == Count {
		*field.(*string) = fmt.Sprint(n)
	} else {
		*field.(*int) = int(n)
	}
	return true
}

func (d *decoder) assignMeasure(k *Key, field any, l literal, where string) bool {
	if n, ok := l.whole(); ok && n == 0 {
		l.kind, l.s = aString, "0"
	}
	if l.kind != aString {
		return d.mistyped(k, l, where)
	}
	var n int64
	var w *wrong
	if k.Type == Duration {
		var t time.Duration
		t, w = parseDuration(l.s)
		n = int64(t)
	} else {
		n, w = parseSize(l.s)
	}
	if w == nil && !k.within(n) {
		w = &wrong{fmt.Sprintf("%s = %q is out of bounds", k.Name, short(l.s)), "choose " + k.bounds()}
	}
	if w != nil {
		d.add(l.at, where, w.what, w.remedy)
		return false
	}
	if k.Type == Duration {
		*field.(*time.Duration) = time.Duration(n)
	} else {
		*field.(*int64) = n
	}
	return true
}

func (d *decoder) assignList(k *Key, field *[]string, l literal, path, where string) bool {
	if l.kind != aList {
		return d.mistyped(k, l, where)
	}
	if len(l.items) == 0 && (k.Required || k.Kind || k.Default != nil) {
		d.add(l.at, where, k.Name+" is empty", "write at least one, as in "+k.example())
		return false
	}
	var out []string
	good := true
	for i, it := range l.items {
		if it.kind != aString {
			d.add(it.at, where, fmt.Sprintf("%s wants strings, not %s", k.Name, it.kind), "write each in quotes, as in "+k.example())
			good = false
			continue
		}
		s, ok := d.check(k, it, where)
		if ok && k.Type == List && contains(out, s) {
			d.add(it.at, where, fmt.Sprintf("%q stands in %s twice", short(s), k.Name), "remove one of them")
			ok = false
		}
		if ok && k.Type == Argv && i == 0 {
			ok = d.program(k, s, it, where)
		}
		good = good && ok
		if ok {
			d.pos[fmt.Sprintf("%s/%d", path, len(out))] = it.at
			out = append(out, s)
		}
	}
	*field = out
	return good
}

// program checks the first of an argv.
func (d *decoder) program(k *Key, s string, l literal, where string) bool {
	switch {
	case strings.HasPrefix(s, "/") && !strings.ContainsAny(s, " \t\n") && !strings.HasSuffix(s, "/"):
		return true
	case strings.ContainsAny(s, " \t\n"):
		d.add(l.at, where, fmt.Sprintf("%q is a whole command line; there is no shell to take it apart", short(s)), "write each argument by itself: "+short(quoteList(strings.Fields(s))))
	case strings.HasSuffix(s, "/"):
		d.add(l.at, where, fmt.Sprintf("%q is a directory", short(s)), "write the program's whole path")
	default:
		d.add(l.at, where, fmt.Sprintf("%q is not a whole path; programs are not searched for", short(s)), fmt.Sprintf("write the program's whole path (`command -v %s` shows it)", short(s)))
	}
	return false
}

func (d *decoder) assignMap(k *Key, field *map[string]string, l literal, where string) bool {
	if l.kind != aMap {
		return d.mistyped(k, l, where)
	}
	out := map[string]string{}
	good := true
	for i, it := range l.items {
		name, what, remedy, at := l.names[i], "", "", l.keyAt[i]
		_, twice := out[name]
		switch {
		case !envRE.MatchString(name):
			what, remedy = fmt.Sprintf("%q is not a name for %s", short(name), k.Name), "names are letters, digits and _, and do not begin with a digit"
		case k.Name == "env" && strings.HasPrefix(name, "HANODE_"):
			what, remedy = name+" is set by hanode itself", "choose another name"
		case twice:
			what, remedy = fmt.Sprintf("%s stands in %s twice", name, k.Name), "remove one of them"
		case it.kind != aString:
			at = it.at
			what, remedy = fmt.Sprintf("%s wants strings, not %s", k.Name, it.kind), "write "+name+" = "+`"..."`
		}
		if what != "" {
			d.add(at, where, what, remedy)
			good = false
			continue
		}
		out[name] = it.s
	}
	if len(out) > 0 {
		*field = out
	}
	return good
}

// check applies k's allowed words and syntax to a string.
func (d *decoder) check(k *Key, l literal, where string) (string, bool) {
	if len(k.Values) > 0 && !contains(k.Values, l.s) {
		remedy := "allowed: " + strings.Join(k.Values, ", ")
		if k.Type == Count {
			remedy += ", or a number without quotes"
		}
		if near := nearest(l.s, k.Values); near != "" {
			remedy = fmt.Sprintf("did you mean %q? %s", near, remedy)
		}
		d.add(l.at, where, fmt.Sprintf("%s = %q is not known", k.Name, short(l.s)), remedy)
		return "", false
	}
	if k.syntax != nil {
		s, w := k.syntax(l.s)
		if w != nil {
			d.add(l.at, where, w.what, w.remedy)
			return "", false
		}
		return s, true
	}
	return l.s, true
}

// mistyped says that a value of another type stands where k is, and how to write it.
func (d *decoder) mistyped(k *Key, l literal, where string) bool {
	if l.kind == "" {
		return false // said already
	}
	what := fmt.Sprintf("%s wants a %s, not %s", k.Name, k.Type, l.kind)
	remedy := "write it as in " + k.Name + " = " + k.example()
	switch k.Type {
	case Argv:
		what = fmt.Sprintf("%s wants a list of arguments, not %s", k.Name, l.kind)
		if l.kind == aString && strings.TrimSpace(l.s) != "" {
			remedy = "there is no shell; write " + k.Name + " = " + short(quoteList(strings.Fields(l.s)))
		}
	case List:
		if l.kind == aString {
			remedy = "write " + k.Name + " = " + short(quoteList([]string{l.s}))
		}
	case Bool:
		what = fmt.Sprintf("%s wants true or false, not %s", k.Name, l.kind)
		remedy = "write true or false, without quotes"
	case Int:
		if l.kind == aString {
			remedy = "write the number without quotes: " + k.bounds()
		}
	case Word:
		remedy = "allowed, in quotes: " + strings.Join(k.Values, ", ")
	case Duration:
		if n, ok := l.whole(); ok {
			remedy = fmt.Sprintf(`write it with its unit, in quotes: "%ds" or "%dms"`, n, n)
		}
	case Size:
		if n, ok := l.whole(); ok {
			remedy = fmt.Sprintf(`write it with its unit, in quotes: "%dMiB" or "%dB"`, n, n)
		}
	}
	d.add(l.at, where, what, remedy)
	return false
}

// example is a value of k as it is written in the file.
func (k *Key) example() string {
	if k.Example != "" {
		return k.Example
	}
	if s := k.defaultLiteral(); s != "" {
		return s
	}
	return "..."
}

// nearest returns the one of the words that s was probably meant to be, or "".
func nearest(s string, words []string) string {
	s = strings.ToLower(strings.NewReplacer("-", "_", " ", "_").Replace(strings.TrimSpace(s)))
	if len(s) > 40 {
		return ""
	}
	best, at := "", 3
	for _, w := range words {
		lw := strings.ReplaceAll(w, "-", "_")
		if s == strings.ToLower(lw) || strings.TrimPrefix(s, "sig") == strings.ToLower(lw) {
			return w
		}
		if n := distance(s, strings.ToLower(lw)); n < at && n < len(w) && n <= max(1, len(w)/3) {
			best, at = w, n
		}
	}
	if best == "" && len(s) >= 3 {
		for _, w := range words {
			if strings.HasPrefix(w, s) || len(w) >= 3 && strings.HasPrefix(s, w) {
				return w
			}
		}
	}
	return best
}

// distance is Damerau's: insertions, removals, replacements and swaps of neighbours.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	row := make([][]int, len(x)+1)
	for i := range row {
		row[i] = make([]int, len(y)+1)
		row[i][0] = i
	}
	for j := range row[0] {
		row[0][j] = j
	}
	for i := 1; i <= len(x); i++ {
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			n := min(row[i-1][j]+1, row[i][j-1]+1, row[i-1][j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				n = min(n, row[i-2][j-2]+1)
			}
			row[i][j] = n
		}
	}
	return row[len(x)][len(y)]
}

package spec

import (
	"time"
)

// Type is what a key's value looks like in the file.
type Type string

const (
	Word     Type = "word"         // one of Values, in quotes
	Count    Type = "word or int"  // one of Values in quotes, or a whole number
	String   Type = "string"       // in quotes
	Int      Type = "whole number" // without quotes
	Bool     Type = "true or false"
	Duration Type = "duration" // "250ms", "10m"
	Size     Type = "size"     // "64MiB"; 0
	List     Type = "list"     // of strings
	Argv     Type = "argv"     // a list: the program's whole path and its arguments; no shell
	Map      Type = "map"      // of strings
)

// Class says when a changed key takes effect in a running cluster.
type Class string

const (
	Live      Class = "live"       // at once, nothing is interrupted
	NextGrant Class = "next grant" // when the service is next granted to a member
	NeedsStop Class = "needs stop" // the process or service is stopped and started again
	Refused   Class = "refused"    // not by apply; another command does it
)

// Key is one argument of a block.
type Key struct {
	Name     string
	Type     Type
	Required bool     // with Only: required where Only holds
	Default  any      // nil: the zero value
	Values   []string // the allowed words
	Min, Max int64    // whole numbers as they are, durations in ns, sizes in bytes; Max 0: no bound
	Unit     string
	Class    Class
	Kind     bool     // exactly one of the block's kind keys must stand in it
	Only     *Cond    // the key means something only where this holds
	NotWith  []string // keys beside which this key would do nothing
	Example  string   // a value, as it is written in the file
	Doc      string

	syntax func(string) (string, *wrong) // checks a string, or each of a list, and returns its canonical form
	derive func(block any) string        // the default, where it follows from other keys
	field  func(block any) any           // pointer to the compiled field
}

// Cond holds where the other key has one of the values; without values, where it is given at all.
type Cond struct {
	Key    string
	Values []string
}

// Label says what stands between a block's type and its brace.
type Label string

const (
	NoLabel   Label = ""
	NameLabel Label = "NAME"
	CIDRLabel Label = "CIDR"
	SiteLabel Label = "SITE"
)

// Block is one kind of block: its keys and what may stand in it.
type Block struct {
	Name   string
	Label  Label
	Keys   []Key
	Blocks []*Block
	Doc    string
	Always bool  // exists with its defaults where the file does not have it
	Class  Class // of adding or removing one

	make     func(parent any) any              // a new one for parent, not yet in it
	put      func(parent any, l string, v any) // puts what make returned into parent
	each     func(parent any, f func(any))     // walks those in parent, in order
	label    func(v any) string                // reads the label of a compiled one
	name     func(v any, l string)             // sets it
	kind     func(v any) *string               // where the chosen kind key's name is kept, if it is kept
	done     func(v any)                       // sets what follows from the keys and has none of its own
	order    bool                              // their order means something
	implicit bool                              // one that does not stand there is one with the defaults
}

// key returns the named key, or nil.
func (b *Block) key(name string) *Key {
	for i := range b.Keys {
		if b.Keys[i].Name == name {
			return &b.Keys[i]
		}
	}
	return nil
}

// child returns the named block, or nil.
func (b *Block) child(name string) *Block {
	for _, c := range b.Blocks {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// kinds lists the names of the block's kind keys.
func (b *Block) kinds() []string {
	var out []string
	for i := range b.Keys {
		if b.Keys[i].Kind {
			out = append(out, b.Keys[i].Name)
		}
	}
	return out
}

// given says whether k stands in v: for a kind key that it is the chosen one, for others that its value is not the
// default.
func (b *Block) given(k *Key, v any) bool {
	if k.Kind && b.kind != nil {
		return *b.kind(v) == k.Name
	}
	if k.derive != nil {
		return *k.field(v).(*string) != k.derive(v)
	}
	return !equalsDefault(k, k.field(v))
}

// holds says whether c holds in v.
func (b *Block) holds(c *Cond, v any) bool {
	k := b.key(c.Key)
	if len(c.Values) == 0 {
		return b.given(k, v)
	}
	if k.Kind && b.kind != nil && !b.given(k, v) {
		return false
	}
	s, _ := k.field(v).(*string)
	return s != nil && contains(c.Values, *s)
}

// fill sets all defaults of v.
func (b *Block) fill(v any) {
	for i := range b.Keys {
		if k := &b.Keys[i]; k.Default != nil {
			setDefault(k, k.field(v))
		}
	}
	for _, c := range b.Blocks {
		if c.Always {
			c.fill(c.make(v))
		}
	}
	if b.done != nil {
		b.done(v)
	}
}

func setDefault(k *Key, field any) {
	switch p := field.(type) {
	case *string:
		*p = k.Default.(string)
	case *int:
		*p = k.Default.(int)
	case *int64:
		*p = k.Default.(int64)
	case *bool:
		*p = k.Default.(bool)
	case *time.Duration:
		*p = k.Default.(time.Duration)
	case *[]string:
		*p = append([]string(nil), k.Default.([]string)...)
	}
}

func equalsDefault(k *Key, field any) bool {
	switch p := field.(type) {
	case *string:
		d, _ := k.Default.(string)
		return *p == d
	case *int:
		d, _ := k.Default.(int)
		return *p == d
	case *int64:
		d, _ := k.Default.(int64)
		return *p == d
	case *bool:
		d, _ := k.Default.(bool)
		return *p == d
	case *time.Duration:
		d, _ := k.Default.(time.Duration)
		return *p == d
	case *[]string:
		d, _ := k.Default.([]string)
		return equalLists(*p, d)
	case *map[string]string:
		return len(*p) == 0
	}
	return false
}

func equalLists(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// at makes the untyped accessor of a compiled field.
func at[B any](f func(*B) any) func(any) any { return func(v any) any { return f(v.(*B)) } }

// listed makes b one whose instances stand in a slice of their parent; label points to where its label is kept.
func listed[P, C any](b *Block, slice func(*P) *[]C, label func(*C) *string) *Block {
	b.make = func(any) any { return new(C) }
	b.put = func(parent any, _ string, v any) {
		s := slice(parent.(*P))
		*s = append(*s, *v.(*C))
	}
	b.each = func(parent any, f func(any)) {
		s := *slice(parent.(*P))
		for i := range s {
			f(&s[i])
		}
	}
	b.label = func(v any) string { return *label(v.(*C)) }
	b.name = func(v any, l string) { *label(v.(*C)) = l }
	return b
}

// canonicalLabel checks a label and returns how the compiled spec and Render spell it.
func canonicalLabel(l Label, s string) (string, *wrong) {
	switch l {
	case CIDRLabel:
		return vipSyntax(s)
	case SiteLabel:
		return siteSyntax(s)
	default:
		return nameSyntax(s)
	}
}

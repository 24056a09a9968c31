package spec

import (
	"strings"

	"github.com/hanode/hanode/cluster"
)

// Change is one difference between two compiled specs.
type Change struct {
	Service string `json:"service,omitempty"` // empty: of the cluster
	Key     string `json:"key"`               // within the service, as in: process "postgres" stop_timeout
	Old     string `json:"old"`               // as it is written in the file; empty where there was none
	New     string `json:"new"`
	Class   Class  `json:"class"`
}

// Present is Old or New of a change that is about a whole block.
const Present = "present"

// Diff compares two compiled specs. What has not changed yields nothing, so that a service that is in none of the
// changes need not be touched. A service that is gone is Refused: only an order that names it may remove it. A nil spec
// is an empty one.
func Diff(old, new *cluster.Spec) []Change {
	fresh := func(s *cluster.Spec) *cluster.Spec {
		if s == nil {
			s = &cluster.Spec{}
			Root().fill(s)
		}
		return s
	}
	var c comparison
	c.blocks(Root(), fresh(old), fresh(new), "", "")
	return c.changes
}

// Touched says whether a change is of the named service.
func Touched(changes []Change, service string) bool {
	for _, c := range changes {
		if c.Service == service {
			return true
		}
	}
	return false
}

// Strictest is the class that needs the most of all changes; Live where there are none.
func Strictest(changes []Change) Class {
	rank := map[Class]int{Live: 0, NextGrant: 1, NeedsStop: 2, Refused: 3}
	worst := Live
	for _, c := range changes {
		if rank[c.Class] > rank[worst] {
			worst = c.Class
		}
	}
	return worst
}

type comparison struct{ changes []Change }

func (c *comparison) note(service, key, old, new string, class Class) {
	if old != new {
		c.changes = append(c.changes, Change{service, strings.TrimSpace(key), old, new, class})
	}
}

// blocks compares all blocks that stand in two parents.
func (c *comparison) blocks(parent *Block, old, new any, service, prefix string) {
	for _, b := range parent.Blocks {
		was, wasOrder := b.labelled(old)
		is, isOrder := b.labelled(new)
		for _, l := range wasOrder {
			if _, ok := is[l]; !ok {
				c.pair(b, l, was[l], nil, service, prefix)
			}
		}
		for _, l := range isOrder {
			c.pair(b, l, was[l], is[l], service, prefix)
		}
		if b.order {
			c.note(service, prefix+b.Name+" order", strings.Join(common(wasOrder, is), ", "), strings.Join(common(isOrder, was), ", "), NextGrant)
		}
	}
}

// pair compares one block with its namesake; one of them may be nil.
func (c *comparison) pair(b *Block, label string, old, new any, service, prefix string) {
	key := prefix + b.Name
	if b.Label != NoLabel && b.Name != "service" {
		key += " " + quote(label)
	}
	if b.Name == "service" {
		service, key = label, "service"
	}
	if b.implicit && (old == nil || new == nil) {
		blank := b.make(nil)
		b.fill(blank)
		if old == nil {
			old = blank
		} else {
			new = blank
		}
	}
	switch {
	case old == nil:
		c.note(service, key, "", Present, b.Class)
		return
	case new == nil && b.Name == "service":
		c.note(service, key, Present, "", Refused)
		return
	case new == nil:
		c.note(service, key, Present, "", b.Class)
		return
	}
	inner := key + " "
	if b.Name == "service" {
		inner = ""
	}
	for i := range b.Keys {
		k := &b.Keys[i]
		c.note(service, inner+k.Name, b.text(k, old), b.text(k, new), k.Class)
	}
	c.blocks(b, old, new, service, inner)
}

// text is a key's value as it is written in the file, and empty for what is not there and has no default.
func (b *Block) text(k *Key, v any) string {
	if k.Kind && !b.given(k, v) || k.Default == nil && k.derive == nil && equalsDefault(k, k.field(v)) && k.Type != Bool && k.Type != Int {
		return ""
	}
	return literalOf(k, k.field(v))
}

// labelled returns the instances of b in parent by their labels, and the labels in order.
func (b *Block) labelled(parent any) (map[string]any, []string) {
	m := map[string]any{}
	var order []string
	b.each(parent, func(v any) {
		l := ""
		if b.label != nil {
			l = b.label(v)
		}
		m[l] = v
		order = append(order, l)
	})
	return m, order
}

// common lists those of order that other has too.
func common(order []string, other map[string]any) []string {
	var out []string
	for _, l := range order {
		if _, ok := other[l]; ok {
			out = append(out, l)
		}
	}
	return out
}

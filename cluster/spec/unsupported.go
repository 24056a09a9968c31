package spec

import (
	"fmt"

	"github.com/hanode/hanode/cluster"
)

// Limit is something of the language that this version reads but cannot run.
type Limit struct {
	Block string // as in "volume", "check"
	Key   string // "": the block itself
	Value string // "": any value but the default
	Why   string // one sentence for the operator, with what to do instead
}

// Problem is something that stands in the way of running a correct spec.
type Problem struct {
	Node    string `json:"node,omitempty"`    // empty: everywhere
	Service string `json:"service,omitempty"` // empty: the cluster
	Where   string `json:"where"`             // the block and key within the service, as in: check "sql" postgres
	What    string `json:"what"`
	Remedy  string `json:"remedy"`
}

// String is the problem in one line.
func (p Problem) String() string {
	s := ""
	if p.Node != "" {
		s = "on " + p.Node + ": "
	}
	if p.Service != "" {
		s += "service " + quote(p.Service) + ", "
	}
	return fmt.Sprintf("%s%s: %s; %s", s, p.Where, p.What, p.Remedy)
}

// Unsupported lists what of s this version cannot run, by the caller's table of limits, so that it can be refused before
// anything is touched. A limit of a block or key that the language does not have is a bug of the caller and is told as a
// problem too.
func Unsupported(s *cluster.Spec, limits []Limit) []Problem {
	var out []Problem
	for _, l := range limits {
		if !known(Root(), l) {
			out = append(out, Problem{Where: l.Block + " " + l.Key, What: "the table of limits names what the language does not have", Remedy: "report this as a bug"})
		}
	}
	walk(Root(), s, "", "", func(b *Block, v any, service, where string) {
		for _, l := range limits {
			if l.Block != b.Name {
				continue
			}
			if l.Key == "" {
				out = append(out, Problem{Service: service, Where: where, What: "this version cannot run it", Remedy: l.Why})
				continue
			}
			k := b.key(l.Key)
			if k == nil || !b.given(k, v) {
				continue
			}
			text := literalOf(k, k.field(v))
			if l.Value == "" || text == l.Value || text == quote(l.Value) {
				out = append(out, Problem{Service: service, Where: where + " " + k.Name, What: fmt.Sprintf("this version cannot run %s = %s", k.Name, short(text)), Remedy: l.Why})
			}
		}
	})
	return out
}

func known(b *Block, l Limit) bool {
	if b.Name == l.Block && (l.Key == "" || b.key(l.Key) != nil) {
		return true
	}
	for _, c := range b.Blocks {
		if known(c, l) {
			return true
		}
	}
	return false
}

// walk visits every block of a compiled spec. Blocks that exist always are visited too.
func walk(parent *Block, v any, service, prefix string, f func(b *Block, v any, service, where string)) {
	for _, b := range parent.Blocks {
		b.each(v, func(x any) {
			s, where := service, prefix+b.Name
			if b.label != nil {
				where += " " + quote(b.label(x))
			}
			inner := where + ", "
			if b.Name == "service" {
				s, where, inner = b.label(x), "service", ""
			}
			f(b, x, s, where)
			walk(b, x, s, inner, f)
		})
	}
}

package spec

import (
	"fmt"
	"math/big"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// literal is a value that stands in the file as such.
type literal struct {
	kind  string // "a string", "a number", "true or false", "a list", "a map"
	s     string
	n     *big.Float
	b     bool
	items []literal // of a list or map
	names []string  // of a map
	keyAt []hcl.Range
	at    hcl.Range
}

const (
	aString = "a string"
	aNumber = "a number"
	aBool   = "true or false"
	aList   = "a list"
	aMap    = "a map"
)

// literal reads e, or says why it is not a literal.
func (d *decoder) literal(e hclsyntax.Expression, where string) (literal, bool) {
	l := literal{at: e.Range()}
	refuse := func(at hcl.Range, what, remedy string) (literal, bool) {
		d.add(at, where, what, remedy)
		return l, false
	}
	switch e := e.(type) {
	case *hclsyntax.LiteralValueExpr:
		return d.scalar(l, e.Val, where)
	case *hclsyntax.UnaryOpExpr:
		if v, ok := e.Val.(*hclsyntax.LiteralValueExpr); ok && e.Op == hclsyntax.OpNegate && v.Val.Type() == cty.Number {
			l, ok := d.scalar(l, v.Val, where)
			if ok {
				l.n = new(big.Float).Neg(l.n)
			}
			return l, ok
		}
	case *hclsyntax.TemplateExpr:
		return d.text(l, e, where)
	case *hclsyntax.TemplateWrapExpr:
		return refuse(l.at, "a value cannot be computed", "write it out; hanode has no variables ($${ stands for ${ as it is)")
	case *hclsyntax.TupleConsExpr:
		l.kind = aList
		good := true
		for _, x := range e.Exprs {
			item, ok := d.literal(x, where)
			good = good && ok
			l.items = append(l.items, item)
		}
		return l, good
	case *hclsyntax.ObjectConsExpr:
		return d.object(l, e, where)
	case *hclsyntax.ScopeTraversalExpr:
		word := d.source(l.at)
		if hclsyntax.ValidIdentifier(word) {
			return refuse(l.at, fmt.Sprintf("%s stands without quotes", short(word)), fmt.Sprintf("write %s", quote(word)))
		}
		return refuse(l.at, fmt.Sprintf("%s would be a variable; hanode has none", short(word)), "write the value itself, in quotes")
	case *hclsyntax.FunctionCallExpr:
		return refuse(l.at, fmt.Sprintf("%s(...) would be a function; hanode has none", short(e.Name)), "write the value itself")
	}
	return refuse(l.at, "a value cannot be computed", "write the value itself: a string in quotes, a number, true, false, or a list of strings")
}

// scalar is a number, true, false or null.
func (d *decoder) scalar(l literal, v cty.Value, where string) (literal, bool) {
	switch {
	case !v.IsKnown(): // a number of a broken line
		d.add(l.at, where, "this is no number", "write digits")
		return l, false
	case v.IsNull():
		d.add(l.at, where, "null is no value", "remove the line; the default applies then")
		return l, false
	case v.Type() == cty.Number:
		l.kind, l.n = aNumber, v.AsBigFloat()
	case v.Type() == cty.Bool:
		l.kind, l.b = aBool, v.True()
	case v.Type() == cty.String:
		l.kind, l.s = aString, v.AsString()
	}
	return l, l.kind != ""
}

// text is a string in quotes.
func (d *decoder) text(l literal, e *hclsyntax.TemplateExpr, where string) (literal, bool) {
	if strings.HasPrefix(d.source(l.at), "<<") {
		d.add(l.at, where, "a text over several lines is not accepted", `write it in quotes on one line, with \n where a line ends`)
		return l, false
	}
	var b strings.Builder
	for _, p := range e.Parts {
		lit, ok := p.(*hclsyntax.LiteralValueExpr)
		if !ok || !lit.Val.IsKnown() || lit.Val.IsNull() || lit.Val.Type() != cty.String {
			d.add(l.at, where, "a text cannot be put together from variables", "write it out; hanode has no variables ($${ stands for ${ as it is, %%{ for %{)")
			return l, false
		}
		b.WriteString(lit.Val.AsString())
	}
	l.kind, l.s = aString, cty.StringVal(b.String()).AsString()
	if strings.ContainsRune(l.s, 0) {
		d.add(l.at, where, "the text contains the character NUL", "remove \\u0000: no program can be given it")
		return l, false
	}
	return l, true
}

// object is a map: names to strings.
func (d *decoder) object(l literal, e *hclsyntax.ObjectConsExpr, where string) (literal, bool) {
	l.kind = aMap
	good := true
	for _, it := range e.Items {
		k, at := it.KeyExpr, it.KeyExpr.Range()
		name := hcl.ExprAsKeyword(k)
		if name == "" {
			if w, ok := k.(*hclsyntax.ObjectConsKeyExpr); ok {
				k = w.Wrapped
			}
			t, ok := k.(*hclsyntax.TemplateExpr)
			var lit literal
			if ok {
				lit, ok = d.text(literal{at: at}, t, where)
			} else {
				d.add(at, where, "this is not a name", `write NAME = "value"`)
			}
			good = good && ok
			name = lit.s
		}
		v, ok := d.literal(it.ValueExpr, where)
		good = good && ok
		l.names, l.keyAt, l.items = append(l.names, name), append(l.keyAt, at), append(l.items, v)
	}
	return l, good
}

// whole returns the literal as a whole number.
func (l *literal) whole() (int64, bool) {
	if l.kind != aNumber || !l.n.IsInt() {
		return 0, false
	}
	n, acc := l.n.Int64()
	return n, acc == big.Exact
}

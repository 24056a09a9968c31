package spec

import (
	"bytes"
	"fmt"
	"sort"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/hanode/hanode/cluster"
)

const (
	maxSource    = 256 << 10 // bytes of one spec
	maxServices  = 256
	maxDepth     = 32  // brackets within brackets
	maxOperators = 256 // of signs that no spec needs; each could make the parser recurse
)

// Option is something that Parse knows besides the text.
type Option func(*decoder)

// WithMembers tells Parse who has joined: names that are not among them are refused, with the line that joins them.
// Without it, names are not looked up.
func WithMembers(members ...Member) Option {
	return func(d *decoder) { d.members, d.knowsMembers = members, true }
}

// decoder turns one file into one compiled spec.
type decoder struct {
	*journal
	src          []byte
	pos          map[string]hcl.Range // of keys, list items and labels, by path
	members      []Member
	knowsMembers bool
}

// Parse compiles the text of a spec, all defaults filled in. It returns either a spec, or everything that is wrong with
// the text, in the order of the file.
func Parse(filename string, src []byte, opts ...Option) (*cluster.Spec, Diagnostics) {
	d := &decoder{journal: newJournal(filename, src), src: src, pos: map[string]hcl.Range{}}
	for _, o := range opts {
		o(d)
	}
	if !d.acceptable() {
		return nil, d.list()
	}
	f, diags := hclsyntax.ParseConfig(src, filename, hcl.InitialPos)
	broken := d.syntax(diags)
	if f == nil || f.Body == nil {
		return nil, d.list()
	}
	root, s := Root(), new(cluster.Spec)
	root.fill(s)
	said := len(d.found)
	d.body(root, s, f.Body.(*hclsyntax.Body), "", "")
	if broken != nil { // what stands behind the first broken line may have been misread
		kept := d.found[:said]
		for _, x := range d.found[said:] {
			if x.Line < broken.Start.Line && !x.absent {
				kept = append(kept, x)
			}
		}
		d.found = kept
	} else {
		d.references(s)
	}
	if found := d.list(); len(found) > 0 {
		return nil, found
	}
	return s, nil
}

// acceptable refuses text that the parser must not be given: too long, or nested so deep that it would recurse until
// the stack ends, which no recover could catch.
func (d *decoder) acceptable() bool {
	first := hcl.Range{Filename: d.file, Start: hcl.InitialPos, End: hcl.InitialPos}
	if len(d.src) > maxSource {
		d.add(first, "", fmt.Sprintf("the spec has %d bytes", len(d.src)), fmt.Sprintf("at most %d are accepted", maxSource))
		return false
	}
	tokens, _ := hclsyntax.LexConfig(d.src, d.file, hcl.InitialPos)
	depth, operators := 0, 0
	for _, t := range tokens {
		switch t.Type {
		case hclsyntax.TokenOBrace, hclsyntax.TokenOBrack, hclsyntax.TokenOParen, hclsyntax.TokenTemplateInterp, hclsyntax.TokenTemplateControl, hclsyntax.TokenOHeredoc, hclsyntax.TokenOQuote:
			depth++
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen, hclsyntax.TokenTemplateSeqEnd, hclsyntax.TokenCHeredoc, hclsyntax.TokenCQuote:
			depth = max(0, depth-1)
		case hclsyntax.TokenBang, hclsyntax.TokenMinus, hclsyntax.TokenQuestion, hclsyntax.TokenColon, hclsyntax.TokenPlus, hclsyntax.TokenStar,
			hclsyntax.TokenSlash, hclsyntax.TokenPercent, hclsyntax.TokenAnd, hclsyntax.TokenOr, hclsyntax.TokenDot,
			hclsyntax.TokenEqualOp, hclsyntax.TokenNotEqual, hclsyntax.TokenLessThan, hclsyntax.TokenLessThanEq, hclsyntax.TokenGreaterThan, hclsyntax.TokenGreaterThanEq:
			operators++
		}
		if depth > maxDepth || operators > maxOperators {
			d.add(t.Range, "", "this is nested too deep or computes too much", "write values out; hanode has no expressions")
			return false
		}
	}
	return true
}

// syntax notes what the HCL parser says, and returns where the first thing stands after which the rest may have been
// misread, or nil.
func (d *decoder) syntax(diags hcl.Diagnostics) *hcl.Range {
	var broken *hcl.Range
	lines := map[int]bool{} // one per line: what follows in a line is mostly told by the first
	inText := false
	for _, x := range diags {
		if x.Severity != hcl.DiagError {
			continue
		}
		at := hcl.Range{Start: hcl.InitialPos, End: hcl.InitialPos}
		if x.Subject != nil {
			at = *x.Subject
		}
		if x.Summary == "Attribute redefined" {
			d.add(at, "", short(d.source(at))+" is given twice in this block", "keep one of them")
			continue
		}
		if broken == nil || at.Start.Byte < broken.Start.Byte {
			r := at
			broken = &r
		}
		what, remedy := lowerFirst(x.Summary), strings.Join(strings.Fields(x.Detail), " ")
		switch x.Summary {
		case "Invalid multi-line string", "Unterminated template string", "Unterminated string literal":
			if inText {
				continue
			}
			inText = true
			what, remedy = "a text in quotes does not end in its line", `close it with "; where a line ends within a text, write \n`
		case "Invalid expression", "Missing expression":
			what, remedy = "here a value should stand", `write a text in quotes, a number, true, false, or a list such as ["a", "b"]`
		}
		if !lines[at.Start.Line] {
			lines[at.Start.Line] = true
			d.add(at, "", what, remedy)
		}
	}
	return broken
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// source is the text of a range.
func (d *decoder) source(r hcl.Range) string {
	if !r.CanSliceBytes(d.src) {
		return ""
	}
	return string(bytes.TrimSpace(r.SliceBytes(d.src)))
}

// body reads what stands in one block.
func (d *decoder) body(b *Block, v any, body *hclsyntax.Body, path, where string) {
	seen := map[string]hcl.Range{}
	meant := map[string]bool{} // keys that were probably meant by others
	good := true
	for _, a := range inOrder(body) {
		k := b.key(a.Name)
		if k == nil {
			meant[d.unknownKey(b, a, where)] = true
			continue
		}
		seen[k.Name] = a.NameRange
		d.pos[path+"/"+k.Name] = a.Expr.Range()
		if k.Kind && b.kind != nil && *b.kind(v) == "" {
			*b.kind(v) = k.Name
		}
		l, ok := d.literal(a.Expr, where)
		if ok {
			ok = d.assign(k, k.field(v), l, path+"/"+k.Name, where)
		}
		good = good && ok
	}
	labels := map[string]hcl.Range{}
	for _, hb := range body.Blocks {
		d.block(b, v, hb, labels, path, where)
	}
	d.complete(b, v, seen, meant, path, where, good)
}

// complete checks what the keys of a block say together, and derives what was not said.
func (d *decoder) complete(b *Block, v any, seen map[string]hcl.Range, meant map[string]bool, path, where string, good bool) {
	header := d.pos[path]
	var chosen []string
	guessed := false
	for i := range b.Keys {
		k := &b.Keys[i]
		at, given := seen[k.Name]
		guessed = guessed || k.Kind && meant[k.Name]
		if given && k.Kind {
			chosen = append(chosen, k.Name)
		}
		if !given && k.derive != nil {
			*k.field(v).(*string) = k.derive(v)
		}
		applies := k.Only == nil || b.holds(k.Only, v)
		if given && !applies && good {
			d.add(at, where, fmt.Sprintf("%s does nothing unless %s", k.Name, k.Only), fmt.Sprintf("add %s, or remove %s", k.Only.example(b), k.Name))
		}
		if !given && !meant[k.Name] && k.Required && applies {
			what := k.Name + " is missing"
			if k.Only != nil {
				what += ": it is needed with " + k.Only.String()
			}
			d.lacks(header, where, what, fmt.Sprintf("add %s = %s", k.Name, k.example()))
		}
		for _, other := range k.NotWith {
			if _, both := seen[other]; both && given {
				d.add(at, where, fmt.Sprintf("%s does nothing beside %s", k.Name, other), notWith(other))
			}
		}
	}
	kinds := b.kinds()
	switch {
	case len(kinds) > 0 && len(chosen) == 0 && !guessed:
		d.lacks(header, where, "it is missing what to "+b.purpose(), "add exactly one of "+strings.Join(kinds, ", ")+", as in "+b.Keys[0].Name+" = "+b.Keys[0].example())
	case len(chosen) > 1:
		sort.Slice(chosen, func(i, j int) bool { return seen[chosen[i]].Start.Byte < seen[chosen[j]].Start.Byte })
		d.add(seen[chosen[1]], where, fmt.Sprintf("%s beside %s", chosen[1], chosen[0]), "keep exactly one of "+strings.Join(chosen, ", ")+"; use a second "+b.Name+" block for the other")
	}
	if b.done != nil {
		b.done(v)
	}
}

// notWith is the remedy for a key that does nothing beside another.
func notWith(other string) string {
	switch other {
	case "systemd":
		return "set it in the unit itself (`systemctl edit`), or use start instead of systemd"
	case "ocf":
		return "give it to the agent in params, or use start instead of ocf"
	}
	return "keep one of them"
}

func (b *Block) purpose() string {
	switch b.Name {
	case "process":
		return "start"
	case "alert":
		return "use"
	}
	return b.Name
}

func (c *Cond) String() string {
	if len(c.Values) == 0 {
		return c.Key + " is given"
	}
	return c.Key + " = " + strings.Join(quoted(c.Values), " or ")
}

// example is a line that makes c hold.
func (c *Cond) example(b *Block) string {
	if len(c.Values) == 0 {
		return c.Key + " = " + b.key(c.Key).example()
	}
	if len(c.Values) > 1 {
		return c.Key + " = one of them"
	}
	return c.Key + " = " + quote(c.Values[0])
}

func quoted(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = quote(s)
	}
	return out
}

// block reads one block that stands in b.
func (d *decoder) block(b *Block, v any, hb *hclsyntax.Block, seen map[string]hcl.Range, path, where string) {
	c := b.child(hb.Type)
	if c == nil {
		d.unknownBlock(b, hb, where)
		return
	}
	label, at, ok := d.label(c, hb, where)
	if label == "" {
		label = "?" // read on, for the errors within
	}
	inPath := path + "/" + c.Name
	inWhere := c.Name
	if c.Label != NoLabel {
		inPath += "/" + label
		inWhere += " " + quote(label)
	}
	if where != "" {
		inWhere = where + ", " + inWhere
	}
	if first, twice := seen[inPath]; twice && ok {
		what := fmt.Sprintf("%s %q stands twice; first in line %d", c.Name, label, first.Start.Line)
		remedy := "give one of them another name, or remove it"
		if c.Label == NoLabel {
			what = fmt.Sprintf("%s stands twice; first in line %d", c.Name, first.Start.Line)
			remedy = "put both into one block"
		}
		d.add(at, where, what, remedy)
		ok = false
	}
	child := c.make(v)
	if !ok && c.Label == NoLabel && c.Always {
		child = scratch(c, v)
	}
	c.fill(child)
	if c.Label != NoLabel {
		c.name(child, label)
	}
	if ok {
		seen[inPath], d.pos[inPath] = at, at
	} else {
		inPath = fmt.Sprintf("%s@%d", inPath, at.Start.Byte) // a place of its own: positions of the first stay
		d.pos[inPath] = at
	}
	d.body(c, child, hb.Body, inPath, inWhere)
	if ok {
		c.put(v, label, child)
	}
}

// scratch is a parent's stand-in, for the second of two blocks of which there may be one.
func scratch(c *Block, parent any) any {
	switch parent.(type) {
	case *cluster.Spec:
		return c.make(new(cluster.Spec))
	case *cluster.ServiceSpec:
		return c.make(new(cluster.ServiceSpec))
	}
	return c.make(parent)
}

// label reads and checks the label of a block. The range is the label's, or the block type's where there is none.
func (d *decoder) label(c *Block, hb *hclsyntax.Block, where string) (string, hcl.Range, bool) {
	at := hb.TypeRange
	switch {
	case c.Label == NoLabel && len(hb.Labels) == 0:
		return "", at, true
	case c.Label == NoLabel:
		d.add(hb.LabelRanges[0], where, c.Name+" has no label", "write "+c.Name+" { ... }")
		return "", at, false
	case len(hb.Labels) == 0:
		d.add(at, where, c.labelWord()+" of the "+c.Name+" is missing", "write "+c.Name+" "+c.labelExample()+" { ... }")
		return "", at, false
	case len(hb.Labels) > 1:
		d.add(hb.LabelRanges[1], where, c.Name+" has more than one label", "write "+c.Name+" "+quote(short(hb.Labels[0]))+" { ... }")
		return hb.Labels[0], hb.LabelRanges[0], false
	}
	at = hb.LabelRanges[0]
	s, w := canonicalLabel(c.Label, hb.Labels[0])
	if w != nil {
		d.add(at, where, w.what, w.remedy)
		return short(hb.Labels[0]), at, false
	}
	return s, at, true
}

func (b *Block) labelWord() string {
	switch b.Label {
	case CIDRLabel:
		return "the address"
	case SiteLabel:
		return "the site"
	}
	return "the name"
}

func (b *Block) labelExample() string {
	switch b.Label {
	case CIDRLabel:
		return `"10.0.0.50/24"`
	case SiteLabel:
		return `"lyon"`
	}
	return `"name"`
}

func inOrder(body *hclsyntax.Body) []*hclsyntax.Attribute {
	out := make([]*hclsyntax.Attribute, 0, len(body.Attributes))
	for _, a := range body.Attributes {
		out = append(out, a)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].NameRange.Start.Byte < out[j].NameRange.Start.Byte })
	return out
}

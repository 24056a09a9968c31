package spec

import (
	"bytes"
	"sort"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"

	"github.com/hanode/hanode/cluster"
)

// Format lays out the text of a spec as `hanode spec fmt` does. Text that cannot be parsed is returned as it is.
// Formatting twice changes nothing more.
func Format(src []byte) []byte {
	d := &decoder{journal: newJournal("", nil), src: src, pos: map[string]hcl.Range{}}
	if !d.acceptable() {
		return src
	}
	if _, diags := hclsyntax.ParseConfig(src, "", hcl.InitialPos); diags.HasErrors() {
		return src
	}
	out := bytes.ReplaceAll(src, []byte("\r\n"), []byte("\n"))
	for range 4 { // the writer's own formatter needs a second pass for some comments
		next := bytes.TrimSpace(hclwrite.Format(out))
		if len(next) > 0 {
			next = append(next, '\n')
		}
		if bytes.Equal(next, out) {
			return out
		}
		out = next
	}
	return out
}

// Render writes a compiled spec as text: what Parse makes of that text equals s. Only what differs from the defaults is
// written. Member blocks come in the order of their names, everything else in that of s.
func Render(s *cluster.Spec) []byte {
	var b strings.Builder
	root := Root()
	for _, c := range root.Blocks {
		render(&b, c, s, "")
	}
	return Format([]byte(b.String()))
}

// render writes the blocks of one kind that stand in parent.
func render(b *strings.Builder, blk *Block, parent any, indent string) {
	blk.each(parent, func(v any) {
		var in strings.Builder
		for i := range blk.Keys {
			k := &blk.Keys[i]
			if f := k.field(v); blk.given(k, v) || k.Required && !equalsDefault(k, f) {
				in.WriteString(indent + "  " + k.Name + " = " + literalOf(k, f) + "\n")
			}
		}
		for _, c := range blk.Blocks {
			render(&in, c, v, indent+"  ")
		}
		body := strings.TrimPrefix(in.String(), "\n")
		if body == "" && blk.Always {
			return
		}
		b.WriteString("\n" + indent + blk.Name)
		if blk.label != nil {
			b.WriteString(" " + quote(blk.label(v)))
		}
		if body == "" {
			b.WriteString(" {}\n")
			return
		}
		b.WriteString(" {\n" + body + indent + "}\n")
	})
}

// sortedKeys lists the names of a set in order.
func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

package spec

import (
	"fmt"
	"strings"

	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// unknownKey says where a key belongs, or which one was probably meant, and returns that one.
func (d *decoder) unknownKey(b *Block, a *hclsyntax.Attribute, where string) string {
	if c := b.child(a.Name); c != nil {
		d.add(a.NameRange, where, a.Name+" is a block, not an argument", "write "+c.header())
		return ""
	}
	d.add(a.NameRange, where, fmt.Sprintf("unknown key %s", short(a.Name)), b.suggest(a.Name, false))
	keys, _ := b.names()
	return nearest(a.Name, keys)
}

// unknownBlock says the same of a block.
func (d *decoder) unknownBlock(b *Block, hb *hclsyntax.Block, where string) {
	if k := b.key(hb.Type); k != nil {
		d.add(hb.TypeRange, where, hb.Type+" is an argument, not a block", "write "+k.Name+" = "+k.example())
		return
	}
	d.add(hb.TypeRange, where, fmt.Sprintf("unknown block %s", short(hb.Type)), b.suggest(hb.Type, true))
}

// suggest is the remedy for a name that b does not know.
func (b *Block) suggest(name string, block bool) string {
	keys, blocks := b.names()
	all := append(append([]string{}, keys...), blocks...)
	if near := nearest(name, all); near != "" {
		return fmt.Sprintf("did you mean %s?", near)
	}
	if homes := homesOf(name); len(homes) > 0 {
		return fmt.Sprintf("%s belongs into %s", name, strings.Join(homes, " or "))
	}
	var parts []string
	if len(keys) > 0 && (!block || len(blocks) == 0) {
		parts = append(parts, "known keys: "+strings.Join(keys, ", "))
	}
	if len(blocks) > 0 && (block || len(keys) == 0) {
		parts = append(parts, "known blocks: "+strings.Join(blocks, ", "))
	}
	return strings.Join(parts, "; ")
}

// names lists the keys and blocks that may stand in b.
func (b *Block) names() (keys, blocks []string) {
	for i := range b.Keys {
		keys = append(keys, b.Keys[i].Name)
	}
	for _, c := range b.Blocks {
		blocks = append(blocks, c.Name)
	}
	return keys, blocks
}

// homesOf lists the blocks in which a key or block of this name may stand.
func homesOf(name string) []string {
	var out []string
	var walk func(b *Block)
	walk = func(b *Block) {
		if b.key(name) != nil || b.child(name) != nil {
			home := "a " + b.Name + " block"
			if b.Name == "" {
				home = "the top level of the file"
			}
			if strings.ContainsAny(b.Name[:min(1, len(b.Name))], "aeio") {
				home = "an " + b.Name + " block"
			}
			if !contains(out, home) {
				out = append(out, home)
			}
		}
		for _, c := range b.Blocks {
			walk(c)
		}
	}
	walk(Root())
	return out
}

// header is how a block of this kind is written.
func (b *Block) header() string {
	if b.Label == NoLabel {
		return b.Name + " { ... }"
	}
	return b.Name + " " + b.labelExample() + " { ... }"
}

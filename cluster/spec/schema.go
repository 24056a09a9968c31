package spec

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Schema is the language as a JSON schema (draft 2020-12) for editors: blocks with labels are objects by label.
func Schema() []byte {
	s := Root().schema()
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = "hanode cluster spec"
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		panic(fmt.Errorf("spec: the table has a value that JSON does not: %w", err))
	}
	return append(b, '\n')
}

type object = map[string]any

func (b *Block) schema() object {
	props := object{}
	var required []string
	var kinds []any
	for i := range b.Keys {
		k := &b.Keys[i]
		props[k.Name] = k.schema()
		if k.Required && k.Only == nil {
			required = append(required, k.Name)
		}
		if k.Kind {
			kinds = append(kinds, object{"required": []string{k.Name}})
		}
	}
	for _, c := range b.Blocks {
		props[c.Name] = c.labelledSchema()
	}
	s := object{"type": "object", "description": b.Doc, "properties": props, "additionalProperties": false}
	if required != nil {
		s["required"] = required
	}
	if kinds != nil {
		s["oneOf"] = kinds
	}
	return s
}

func (b *Block) labelledSchema() object {
	s := b.schema()
	switch b.Label {
	case NoLabel:
		return s
	case CIDRLabel:
		return object{"type": "object", "additionalProperties": s, "propertyNames": object{"pattern": "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"}}
	}
	return object{"type": "object", "additionalProperties": s, "propertyNames": object{"pattern": nameRE.String()}}
}

func (k *Key) schema() object {
	s := object{"description": k.describe()}
	switch k.Type {
	case Word:
		s["type"], s["enum"] = "string", k.Values
	case Count:
		s["anyOf"] = []any{object{"type": "string", "enum": k.Values}, object{"type": "integer", "minimum": k.Min, "maximum": k.Max}}
	case String:
		s["type"] = "string"
	case Int:
		s["type"], s["minimum"], s["maximum"] = "integer", k.Min, k.Max
	case Bool:
		s["type"] = "boolean"
	case Duration:
		s["type"], s["pattern"] = "string", `^(0|([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+)$`
	case Size:
		s["type"], s["pattern"] = "string", `^(0|[0-9]+(B|KiB|MiB|GiB|TiB))$`
	case List, Argv:
		items := object{"type": "string"}
		if k.Values != nil {
			items["enum"] = k.Values
		}
		s["type"], s["items"] = "array", items
		if k.Type == List {
			s["uniqueItems"] = true
		}
		if k.Required || k.Kind || k.Default != nil {
			s["minItems"] = 1
		}
	case Map:
		s["type"], s["additionalProperties"] = "object", object{"type": "string"}
	}
	switch d := k.Default.(type) {
	case nil:
	case time.Duration:
		s["default"] = formatDuration(d)
	case int64:
		s["default"] = formatSize(d)
	default:
		s["default"] = d
	}
	return s
}

// describe is a key in one line: what it is, its bounds, when a change of it takes effect.
func (k *Key) describe() string {
	var notes []string
	if k.Required {
		notes = append(notes, "required")
	}
	if k.Only != nil {
		notes = append(notes, "only where "+k.Only.String())
	}
	if k.Unit != "" {
		notes = append(notes, k.Unit)
	}
	if k.Type == Int || k.Type == Duration || k.Type == Size {
		notes = append(notes, k.bounds())
	}
	notes = append(notes, "change: "+string(k.Class))
	return k.Doc + " (" + strings.Join(notes, "; ") + ")"
}

// Help describes the language, or only the named block ("" for all), as text for a terminal. It is empty for a block that
// does not exist.
func Help(block string) string {
	var b strings.Builder
	var walk func(blk *Block, path []string)
	walk = func(blk *Block, path []string) {
		if blk.Name != "" && (block == "" || block == blk.Name) {
			fmt.Fprintf(&b, "%s%s: %s\n", strings.Join(path[:len(path)-1], " > ")+arrow(len(path)), blk.header(), blk.Doc)
			for i := range blk.Keys {
				k := &blk.Keys[i]
				value := string(k.Type)
				if k.Values != nil {
					value = strings.Join(k.Values, " | ")
				}
				if k.Type == Count {
					value += " | N"
				}
				if d := k.defaultLiteral(); d != "" {
					value += ", default " + d
				}
				fmt.Fprintf(&b, "  %-17s %s\n  %-17s %s\n", k.Name, value, "", k.describe())
			}
			b.WriteByte('\n')
		}
		for _, c := range blk.Blocks {
			walk(c, append(path[:len(path):len(path)], c.Name))
		}
	}
	walk(Root(), nil)
	return b.String()
}

func arrow(depth int) string {
	if depth > 1 {
		return " > "
	}
	return ""
}

// Package pbwire writes and reads plain Go structs in the Protocol Buffers wire format (proto3, see
// https://protobuf.dev/programming-guides/encoding/): every field that is to be kept carries a tag `pb:"N"` with its field number.
//
// It exists so that the structs of the deciding cores are at the same time the messages of the log, without a second, generated
// set of types and the code that converts between them. The encoding is deterministic (fields in order of declaration, map keys
// sorted), zero values are left out, and the fields that a newer version wrote and this one does not know are kept in a field
// `Unknown []byte` tagged `pb:"unknown"`, where a struct has one, and written out again.
//
// Go kinds and their wire form: bool, ints, uints → varint (signed ones in two's complement, as int64); string, []byte, [N]byte →
// bytes; struct, pointer to struct → embedded message; slice → one field per element; map[string]string → entries {1: key, 2: value}.
// Embedded structs contribute their own fields.
//
// Every length is checked against what is left of the input before anything is allocated.
package pbwire

import (
	"errors"
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
)

// maxDepth bounds how deeply messages may be nested.
const maxDepth = 16

// Marshal encodes a struct or a pointer to one. It panics on a type that it cannot encode: that is a mistake of the
// program, found by the first test.
func Marshal(v any) []byte {
	return appendStruct(nil, reflect.Indirect(reflect.ValueOf(v)))
}

// Unmarshal decodes b into the struct that v points to. Fields that are not in b keep the value that they have.
func Unmarshal(b []byte, v any) error {
	rv := reflect.ValueOf(v)
	if rv.Kind() != reflect.Pointer || rv.Elem().Kind() != reflect.Struct {
		return errors.New("pbwire: want a pointer to a struct")
	}
	return readStruct(b, rv.Elem(), 0)
}

type field struct {
	num   protowire.Number
	index []int
	at    int // the only step of index; -1: there are several
	kind  reflect.Kind
	raw   bool // []byte
}

func (f *field) of(v reflect.Value) reflect.Value {
	if f.at >= 0 {
		return v.Field(f.at)
	}
	return v.FieldByIndex(f.index)
}

type layout struct {
	fields  []field
	byNum   map[protowire.Number]int // place in fields
	low     [64]int8                 // the same for small numbers, plus one
	unknown []int
}

// get finds a field by its number; nil: this version does not know it.
func (l *layout) get(n protowire.Number) *field {
	if n < protowire.Number(len(l.low)) {
		if i := l.low[n]; i > 0 {
			return &l.fields[i-1]
		}
		return nil
	}
	if i, ok := l.byNum[n]; ok {
		return &l.fields[i]
	}
	return nil
}

// layouts is a cache of what reflection finds; it holds nothing that depends on the order of use.
var layouts sync.Map

func layoutOf(t reflect.Type) *layout {
	if l, ok := layouts.Load(t); ok {
		return l.(*layout)
	}
	l := &layout{byNum: map[protowire.Number]int{}}
	l.collect(t, nil)
	for i, f := range l.fields {
		if int(f.num) < len(l.low) {
			l.low[f.num] = int8(i + 1)
		}
	}
	layouts.Store(t, l)
	return l
}

func (l *layout) collect(t reflect.Type, prefix []int) {
	for i := 0; i < t.NumField(); i++ {
		f := t.Field(i)
		index := append(append([]int(nil), prefix...), i)
		tag, ok := f.Tag.Lookup("pb")
		switch {
		case !ok && f.Anonymous && f.Type.Kind() == reflect.Struct:
			l.collect(f.Type, index)
		case !ok:
		case tag == "unknown":
			l.unknown = index
		default:
			n, err := strconv.Atoi(tag)
			_, taken := l.byNum[protowire.Number(n)]
			if err != nil || n < 1 || taken {
				panic(fmt.Sprintf("pbwire: %s.%s: tag %q is not a new field number", t, f.Name, tag))
			}
			d := field{num: protowire.Number(n), index: index, at: -1, kind: f.Type.Kind()}
			if len(index) == 1 {
				d.at = index[0]
			}
			d.raw = d.kind == reflect.Slice && f.Type.Elem().Kind() == reflect.Uint8
			l.byNum[d.num] = len(l.fields)
			l.fields = append(l.fields, d)
		}
	}
}

func appendStruct(b []byte, v reflect.Value) []byte {
	l := layoutOf(v.Type())
	for i := range l.fields {
		f := &l.fields[i]
		x := f.of(v)
		switch f.kind { // the frequent ones without further ado
		case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
			if u := x.Uint(); u != 0 {
				b = protowire.AppendVarint(protowire.AppendVarint(b, uint64(f.num)<<3), u)
			}
		case reflect.Int64:
			if n := x.Int(); n != 0 {
				b = protowire.AppendVarint(protowire.AppendVarint(b, uint64(f.num)<<3), uint64(n))
			}
		case reflect.Bool:
			if x.Bool() {
				b = append(protowire.AppendVarint(b, uint64(f.num)<<3), 1)
			}
		case reflect.Pointer:
			if !x.IsNil() {
				b = appendField(b, f.num, x, false)
			}
		case reflect.String, reflect.Slice:
			if x.Len() > 0 {
				b = appendField(b, f.num, x, false)
			}
		default:
			b = appendField(b, f.num, x, true)
		}
	}
	if l.unknown != nil {
		b = append(b, v.FieldByIndex(l.unknown).Bytes()...)
	}
	return b
}

func appendField(b []byte, n protowire.Number, v reflect.Value, omitZero bool) []byte {
	switch v.Kind() {
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			break
		}
		for i := 0; i < v.Len(); i++ {
			b = appendField(b, n, v.Index(i), false)
		}
		return b
	case reflect.Map:
		keys := v.MapKeys()
		sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
		for _, k := range keys {
			var e []byte
			e = appendField(e, 1, k, false)
			e = appendField(e, 2, v.MapIndex(k), false)
			b = protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), e)
		}
		return b
	}
	if omitZero && v.IsZero() {
		return b
	}
	switch v.Kind() {
	case reflect.Bool:
		return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), protowire.EncodeBool(v.Bool()))
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), uint64(v.Int()))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v.Uint())
	case reflect.String:
		return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), v.String())
	case reflect.Slice:
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v.Bytes())
	case reflect.Array:
		raw := make([]byte, v.Len())
		reflect.Copy(reflect.ValueOf(raw), v)
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), raw)
	case reflect.Struct:
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), appendStruct(nil, v))
	case reflect.Pointer:
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), appendStruct(nil, v.Elem()))
	}
	panic(fmt.Sprintf("pbwire: cannot encode %s", v.Type()))
}

func readStruct(b []byte, v reflect.Value, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("message nested deeper than %d", maxDepth)
	}
	l := layoutOf(v.Type())
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		if m < 0 {
			return protowire.ParseError(m)
		}
		f := l.get(num)
		switch {
		case f != nil:
			if err := readField(typ, b[n:n+m], f.of(v), f.raw, depth); err != nil {
				return fmt.Errorf("field %d: %w", num, err)
			}
		case l.unknown != nil:
			u := v.FieldByIndex(l.unknown)
			u.SetBytes(append(u.Bytes(), b[:n+m]...))
		}
		b = b[n+m:]
	}
	return nil
}

// readField sets v from one value of the wire. isBytes says that v is a []byte.
func readField(typ protowire.Type, raw []byte, v reflect.Value, isBytes bool, depth int) error {
	switch kind := v.Kind(); {
	case kind == reflect.Slice && !isBytes:
		n := v.Len()
		if n == v.Cap() {
			v.Grow(max(4, n))
		}
		v.SetLen(n + 1)
		e := v.Index(n)
		e.SetZero()
		t := e.Type()
		if err := readField(typ, raw, e, t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8, depth); err != nil {
			v.SetLen(n)
			return err
		}
		return nil
	case kind == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return readField(typ, raw, v.Elem(), false, depth)
	}
	switch typ {
	case protowire.VarintType:
		x, _ := protowire.ConsumeVarint(raw)
		return setVarint(v, x)
	case protowire.BytesType:
		x, _ := protowire.ConsumeBytes(raw)
		return setBytes(v, x, depth)
	}
	return fmt.Errorf("wire type %d does not fit %s", typ, v.Type())
}

func setVarint(v reflect.Value, x uint64) error {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(x != 0)
		return nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if v.OverflowInt(int64(x)) {
			return fmt.Errorf("%d does not fit %s", int64(x), v.Type())
		}
		v.SetInt(int64(x))
		return nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if v.OverflowUint(x) {
			return fmt.Errorf("%d does not fit %s", x, v.Type())
		}
		v.SetUint(x)
		return nil
	}
	return fmt.Errorf("a number does not fit %s", v.Type())
}

func setBytes(v reflect.Value, x []byte, depth int) error {
	switch v.Kind() {
	case reflect.String:
		v.SetString(string(x))
	case reflect.Slice:
		v.SetBytes(append([]byte(nil), x...))
	case reflect.Array:
		if len(x) != v.Len() || v.Type().Elem().Kind() != reflect.Uint8 {
			return fmt.Errorf("%d bytes do not fit %s", len(x), v.Type())
		}
		reflect.Copy(v, reflect.ValueOf(x))
	case reflect.Struct:
		return readStruct(x, v, depth+1)
	case reflect.Map:
		return setEntry(v, x)
	default:
		return fmt.Errorf("bytes do not fit %s", v.Type())
	}
	return nil
}

func setEntry(v reflect.Value, x []byte) error {
	var e struct {
		K string `pb:"1"`
		V string `pb:"2"`
	}
	if err := readStruct(x, reflect.ValueOf(&e).Elem(), maxDepth-1); err != nil {
		return err
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	v.SetMapIndex(reflect.ValueOf(e.K), reflect.ValueOf(e.V))
	return nil
}

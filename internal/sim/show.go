package sim

import (
	"fmt"
	"reflect"

	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
)

// actionCode is a number for the hash of a run.
func actionCode(a core.Action) uint64 {
	switch a := a.(type) {
	case core.Send:
		return 1<<8 | uint64(a.To)<<4 | uint64(a.Frame.Kind())
	case core.Propose:
		return 2<<32 | a.ID
	case core.Extend:
		return 3<<60 ^ uint64(a.Deadline)
	case core.Close:
		return 4<<60 ^ uint64(a.Epoch)
	case core.Begin:
		return 5<<60 ^ uint64(a.Epoch)
	case core.Bumped:
		return 6<<60 ^ uint64(a.Epoch)
	}
	return 7
}

func showAction(a core.Action) string { return fmt.Sprintf("%T%+v", a, a)[len("core."):] }

// showCommand names the command that is set, without its decision.
func showCommand(c *state.Command) string {
	v := reflect.ValueOf(c).Elem()
	out := ""
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() != reflect.Pointer || f.IsNil() {
			continue
		}
		switch name := v.Type().Field(i).Name; name {
		case "SpecApply":
			out += "SpecApply "
		case "Decision":
			out += fmt.Sprintf("(%s %q) ", c.Decision.Kind, c.Decision.Sentence)
		default:
			out += fmt.Sprintf("%s%+v ", name, f.Elem().Interface())
		}
	}
	return out
}

// worthTelling leaves out of the transcript what comes many times a second.
func worthTelling(f core.Frame) bool {
	switch f := f.(type) {
	case *core.Beat, *core.Renew:
		return false
	case *core.Ack:
		for _, l := range f.Leases {
			if l.Refused {
				return true
			}
		}
		return false
	}
	return true
}

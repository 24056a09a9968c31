package ui

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/hanode/hanode/internal/api"
)

// Volume is every copy of a service's data, or what an order about one came to.
func Volume(w io.Writer, a *api.VolumeAnswer, o Options) {
	for _, t := range a.Text {
		head := ""
		if a.Plan {
			head = "would be: "
		}
		wrap(w, o, head, t)
	}
	if len(a.Report) > 0 && string(a.Report) != "null" {
		var b bytes.Buffer
		if json.Indent(&b, a.Report, "", "  ") == nil {
			fmt.Fprintln(w, b.String())
		}
	}
	if len(a.Nodes) == 0 {
		return
	}
	in := "nobody"
	if len(a.InSync) > 0 {
		in = strings.Join(a.InSync, ", ")
	}
	fmt.Fprintf(w, "%s  in sync: %s\n\n", clean(a.Service), clean(in))
	for _, n := range a.Nodes {
		fmt.Fprintf(w, "%s  %s  %s  position %d,%d,%d  durable %d  applied %d\n", clean(n.Node), orDash(n.Role), copyText(copyOf(&n)), n.Position.Epoch, n.Position.Generation, n.Position.Sequence,
			n.Durable, n.Applied)
		if n.Why != "" {
			wrap(w, o, label(""), n.Why)
		}
		if n.LagOperations > 0 || n.WaitingMs > 0 {
			fmt.Fprintf(w, "%sa follower lacks %s (%s), waited for since %s\n", label(""), count(n.LagOperations, "operation"), size(n.LagBytes), span(n.WaitingMs.D()))
		}
		for _, v := range n.Volumes {
			fmt.Fprintf(w, "%s%s  %s  mode %s  %s free  acknowledged in %.0f us (p99 %.0f us)\n", label("volume"), clean(v.Name), clean(v.Path), v.Mode, size(v.FreeBytes), v.AckP50Us, v.AckP99Us)
			if v.SetAside > 0 {
				fmt.Fprintf(w, "%s%s set aside\n", label(""), count(int64(v.SetAside), "set"))
			}
		}
	}
}

// copyOf is the copy as its line tells it: by the state that the log and the active give it.
func copyOf(n *api.VolumeNode) api.Copy {
	c := n.Copy
	c.Member = "copy"
	if n.State != "resync" {
		c.State = n.State
	}
	return c
}

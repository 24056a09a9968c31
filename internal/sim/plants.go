package sim

import (
	"time"

	"github.com/hanode/hanode/internal/core"
)

// Plants are bugs that a run can be given on purpose. Each must be caught: see TestThePlantedBugsAreCaught.
func Plants() []string {
	return []string{
		"serve-past-deadline", "promise-at-once", "ack-after-promise", "release-before-shut", "lease-from-receipt", "restart-does-not-wait", "restart-forgets",
		"grant-without-promises", "sticky-relied-on",
	}
}

// plantedAnswer answers a frame in the voter's place, or in the place of those who were asked.
func (h *host) plantedAnswer(from int, f core.Frame) {
	w := h.w
	if !h.core.Joined() {
		return
	}
	switch f := f.(type) {
	case *core.Renew:
		if w.o.Plant != "ack-after-promise" || f.Inc != h.core.State().Group.Admission(no(from)).Inc {
			return
		}
		w.send(h, from, &core.Ack{Inc: f.Inc, Sent: f.Sent, VoterInc: h.inc, Leases: f.Leases})
	case *core.PromiseReq:
		s := h.core.State().Service(f.Service)
		if s == nil || s.Lock.Epoch > f.Epoch || s.Lock.Holder.Node == no(h.i) {
			return
		}
		switch w.o.Plant {
		case "restart-does-not-wait":
			if h.inc > 1 && w.t-h.started < int64(2*time.Second) {
				w.send(h, from, &core.Promise{Service: f.Service, Epoch: f.Epoch, Inc: h.inc, Yes: true})
			}
		case "promise-at-once":
			w.send(h, from, &core.Promise{Service: f.Service, Epoch: f.Epoch, Inc: h.inc, Yes: true})
		case "grant-without-promises":
			c := w.hosts[from]
			c.post(core.Received{From: no(h.i), Frame: &core.Promise{Service: f.Service, Epoch: f.Epoch, Inc: h.inc, Yes: true}})
		}
	}
}

// plantedTick keeps a gate open while this host believes in Sticky, whatever was proposed meanwhile.
func (h *host) plantedTick() {
	if h.w.o.Plant != "sticky-relied-on" || !h.core.Joined() {
		return
	}
	for _, g := range h.gates {
		if g.open && h.sticks(g.no) {
			s := h.core.State().Service(g.no)
			g.deadline = h.now().Add(s.Lock.TTL)
			h.w.checkOne(h, g)
			g.until = h.real(g.deadline)
		}
	}
}

package sim

import (
	"time"

	"github.com/hanode/hanode/internal/core"
)

// link is one direction between two hosts.
type link struct {
	cut    int // how many faults cut it
	loss   int // of 1000 datagrams
	delay  time.Duration
	jitter time.Duration
	dup    int // of 1000
	late   int // of 1000: arrives up to 3 s late
}

func (w *world) link(a, b int) *link { return &w.links[a][b] }

// growLinks makes room for a new host.
func (w *world) growLinks() {
	n := len(w.hosts)
	for len(w.links) < n {
		w.links = append(w.links, nil)
	}
	for i := range w.links {
		for len(w.links[i]) < n {
			w.links[i] = append(w.links[i], w.calmLink())
		}
	}
}

func (w *world) calmLink() link {
	l := link{delay: w.between(50*time.Microsecond, 500*time.Microsecond), jitter: w.between(50*time.Microsecond, time.Millisecond), loss: 1, dup: 1}
	if w.wan {
		l.delay, l.jitter = w.between(2*time.Millisecond, 30*time.Millisecond), w.between(time.Millisecond, 10*time.Millisecond)
	}
	return l
}

// conn says whether a stream connection between two hosts works at this moment.
func (w *world) conn(a, b int) bool {
	if a == b {
		return true
	}
	x, y := w.link(a, b), w.link(b, a)
	return x.cut == 0 && y.cut == 0 && x.loss < 500 && y.loss < 500
}

func (w *world) latency(a, b int) time.Duration {
	if a == b {
		return w.between(10*time.Microsecond, 100*time.Microsecond)
	}
	l := w.link(a, b)
	return l.delay + w.between(0, l.jitter+1)
}

// send sends a frame as a datagram. It is encoded, measured and decoded by the product's code.
func (w *world) send(h *host, to int, f core.Frame) {
	if to >= len(w.hosts) || to == h.i {
		w.fail("%s sends %T to member %d", h.name, f, to+1)
	}
	if w.o.Trace {
		if worthTelling(f) {
			w.log(h, "sends %s %s", w.hosts[to].name, show(f))
		}
	}
	dst := w.hosts[to]
	l := w.link(h.i, to)
	if l.cut > 0 || w.rng.IntN(1000) < l.loss || !dst.up {
		return
	}
	if h.lastFrame != f {
		b := core.EncodeFrame(f)
		if len(b) > 1200 {
			w.fail("%s sends a frame of %d bytes: %s", h.name, len(b), show(f))
		}
		d, err := core.DecodeFrame(f.Kind(), b)
		if err != nil {
			w.fail("a frame cannot be read: %v", err)
		}
		h.lastFrame, h.lastSent = f, d
	}
	n := 1
	if l.dup > 0 && w.rng.IntN(1000) < l.dup {
		n = 2
	}
	for range n {
		d := w.latency(h.i, to)
		if l.late > 0 && w.rng.IntN(1000) < l.late {
			d += w.between(0, 3*time.Second)
		}
		w.push(event{at: w.t + int64(d), kind: evFrame, host: int16(to), life: dst.life, from: int16(h.i), frame: h.lastSent})
	}
}

// deliver hands a frame to its receiver. Frames to an earlier run are lost with its keys.
func (w *world) deliver(e event) {
	h := w.hosts[e.host]
	if !h.up || h.life != e.life {
		return
	}
	if h.paused {
		if len(h.inbox) < 256 {
			h.inbox = append(h.inbox, e)
		}
		return
	}
	h.receive(int(e.from), e.frame)
}

// receive gives a frame to the core, after what the checks and the planted bugs want of it.
func (h *host) receive(from int, f core.Frame) {
	w := h.w
	if a, ok := f.(*core.Ack); ok {
		if w.o.Plant == "lease-from-receipt" {
			c := *a
			c.Sent = h.now()
			f, a = &c, &c
		}
		for _, l := range a.Leases {
			if g := h.gate(l.Service); !l.Refused && a.Inc == h.inc {
				g.acked = max(g.acked, l.Epoch)
			}
		}
	}
	if w.o.Plant != "" {
		h.plantedAnswer(from, f)
	}
	if w.o.Trace {
		if worthTelling(f) {
			w.log(h, "  hears %s %s", w.hosts[from].name, show(f))
		}
	}
	h.step(core.Received{From: no(from), Frame: f})
}

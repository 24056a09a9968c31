package gate

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// Form is how the kernel is told; see the package comment.
type Form string

const (
	Auto   Form = "auto"
	TCX    Form = "tcx"
	Clsact Form = "clsact"
	NFT    Form = "nft"
)

// Config says which gate to open.
type Config struct {
	Form    Form         // empty: auto
	Name    string       // tells the gates of several nodes in one network namespace apart; the same at every start
	Fastest bool         // profile "fastest": form nft is refused
	Log     *slog.Logger // nil: nothing is logged
}

// MaxAhead is the furthest that a deadline may lie in the future: twice the longest lease. One beyond is a fault of the
// caller and is refused.
const MaxAhead = 2 * time.Minute

// lookEvery is the time between two comparisons of the kernel's state with the wanted one.
const lookEvery = 500 * time.Millisecond

// enforcer is one form of the gate in the kernel. Slot 0 is never open.
type enforcer interface {
	put(a netip.Addr, slot uint32) error                 // declares a, or moves it to another slot
	forget(a netip.Addr) error                           // a is none of ours any more
	refresh(slot uint32, deadline cluster.Instant) error // 0, or one in the past: shut now
	cover(devs []device) (repaired int, err error)       // attaches wherever that is missing among devs
	owns(h hook) bool                                    // h is of this incarnation
	stats(into map[string]uint64) error                  // adds counters
	close()                                              // lets go of descriptors; the kernel's state stays
}

// Gate is the kernel's gate of one node. Its methods may be called from any goroutine.
type Gate struct {
	form  Form
	tag   string
	table string
	log   *slog.Logger
	base  map[string]uint64 // what the tests of Open left in the counters

	kernel enforcer

	// Locked in this order. Only mu is on the way of Refresh, and nothing slow is done under it.

	attach sync.Mutex // held while interfaces are attached or counters read
	bare   uint64     // 1: something could not be attached at the last look
	mended uint64     // attachments that were missing

	change sync.Mutex // held while the set of addresses changes
	free   []uint32
	vips   map[netip.Addr]cluster.ServiceNo
	strays map[netip.Addr]bool // known from a former incarnation, of no service yet

	mu    sync.Mutex
	slots map[cluster.ServiceNo]uint32 // written under change as well
	ended bool                         // written under all three
}

// tagOf is the beginning of the names of programs and maps in the kernel (at most 15 characters in all), with the
// version of the maps' form; the filter's handle comes from it too.
func tagOf(name string) (tag string, handle uint32) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	sum := h.Sum32()
	return fmt.Sprintf("hg1_%08x", sum), sum | 1
}

// Open closes what a former incarnation of the same Name left, tests the forms that cfg allows in the order tcx, clsact,
// nft, and arms the first that works on every interface, with the addresses of the former one, all shut. The error names
// the reason of every form that was tried; it means that this node must not serve.
func Open(cfg Config) (*Gate, error) {
	forms, err := cfg.forms()
	if err != nil {
		return nil, err
	}
	g := &Gate{log: cfg.Log, base: make(map[string]uint64), slots: make(map[cluster.ServiceNo]uint32),
		vips: make(map[netip.Addr]cluster.ServiceNo), strays: make(map[netip.Addr]bool)}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	for slot := uint32(maxSlots - 1); slot > 0; slot-- {
		g.free = append(g.free, slot)
	}
	var handle uint32
	g.tag, handle = tagOf(cfg.Name)
	g.table = "hanode_" + g.tag

	devs, err := listDevices()
	if err != nil {
		return nil, err
	}
	old, err := findRemains(g.tag, g.table, devs)
	if err != nil {
		return nil, fmt.Errorf("look for the gate of a former start: %w", err)
	}
	defer old.release()
	known, err := old.shut()
	if err != nil {
		return nil, fmt.Errorf("shut the gate of a former start; this node must not serve before that: %w", err)
	}
	for _, a := range known {
		g.strays[a] = true
	}
	if err := g.arm(forms, handle, known, devs); err != nil {
		return nil, err
	}
	if err := g.removeAll(g.kernel.owns, g.form == NFT); err != nil {
		g.kernel.close()
		return nil, fmt.Errorf("remove the gate of a former start: %w", err)
	}
	if err := g.kernel.stats(g.base); err != nil {
		g.kernel.close()
		return nil, err
	}
	g.log.Info("gate armed, everything shut", "form", g.form, "interfaces", len(devs), "known", len(known))
	return g, nil
}

// forms lists the forms to try.
func (cfg Config) forms() ([]Form, error) {
	switch cfg.Form {
	case Auto, "":
		if cfg.Fastest {
			return []Form{TCX, Clsact}, nil
		}
		return []Form{TCX, Clsact, NFT}, nil
	case TCX, Clsact:
		return []Form{cfg.Form}, nil
	case NFT:
		if cfg.Fastest {
			return nil, errors.New("gate: form nft is refused in profile fastest, because its time-outs are some ms early and its clock stops in suspend: use profile fast, or form tcx or clsact")
		}
		return []Form{NFT}, nil
	}
	return nil, fmt.Errorf("gate: form %q: choose auto, tcx, clsact or nft", cfg.Form)
}

// arm builds, tests and attaches the first form that works.
func (g *Gate) arm(forms []Form, handle uint32, known []netip.Addr, devs []device) error {
	errs := []error{errors.New("gate: no form of it works here, so this node refuses to arm and must not serve")}
	for _, form := range forms {
		kernel, err := g.build(form, handle, known)
		if err == nil {
			if err = g.try(kernel, form, devs, len(known) > 0); err == nil {
				g.kernel, g.form = kernel, form
				return nil
			}
		}
		g.log.Warn("a form of the gate does not work here", "form", form, "err", err)
		errs = append(errs, fmt.Errorf("form %s: %w", form, err))
	}
	return errors.Join(errs...)
}

func (g *Gate) build(form Form, handle uint32, known []netip.Addr) (enforcer, error) {
	if form == NFT {
		return newNFTGate(g.table, known)
	}
	b, err := newBPFGate(form, g.tag, handle)
	if errors.Is(err, unix.EPERM) && liftMemlock() == nil {
		b, err = newBPFGate(form, g.tag, handle)
	}
	if err != nil {
		return nil, err
	}
	for _, a := range known {
		if err := b.put(a, 0); err != nil {
			b.close()
			return nil, err
		}
	}
	return b, nil
}

// liftMemlock: before kernel 5.11 the memory of maps counts against RLIMIT_MEMLOCK.
func liftMemlock() error {
	return unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
}

// try tests a form and attaches it. One that fails is taken away again, unless there are addresses of a former
// incarnation: then it stays, shut, because it may have taken the place of that one's filters or tables.
func (g *Gate) try(kernel enforcer, form Form, devs []device, known bool) (err error) {
	defer func() {
		if err == nil {
			return
		}
		if !known {
			err = errors.Join(err, g.removeAll(func(h hook) bool { return !kernel.owns(h) }, form != NFT))
		}
		kernel.close()
	}()
	if err := selfTest(kernel); err != nil {
		return err
	}
	if _, err := kernel.cover(devs); err != nil {
		return err
	}
	return liveTest(kernel, g.log)
}

// Form is the form that was armed.
func (g *Gate) Form() Form { return g.form }

// Run attaches the gate to every interface that appears, and puts back what somebody took away, until ctx ends. It
// returns an error only if the kernel does not tell of interfaces (any more).
func (g *Gate) Run(ctx context.Context) error {
	events, err := openLinkEvents()
	if err != nil {
		return err
	}
	defer events.sock.Close()
	stop := context.AfterFunc(ctx, func() { events.sock.Close() })
	defer stop()
	g.lookAtAll()
	looked := time.Now()
	for ctx.Err() == nil {
		devs, ok, err := events.next(looked.Add(lookEvery))
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case !ok:
			g.lookAtAll()
			looked = time.Now()
		case len(devs) > 0:
			g.look(devs, false)
		}
	}
	return nil
}

// lookAtAll compares every interface with what is wanted.
func (g *Gate) lookAtAll() {
	devs, err := listDevices()
	if err != nil {
		g.log.Error("cannot see the interfaces; a new one may not be gated", "err", err)
		return
	}
	g.look(devs, true)
}

func (g *Gate) look(devs []device, all bool) {
	g.attach.Lock()
	defer g.attach.Unlock()
	if g.stopped() || g.form == NFT && !all { // the tables cover every interface
		return
	}
	mended, err := g.kernel.cover(devs)
	g.mended += uint64(mended)
	switch {
	case err != nil:
		g.bare = 1
		g.log.Error("the gate does not cover everything: an address of a service may be reachable after its lease", "err", err)
	case all:
		g.bare = 0
	}
	if mended > 0 && all {
		g.log.Warn("somebody had removed the gate, or an interface was new; it is attached again", "places", mended)
	}
}

func (g *Gate) stopped() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ended
}

var errEnded = errors.New("gate: it was shut down or removed: open a new one")

// SetVIPs declares the addresses of a service. New ones are shut until the next Refresh (in the eBPF forms a deadline
// that the service has already holds for them too). Those of an earlier call that are missing now are forgotten: the gate lets them pass, so they must be
// off the interfaces before. An address that belongs to another service is refused and nothing is changed.
func (g *Gate) SetVIPs(svc cluster.ServiceNo, vips []netip.Addr) error {
	g.change.Lock()
	defer g.change.Unlock()
	if g.stopped() {
		return errEnded
	}
	want, err := g.wanted(svc, vips)
	if err != nil {
		return err
	}
	if len(want) > 0 {
		slot, err := g.slotFor(svc)
		if err != nil {
			return err
		}
		for _, a := range want {
			if _, ok := g.vips[a]; ok {
				continue
			}
			if err := g.kernel.put(a, slot); err != nil {
				return err
			}
			g.vips[a] = svc
			delete(g.strays, a)
		}
	}
	for a, owner := range g.vips {
		if owner != svc || slices.Contains(want, a) {
			continue
		}
		if err := g.kernel.forget(a); err != nil {
			return err
		}
		delete(g.vips, a)
	}
	if len(want) == 0 {
		return g.freeSlot(svc)
	}
	return nil
}

// slotFor gives a service its place among the deadlines, shut.
func (g *Gate) slotFor(svc cluster.ServiceNo) (uint32, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if slot, have := g.slots[svc]; have {
		return slot, nil
	}
	if len(g.free) == 0 {
		return 0, fmt.Errorf("service %d: the gate holds at most %d services", svc, maxSlots-1)
	}
	slot := g.free[len(g.free)-1]
	if err := g.kernel.refresh(slot, 0); err != nil {
		return 0, err
	}
	g.free = g.free[:len(g.free)-1]
	g.slots[svc] = slot
	return slot, nil
}

func (g *Gate) freeSlot(svc cluster.ServiceNo) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	slot, have := g.slots[svc]
	if !have {
		return nil
	}
	if err := g.kernel.refresh(slot, 0); err != nil {
		return err
	}
	delete(g.slots, svc)
	g.free = append(g.free, slot)
	return nil
}

// wanted checks the addresses and brings them into one form.
func (g *Gate) wanted(svc cluster.ServiceNo, vips []netip.Addr) ([]netip.Addr, error) {
	var want []netip.Addr
	var errs []error
	for _, a := range vips {
		a = a.Unmap().WithZone("")
		owner, taken := g.vips[a]
		switch {
		case !a.IsValid() || a.IsUnspecified() || a.IsMulticast():
			errs = append(errs, fmt.Errorf("service %d: %v is not the address of a host", svc, a))
		case taken && owner != svc:
			errs = append(errs, fmt.Errorf("service %d: %v belongs to service %d: take it out of one of them", svc, a, owner))
		case !slices.Contains(want, a):
			want = append(want, a)
		}
	}
	if len(g.vips)+len(g.strays)+len(want) > maxVIPs {
		errs = append(errs, fmt.Errorf("service %d: the gate holds at most %d addresses", svc, maxVIPs))
	}
	return want, errors.Join(errs...)
}

// ForgetStrangers lets go of the addresses that a former incarnation knew and no service has claimed since, and returns
// them. Until then they are shut. To be called when every service of the spec was declared and such addresses are off
// the interfaces.
func (g *Gate) ForgetStrangers() ([]netip.Addr, error) {
	g.change.Lock()
	defer g.change.Unlock()
	if g.stopped() {
		return nil, errEnded
	}
	var out []netip.Addr
	for a := range g.strays {
		if err := g.kernel.forget(a); err != nil {
			return out, err
		}
		delete(g.strays, a)
		out = append(out, a)
	}
	return out, nil
}

// Refresh sets the deadline of a service on CLOCK_BOOTTIME of this process: the kernel drops from then on. Earlier than
// the current one shortens. One in the past, or 0, shuts. A service without addresses has nothing to open. In the eBPF
// forms it is one store and one reading of the clock; in form nft one transaction, and the set closes 5 to 80 ms early.
func (g *Gate) Refresh(svc cluster.ServiceNo, deadline cluster.Instant) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	slot, ok := g.slots[svc]
	switch {
	case g.ended:
		return errEnded
	case !ok:
		return nil
	case deadline > 0 && deadline.Sub(boottime()) > MaxAhead:
		return errors.Join(fmt.Errorf("service %d: a deadline more than %v ahead cannot be right: the gate is shut instead", svc, MaxAhead),
			g.kernel.refresh(slot, 0))
	}
	return g.kernel.refresh(slot, deadline)
}

// Close shuts a service at once.
func (g *Gate) Close(svc cluster.ServiceNo) error { return g.Refresh(svc, 0) }

// Stats are counters: packets dropped, by what they were, packets of open services passed (eBPF forms), attachments that
// Run had to make ("mended"), and 1 if it could not make one ("uncovered").
func (g *Gate) Stats() map[string]uint64 {
	out := make(map[string]uint64)
	g.attach.Lock()
	defer g.attach.Unlock()
	out["mended"], out["uncovered"] = g.mended, g.bare
	if g.stopped() {
		return out
	}
	if err := g.kernel.stats(out); err != nil {
		g.log.Warn("cannot read the gate's counters", "err", err)
	}
	for name, n := range g.base {
		out[name] -= min(n, out[name])
	}
	return out
}

// Shutdown ends an orderly run: everything is shut and stays so in the kernel, for the next start. Without any known
// address it removes the gate.
func (g *Gate) Shutdown() error {
	return g.end(func() error {
		if g.ended {
			return nil
		}
		var errs []error
		for _, slot := range g.slots {
			errs = append(errs, g.kernel.refresh(slot, 0))
		}
		if len(g.vips)+len(g.strays) == 0 {
			errs = append(errs, g.removeAll(nothing, false))
		}
		return errors.Join(errs...)
	})
}

// Remove takes the gate out of the kernel: whatever has a VIP then answers. For leaving a cluster, when no VIP is on this
// host any more, and for tests.
func (g *Gate) Remove() error {
	return g.end(func() error { return g.removeAll(nothing, false) })
}

func (g *Gate) end(how func() error) error {
	g.attach.Lock()
	defer g.attach.Unlock()
	g.change.Lock()
	defer g.change.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	err := how()
	if !g.ended {
		g.ended = true
		g.kernel.close()
	}
	return err
}

func nothing(hook) bool { return false }

// removeAll takes away what bears this gate's name in the kernel, except for what keep wants.
func (g *Gate) removeAll(keep func(hook) bool, keepTables bool) error {
	devs, err := listDevices()
	if err != nil {
		return err
	}
	all, err := findRemains(g.tag, g.table, devs)
	if err != nil {
		return fmt.Errorf("look for what to remove: %w", err)
	}
	defer all.release()
	return all.remove(keep, keepTables)
}

package gate

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// hook is a place where a program is attached.
type hook struct {
	dev  device
	dir  direction
	form Form
	prog ebpf.ProgramID
	name string             // clsact: the filter's
	bpf  *netlink.BpfFilter // clsact
}

// gone says that the interface or the thing attached to it is not there (any more), or that this kernel never had it.
func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO)
}

func tcxType(dir direction) ebpf.AttachType {
	if dir == egress {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

// tcxHooks lists what is attached to the tcx hooks of an interface, in the order of execution.
func tcxHooks(dev device, dir direction) ([]hook, error) {
	res, err := link.QueryPrograms(link.QueryOptions{Target: dev.index, Attach: tcxType(dir)})
	if err != nil {
		return nil, err
	}
	var out []hook
	for _, p := range res.Programs {
		out = append(out, hook{dev: dev, dir: dir, form: TCX, prog: p.ID})
	}
	return out, nil
}

// attachTCX attaches prog without a link (see the package comment) in front of all others.
func attachTCX(dev device, dir direction, prog *ebpf.Program) error {
	return link.RawAttachProgram(link.RawAttachProgramOptions{Target: dev.index, Program: prog, Attach: tcxType(dir), Anchor: link.Head()})
}

func clsactParent(dir direction) uint32 {
	if dir == egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// linkOf is all that package netlink wants to know of an interface.
func linkOf(dev device) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: dev.index, Name: dev.name}}
}

// clsactHooks lists the eBPF filters of an interface.
func clsactHooks(dev device, dir direction) ([]hook, error) {
	filters, err := netlink.FilterList(linkOf(dev), clsactParent(dir))
	if err != nil {
		return nil, err
	}
	var out []hook
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok {
			out = append(out, hook{dev: dev, dir: dir, form: Clsact, prog: ebpf.ProgramID(b.Id), name: b.Name, bpf: b})
		}
	}
	return out, nil
}

// firstFilter is the priority of the gate's filters: before all others. A filter that exists under the same handle is
// replaced in one step.
const firstFilter = 1

// attachClsact attaches prog as a direct-action filter (tc-bpf(8)), which outlives the process, and makes the clsact
// qdisc where it is missing.
func attachClsact(tag string, handle uint32, dev device, dir direction, prog *ebpf.Program) error {
	err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: dev.index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add a clsact qdisc: %w", err)
	}
	err = netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: dev.index, Parent: clsactParent(dir), Handle: handle, Priority: firstFilter, Protocol: unix.ETH_P_ALL,
		},
		Fd: prog.FD(), Name: tag, DirectAction: true,
	})
	if err != nil {
		return fmt.Errorf("add a filter of priority %d: %w", firstFilter, err)
	}
	return nil
}

// detach takes a hook away. What is gone already is no error.
func (h hook) detach() error {
	var err error
	switch h.form {
	case TCX:
		var prog *ebpf.Program
		if prog, err = ebpf.NewProgramFromID(h.prog); err == nil {
			err = link.RawDetachProgram(link.RawDetachProgramOptions{Target: h.dev.index, Program: prog, Attach: tcxType(h.dir)})
			prog.Close()
		}
	case Clsact:
		err = netlink.FilterDel(h.bpf)
	}
	if err != nil && !gone(err) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("detach the gate from %s: %w", h.dev.name, err)
	}
	return nil
}

// dropEmptyClsact removes the clsact qdisc from an interface that has no filter on it any more.
func dropEmptyClsact(dev device) error {
	for _, dir := range []direction{ingress, egress} {
		filters, err := netlink.FilterList(linkOf(dev), clsactParent(dir))
		if err != nil || len(filters) > 0 {
			return nil
		}
	}
	err := netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: dev.index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil && !gone(err) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove the clsact qdisc from %s: %w", dev.name, err)
	}
	return nil
}

// bpfGate is the gate in the forms tcx and clsact: maps, programs and where they are attached.
type bpfGate struct {
	*maps
	progs  *programs
	ids    map[ebpf.ProgramID]bool
	form   Form
	tag    string
	handle uint32 // clsact: the filters'
}

func newBPFGate(form Form, tag string, handle uint32) (_ *bpfGate, err error) {
	b := &bpfGate{form: form, tag: tag, handle: handle}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.maps, err = newMaps(tag); err != nil {
		return nil, err
	}
	if b.maps.offset, err = measuredOffset(); err != nil {
		return nil, err
	}
	if b.progs, err = loadPrograms(tag, b.maps); err != nil {
		return nil, err
	}
	if b.ids, err = b.progs.ids(); err != nil {
		return nil, err
	}
	return b, nil
}

func measuredOffset() (time.Duration, error) {
	clock, err := newKernelClock()
	if err != nil {
		return 0, err
	}
	defer clock.close()
	return clockOffset(clock.read)
}

// cover attaches the programs wherever they are missing among devs and returns on how many interfaces that was so. An
// interface that went away meanwhile is none.
func (b *bpfGate) cover(devs []device) (attached int, err error) {
	var errs []error
	for _, dev := range devs {
		n, err := b.coverOne(dev)
		if err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("attach the gate to interface %s (%d): %w", dev.name, dev.index, err))
		}
		attached += n
	}
	return attached, errors.Join(errs...)
}

func (b *bpfGate) coverOne(dev device) (int, error) {
	attached := 0
	for _, dir := range []direction{ingress, egress} {
		there, err := b.attached(dev, dir)
		if err != nil {
			return 0, err
		}
		if there {
			continue
		}
		if b.form == TCX {
			err = attachTCX(dev, dir, b.progs[dir][dev.framing])
			if errors.Is(err, unix.EEXIST) {
				err = nil // attached between question and answer
			}
		} else {
			err = attachClsact(b.tag, b.handle, dev, dir, b.progs[dir][dev.framing])
		}
		if err != nil {
			return 0, err
		}
		attached = 1
	}
	return attached, nil
}

// attached says whether a program of ours is at the hook.
func (b *bpfGate) attached(dev device, dir direction) (bool, error) {
	list := tcxHooks
	if b.form == Clsact {
		list = clsactHooks
	}
	hooks, err := list(dev, dir)
	if err != nil {
		if b.form == Clsact && errors.Is(err, unix.EINVAL) {
			return false, nil // no clsact qdisc yet
		}
		return false, err
	}
	for _, h := range hooks {
		if b.ids[h.prog] {
			return true, nil
		}
	}
	return false, nil
}

func (b *bpfGate) refresh(slot uint32, deadline cluster.Instant) error {
	b.setDeadline(slot, deadline)
	return nil
}

func (b *bpfGate) owns(h hook) bool { return h.form == b.form && b.ids[h.prog] }

func (b *bpfGate) close() {
	if b.progs != nil {
		b.progs.close()
	}
	if b.maps != nil {
		b.maps.close()
	}
}

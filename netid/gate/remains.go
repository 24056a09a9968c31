package gate

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// remains is what the kernel holds under a gate's tag, of all forms: a former incarnation's, or this one's own.
type remains struct {
	hooks  []hook
	progs  map[ebpf.ProgramID]*ebpf.Program
	tables []*nftables.Table
}

// absent says that the kernel has no such thing to look at, or lets us see none. What we may not see we may not attach
// either, so the form will refuse later.
func absent(err error) bool {
	return gone(err) || errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) ||
		errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// findRemains looks through all hooks of all interfaces and all tables.
func findRemains(tag, table string, devs []device) (*remains, error) {
	r := &remains{progs: make(map[ebpf.ProgramID]*ebpf.Program)}
	for _, dev := range devs {
		for _, dir := range []direction{ingress, egress} {
			for _, list := range []func(device, direction) ([]hook, error){tcxHooks, clsactHooks} {
				hooks, err := list(dev, dir)
				if err != nil && !absent(err) {
					r.release()
					return nil, fmt.Errorf("list what is attached to interface %s: %w", dev.name, err)
				}
				for _, h := range hooks {
					if err := r.consider(h, tag); err != nil {
						r.release()
						return nil, err
					}
				}
			}
		}
	}
	tables, err := nftTables(table)
	if err != nil && !absent(err) {
		r.release()
		return nil, err
	}
	r.tables = tables
	return r, nil
}

// consider keeps a hook whose program bears the tag.
func (r *remains) consider(h hook, tag string) error {
	if r.progs[h.prog] == nil {
		prog, err := ebpf.NewProgramFromID(h.prog)
		if errors.Is(err, unix.ENOENT) {
			return nil // detached meanwhile
		}
		if err != nil {
			return fmt.Errorf("look at program %d on interface %s (needs CAP_SYS_ADMIN): %w", h.prog, h.dev.name, err)
		}
		info, err := prog.Info()
		if err != nil {
			prog.Close()
			return fmt.Errorf("look at program %d on interface %s: %w", h.prog, h.dev.name, err)
		}
		if !strings.HasPrefix(info.Name, tag+"_") {
			prog.Close()
			return nil
		}
		r.progs[h.prog] = prog
	}
	r.hooks = append(r.hooks, h)
	return nil
}

// shut closes everything at once and returns the addresses that were known.
func (r *remains) shut() ([]netip.Addr, error) {
	known := make(map[netip.Addr]bool)
	seen := make(map[ebpf.MapID]bool)
	for id, prog := range r.progs {
		info, err := prog.Info()
		if err != nil {
			return nil, fmt.Errorf("look at program %d: %w", id, err)
		}
		ids, _ := info.MapIDs()
		for _, id := range ids {
			if seen[id] {
				continue
			}
			seen[id] = true
			if err := shutMap(id, known); err != nil {
				return nil, err
			}
		}
	}
	for _, t := range r.tables {
		if err := nftShut(t); err != nil {
			return nil, err
		}
		addrs, err := nftAddresses(t)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			known[a] = true
		}
	}
	var out []netip.Addr
	for a := range known {
		out = append(out, a)
	}
	return out, nil
}

// shutMap sets every deadline to 0 if the map holds deadlines, and collects the addresses if it holds those.
func shutMap(id ebpf.MapID, known map[netip.Addr]bool) error {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return fmt.Errorf("open map %d of a former gate: %w", id, err)
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return fmt.Errorf("look at map %d of a former gate: %w", id, err)
	}
	switch {
	case strings.HasSuffix(info.Name, deadlinesSuffix) && m.ValueSize() == 8:
		for slot := range m.MaxEntries() {
			if err := m.Put(slot, uint64(0)); err != nil {
				return fmt.Errorf("shut a former gate: %w", err)
			}
		}
	case strings.HasSuffix(info.Name, vipsSuffix) && m.KeySize() == 16:
		var addr [16]byte
		var slot uint32
		all := m.Iterate()
		for all.Next(&addr, &slot) {
			known[netip.AddrFrom16(addr).Unmap()] = true
		}
		if err := all.Err(); err != nil {
			return fmt.Errorf("read the addresses of a former gate: %w", err)
		}
	}
	return nil
}

// remove takes away what keep does not want.
func (r *remains) remove(keep func(hook) bool, keepTables bool) error {
	var errs []error
	emptied := make(map[device]bool)
	for _, h := range r.hooks {
		if keep(h) {
			continue
		}
		errs = append(errs, h.detach())
		if h.form == Clsact {
			emptied[h.dev] = true
		}
	}
	for dev := range emptied {
		errs = append(errs, dropEmptyClsact(dev))
	}
	if !keepTables {
		errs = append(errs, nftRemove(r.tables))
	}
	return errors.Join(errs...)
}

func (r *remains) release() {
	for _, prog := range r.progs {
		prog.Close()
	}
}

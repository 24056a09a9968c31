package gate

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// Bounds of a gate. Slot 0 is never opened: it is where an address of a former incarnation waits for its service.
const (
	maxSlots = 1024
	maxVIPs  = 8192
)

// maps is what the programs decide by: address -> slot -> deadline. The deadlines are mapped into memory, so that a
// refresh is one store.
type maps struct {
	vips      *ebpf.Map     // [16]byte -> uint32
	deadlines *ebpf.Map     // [maxSlots]uint64, ns of bpf_ktime_get_boot_ns; 0: shut
	counters  *ebpf.Map     // [counters]uint64 per CPU
	memory    []byte        // deadlines
	offset    time.Duration // added to each deadline
}

// Suffixes of the maps' names, by which a later incarnation finds them. They and the form of vips and deadlines only
// change together with the tag's version.
const (
	vipsSuffix      = "_vs"
	deadlinesSuffix = "_dl"
	countersSuffix  = "_ct"
)

func newMaps(tag string) (*maps, error) {
	m := new(maps)
	for _, spec := range []struct {
		to *(*ebpf.Map)
		ebpf.MapSpec
	}{
		{&m.vips, ebpf.MapSpec{Name: tag + vipsSuffix, Type: ebpf.Hash, KeySize: 16, ValueSize: 4, MaxEntries: maxVIPs}},
		{&m.deadlines, ebpf.MapSpec{Name: tag + deadlinesSuffix, Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: maxSlots, Flags: unix.BPF_F_MMAPABLE}},
		{&m.counters, ebpf.MapSpec{Name: tag + countersSuffix, Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: counters}},
	} {
		made, err := ebpf.NewMap(&spec.MapSpec)
		if err != nil {
			m.close()
			return nil, fmt.Errorf("make the gate's map %s: %w", spec.Name, err)
		}
		*spec.to = made
	}
	page := os.Getpagesize()
	size := (maxSlots*8 + page - 1) / page * page
	memory, err := unix.Mmap(m.deadlines.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		m.close()
		return nil, fmt.Errorf("map the gate's deadlines into memory: %w", err)
	}
	m.memory = memory
	return m, nil
}

// key is the form in which the programs look an address up.
func key(a netip.Addr) [16]byte { return a.As16() }

func (m *maps) put(a netip.Addr, slot uint32) error {
	k := key(a)
	if err := m.vips.Put(k, slot); err != nil {
		return fmt.Errorf("declare %s to the gate: %w", a, err)
	}
	return nil
}

func (m *maps) forget(a netip.Addr) error {
	k := key(a)
	if err := m.vips.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("take %s out of the gate: %w", a, err)
	}
	return nil
}

// setDeadline is one atomic store, no system call.
func (m *maps) setDeadline(slot uint32, deadline cluster.Instant) {
	var ns uint64
	if deadline > 0 {
		if d := deadline.Add(m.offset); d > 0 {
			ns = uint64(d)
		}
	}
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&m.memory[8*slot])), ns)
}

func (m *maps) stats(into map[string]uint64) error {
	for i, name := range counterNames {
		var perCPU []uint64
		if err := m.counters.Lookup(uint32(i), &perCPU); err != nil {
			return fmt.Errorf("read the gate's counter %s: %w", name, err)
		}
		for _, n := range perCPU {
			into[name] += n
		}
	}
	return nil
}

func (m *maps) close() {
	if m.memory != nil {
		_ = unix.Munmap(m.memory)
		m.memory = nil
	}
	for _, one := range []*ebpf.Map{m.vips, m.deadlines, m.counters} {
		if one != nil {
			one.Close()
		}
	}
}

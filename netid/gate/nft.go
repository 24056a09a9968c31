package gate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// Names within the tables of form nft.
const (
	nftSlots4 = "slots4" // address -> slot
	nftSlots6 = "slots6"
	nftOpen   = "open" // slots before their deadline; elements have time-outs
)

// nftSlack is how much earlier than the deadline a time-out ends: for the time between reading the clock and the
// kernel's own start of the time-out, and for a late tick. It grows when the kernel was seen to be slower, up to
// nftMaxSlack, and shrinks again.
const (
	nftSlack    = 5 * time.Millisecond
	nftTick     = 2 * time.Millisecond
	nftMaxSlack = 80 * time.Millisecond
)

// nftGate is the gate as nftables sets: a packet is dropped when its address maps to a slot that is not in the set of
// open ones.
type nftGate struct {
	table string
	hot   *batches
	slack time.Duration

	mu   sync.Mutex // held over every change of the tables but the hot one
	vips map[netip.Addr]uint32
}

// arpOut is NF_ARP_OUT of include/uapi/linux/netfilter_arp.h.
const arpOut = 1

func nftFamilies() []nftables.TableFamily {
	return []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyARP}
}

func newNFTGate(table string, vips []netip.Addr) (*nftGate, error) {
	n := &nftGate{table: table, vips: make(map[netip.Addr]uint32), slack: nftSlack}
	for _, a := range vips {
		n.vips[a] = 0
	}
	hot, err := openBatches(table, nftOpen)
	if err != nil {
		return nil, err
	}
	n.hot = hot
	if err := n.install(); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// install makes both tables anew, with every address and all shut, in one transaction: a table of the same name is at no
// moment absent. Callers hold mu.
func (n *nftGate) install() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	for _, family := range nftFamilies() {
		t := conn.AddTable(&nftables.Table{Name: n.table, Family: family})
		conn.DelTable(t)
		conn.AddTable(t)
		sets := n.sets(t)
		for _, s := range sets {
			if err := conn.AddSet(s, nil); err != nil {
				return fmt.Errorf("describe the set %s: %w", s.Name, err)
			}
		}
		if err := n.elements(t, n.vips, conn.SetAddElements); err != nil {
			return err
		}
		if family == nftables.TableFamilyARP {
			n.arpChain(conn, t, sets)
		} else {
			n.inetChains(conn, t, sets)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("install the nftables tables %s: %w", n.table, err)
	}
	return nil
}

// sets of one table; the ARP table has no use for slots6.
func (n *nftGate) sets(t *nftables.Table) []*nftables.Set {
	sets := []*nftables.Set{
		{Table: t, Name: nftOpen, KeyType: nftables.TypeMark, HasTimeout: true},
		{Table: t, Name: nftSlots4, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeMark, IsMap: true},
	}
	if t.Family == nftables.TableFamilyINet {
		sets = append(sets, &nftables.Set{Table: t, Name: nftSlots6, KeyType: nftables.TypeIP6Addr, DataType: nftables.TypeMark, IsMap: true})
	}
	return sets
}

// elements applies do (add or delete) to the elements for vips, in pieces that fit into a message.
func (n *nftGate) elements(t *nftables.Table, vips map[netip.Addr]uint32, do func(*nftables.Set, []nftables.SetElement) error) error {
	const piece = 256
	sets := n.sets(t)
	bySet := make(map[*nftables.Set][]nftables.SetElement)
	for a, slot := range vips {
		e := nftables.SetElement{Key: a.AsSlice(), Val: binary.BigEndian.AppendUint32(nil, slot)}
		switch {
		case a.Is4():
			bySet[sets[1]] = append(bySet[sets[1]], e)
		case t.Family == nftables.TableFamilyINet:
			bySet[sets[2]] = append(bySet[sets[2]], e)
		}
	}
	for set, list := range bySet {
		for len(list) > 0 {
			k := min(piece, len(list))
			if err := do(set, list[:k]); err != nil {
				return fmt.Errorf("describe the elements of %s: %w", set.Name, err)
			}
			list = list[k:]
		}
	}
	return nil
}

// inetChains: what comes in is looked at before and after any translation of its destination, what goes out before and
// after any of its source. The hooks cover lo and what is forwarded.
func (n *nftGate) inetChains(conn *nftables.Conn, t *nftables.Table, sets []*nftables.Set) {
	for _, c := range []struct {
		name string
		hook *nftables.ChainHook
		prio nftables.ChainPriority
		out  bool
	}{
		{"in", nftables.ChainHookPrerouting, -350, false},
		{"translated-in", nftables.ChainHookInput, 350, false},
		{"out", nftables.ChainHookPostrouting, -350, true},
		{"translated-out", nftables.ChainHookPostrouting, 350, true},
	} {
		chain := conn.AddChain(&nftables.Chain{
			Name: c.name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: c.hook, Priority: nftables.ChainPriorityRef(c.prio),
		})
		address4, address6 := uint32(16), uint32(24)
		if c.out {
			address4, address6 = 12, 8
		}
		v4 := is(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV4)
		v6 := is(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6)
		if c.out { // first, so that the usual one, which has the VIP as source as well, is counted here
			na := append(append(slices.Clone(v6), is(expr.MetaKeyL4PROTO, unix.IPPROTO_ICMPV6)...), equals(expr.PayloadBaseTransportHeader, 0, 136)...)
			n.dropRule(conn, chain, countND, na, sets[2], field(expr.PayloadBaseTransportHeader, 8, 16))
		}
		n.dropRule(conn, chain, countIPv4, v4, sets[1], field(expr.PayloadBaseNetworkHeader, address4, 4))
		n.dropRule(conn, chain, countIPv6, v6, sets[2], field(expr.PayloadBaseNetworkHeader, address6, 16))
	}
}

// arpChain looks at the sender of what this host says by ARP for IPv4 on Ethernet.
func (n *nftGate) arpChain(conn *nftables.Conn, t *nftables.Table, sets []*nftables.Set) {
	chain := conn.AddChain(&nftables.Chain{
		Name: "out", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookRef(arpOut), Priority: nftables.ChainPriorityRef(-350),
	})
	n.dropRule(conn, chain, countARP, equals(expr.PayloadBaseNetworkHeader, 2, 0x08, 0x00, 6, 4), sets[1],
		field(expr.PayloadBaseNetworkHeader, 14, 4))
}

func is(meta expr.MetaKey, value byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: meta, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{value}},
	}
}

func field(base expr.PayloadBase, offset, size uint32) *expr.Payload {
	return &expr.Payload{OperationType: expr.PayloadLoad, DestRegister: unix.NFT_REG_1, Base: base, Offset: offset, Len: size}
}

func equals(base expr.PayloadBase, offset uint32, value ...byte) []expr.Any {
	return []expr.Any{
		field(base, offset, uint32(len(value))),
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: value},
	}
}

// dropRule: when `when` holds and the address is known, its slot must be open.
func (n *nftGate) dropRule(conn *nftables.Conn, chain *nftables.Chain, counter int, when []expr.Any, slots *nftables.Set, address *expr.Payload) {
	exprs := append(append([]expr.Any{}, when...),
		address,
		&expr.Lookup{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_2, IsDestRegSet: true, SetName: slots.Name, SetID: slots.ID},
		&expr.Lookup{SourceRegister: unix.NFT_REG_2, SetName: nftOpen, Invert: true},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	)
	conn.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs,
		UserData: userdata.AppendString(nil, userdata.TypeComment, counterNames[counter])})
}

// change carries out one transaction on the addresses of both tables.
func (n *nftGate) change(remove, add map[netip.Addr]uint32) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	for _, family := range nftFamilies() {
		t := &nftables.Table{Name: n.table, Family: family}
		if err := n.elements(t, remove, conn.SetDeleteElements); err != nil {
			return err
		}
		if err := n.elements(t, add, conn.SetAddElements); err != nil {
			return err
		}
	}
	return conn.Flush()
}

func (n *nftGate) put(a netip.Addr, slot uint32) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var remove map[netip.Addr]uint32
	if old, known := n.vips[a]; known {
		remove = map[netip.Addr]uint32{a: old}
	}
	if err := n.change(remove, map[netip.Addr]uint32{a: slot}); err != nil {
		return fmt.Errorf("declare %s to the gate: %w", a, err)
	}
	n.vips[a] = slot
	return nil
}

func (n *nftGate) forget(a netip.Addr) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	slot, known := n.vips[a]
	if !known {
		return nil
	}
	if err := n.change(map[netip.Addr]uint32{a: slot}, nil); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("take %s out of the gate: %w", a, err)
	}
	delete(n.vips, a)
	return nil
}

// refresh opens a slot until the deadline at the latest: the time-out is counted from a reading of the clock before the
// transaction, and the clock is read again after it; when that took longer than the slack allows, the slot is set again
// with more slack, and shut if that does not help.
func (n *nftGate) refresh(slot uint32, deadline cluster.Instant) error {
	for range 4 {
		now := boottime()
		timeout := deadline.Sub(now) - n.slack
		if timeout < time.Millisecond {
			break
		}
		err := n.hot.setTimeout(slot, timeout)
		if errors.Is(err, errNoElement) { // somebody flushed the ruleset: not waiting for Run's next look
			_, err = n.cover(nil)
			if err == nil {
				continue
			}
		}
		if err != nil {
			return errors.Join(fmt.Errorf("set the deadline of the nftables gate %s: %w", n.table, err), n.hot.close(slot))
		}
		took := boottime().Sub(now)
		if took+nftTick <= n.slack {
			n.slack = max(nftSlack, n.slack-n.slack/16)
			return nil
		}
		n.slack = min(nftMaxSlack, max(2*n.slack, took+2*nftTick))
	}
	if err := n.hot.close(slot); err != nil {
		return fmt.Errorf("shut the nftables gate %s: %w", n.table, err)
	}
	return nil
}

// cover makes the tables again if somebody removed them, shut. There is nothing to do for single interfaces.
func (n *nftGate) cover([]device) (repaired int, err error) {
	tables, err := nftTables(n.table)
	if err != nil {
		return 0, err
	}
	if len(tables) == len(nftFamilies()) {
		whole := true
		for _, t := range tables {
			rules, err := nftRules(t)
			if err != nil {
				return 0, err
			}
			whole = whole && len(rules) > 0
		}
		if whole {
			return 0, nil
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.install(); err != nil {
		return 0, err
	}
	return 1, nil
}

// nftTables lists the tables of that name.
func nftTables(name string) ([]*nftables.Table, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("reach nftables: %w", err)
	}
	var out []*nftables.Table
	for _, family := range nftFamilies() {
		tables, err := conn.ListTablesOfFamily(family)
		if err != nil {
			return nil, fmt.Errorf("list the nftables tables: %w", err)
		}
		for _, t := range tables {
			if t.Name == name {
				out = append(out, t)
			}
		}
	}
	return out, nil
}

func nftRules(t *nftables.Table) ([]*nftables.Rule, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("reach nftables: %w", err)
	}
	rules, err := conn.GetRules(t, &nftables.Chain{Name: "out", Table: t})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("list the rules of nftables table %s: %w", t.Name, err)
	}
	if t.Family != nftables.TableFamilyINet {
		return rules, nil
	}
	for _, name := range []string{"in", "translated-in", "translated-out"} {
		more, err := conn.GetRules(t, &nftables.Chain{Name: name, Table: t})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("list the rules of nftables table %s: %w", t.Name, err)
		}
		rules = append(rules, more...)
	}
	return rules, nil
}

func (n *nftGate) stats(into map[string]uint64) error {
	tables, err := nftTables(n.table)
	if err != nil {
		return err
	}
	for _, t := range tables {
		rules, err := nftRules(t)
		if err != nil {
			return err
		}
		for _, r := range rules {
			name, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			for _, e := range r.Exprs {
				if c, ok := e.(*expr.Counter); ok {
					into[name] += c.Packets
				}
			}
		}
	}
	return nil
}

// owns: this form has no hooks of its own on interfaces.
func (n *nftGate) owns(hook) bool { return false }

func (n *nftGate) close() { n.hot.shutSocket() }

// nftAddresses lists the addresses that a former incarnation's tables know.
func nftAddresses(t *nftables.Table) ([]netip.Addr, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("reach nftables: %w", err)
	}
	var out []netip.Addr
	sets, err := conn.GetSets(t)
	if err != nil {
		return nil, fmt.Errorf("list the sets of nftables table %s: %w", t.Name, err)
	}
	for _, s := range sets {
		if s.Name != nftSlots4 && s.Name != nftSlots6 {
			continue
		}
		elements, err := conn.GetSetElements(&nftables.Set{Table: t, Name: s.Name, IsMap: true})
		if err != nil {
			return nil, fmt.Errorf("read the nftables set %s of %s: %w", s.Name, t.Name, err)
		}
		for _, e := range elements {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				out = append(out, a)
			}
		}
	}
	return out, nil
}

// nftShut empties the set of open slots.
func nftShut(t *nftables.Table) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	conn.FlushSet(&nftables.Set{Table: t, Name: nftOpen})
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("shut the nftables table %s: %w", t.Name, err)
	}
	return nil
}

// nftRemove deletes tables.
func nftRemove(tables []*nftables.Table) error {
	if len(tables) == 0 {
		return nil
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	for _, t := range tables {
		conn.DelTable(t)
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the nftables tables: %w", err)
	}
	return nil
}

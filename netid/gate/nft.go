package gate

import (
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
	nftKnown4 = "known4" // the addresses of services
	nftKnown6 = "known6"
	nftOpen4  = "open4" // those before their deadline; elements have time-outs
	nftOpen6  = "open6"
)

// nftMaxAddresses bounds the addresses of one service, whose refresh is one message to the kernel.
const nftMaxAddresses = 256

// nftSlack is how much earlier than the deadline a time-out ends: for the time between reading the clock and the
// kernel's own start of the time-out, and for a late tick. It grows when the kernel was seen to be slower, up to
// nftMaxSlack, and shrinks again.
const (
	nftSlack    = 5 * time.Millisecond
	nftTick     = 2 * time.Millisecond
	nftMaxSlack = 80 * time.Millisecond
)

// nftGate is the gate as nftables sets: a packet is dropped when its address is known and not open. The rules are of the
// kind that nft(8) can list.
type nftGate struct {
	table string

	mu   sync.Mutex // held over every change of the tables but the hot ones
	vips map[netip.Addr]uint32

	hot   sync.Mutex
	sock  *nftSocket
	slots map[uint32]*batches
	slack time.Duration
}

// arpOut is NF_ARP_OUT of include/uapi/linux/netfilter_arp.h.
const arpOut = 1

func nftFamilies() []nftables.TableFamily {
	return []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyARP}
}

func newNFTGate(table string, vips []netip.Addr) (*nftGate, error) {
	n := &nftGate{table: table, vips: make(map[netip.Addr]uint32), slots: make(map[uint32]*batches), slack: nftSlack}
	for _, a := range vips {
		n.vips[a] = 0
	}
	sock, err := openNFTSocket()
	if err != nil {
		return nil, err
	}
	n.sock = sock
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
		for _, s := range nftSets(t) {
			if err := conn.AddSet(s, nil); err != nil {
				return fmt.Errorf("describe the set %s: %w", s.Name, err)
			}
		}
		if err := nftElements(t, n.known(), conn.SetAddElements); err != nil {
			return err
		}
		if family == nftables.TableFamilyARP {
			arpChain(conn, t)
		} else {
			inetChains(conn, t)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("install the nftables tables %s: %w", n.table, err)
	}
	return nil
}

// nftSets are the sets of one table; the ARP table knows IPv4 only.
func nftSets(t *nftables.Table) []*nftables.Set {
	sets := []*nftables.Set{
		{Table: t, Name: nftKnown4, KeyType: nftables.TypeIPAddr},
		{Table: t, Name: nftOpen4, KeyType: nftables.TypeIPAddr, HasTimeout: true},
	}
	if t.Family == nftables.TableFamilyINet {
		sets = append(sets,
			&nftables.Set{Table: t, Name: nftKnown6, KeyType: nftables.TypeIP6Addr},
			&nftables.Set{Table: t, Name: nftOpen6, KeyType: nftables.TypeIP6Addr, HasTimeout: true})
	}
	return sets
}

// nftElements applies do (add or delete) to the known addresses of a table, in pieces that fit into a message.
func nftElements(t *nftables.Table, addrs []netip.Addr, do func(*nftables.Set, []nftables.SetElement) error) error {
	const piece = 256
	bySet := make(map[string][]nftables.SetElement)
	for _, a := range addrs {
		switch {
		case a.Is4():
			bySet[nftKnown4] = append(bySet[nftKnown4], nftables.SetElement{Key: a.AsSlice()})
		case t.Family == nftables.TableFamilyINet:
			bySet[nftKnown6] = append(bySet[nftKnown6], nftables.SetElement{Key: a.AsSlice()})
		}
	}
	for name, list := range bySet {
		for some := range slices.Chunk(list, piece) {
			if err := do(&nftables.Set{Table: t, Name: name}, some); err != nil {
				return fmt.Errorf("describe the elements of %s: %w", name, err)
			}
		}
	}
	return nil
}

// inetChains: what comes in is looked at before and after any translation of its destination, what goes out before and
// after any of its source. The hooks cover lo and what is forwarded.
func inetChains(conn *nftables.Conn, t *nftables.Table) {
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
			dropRule(conn, chain, countND, na, nftKnown6, nftOpen6, field(expr.PayloadBaseTransportHeader, 8, 16))
		}
		dropRule(conn, chain, countIPv4, v4, nftKnown4, nftOpen4, field(expr.PayloadBaseNetworkHeader, address4, 4))
		dropRule(conn, chain, countIPv6, v6, nftKnown6, nftOpen6, field(expr.PayloadBaseNetworkHeader, address6, 16))
	}
}

// arpChain looks at the sender of what this host says by ARP for IPv4 on Ethernet.
func arpChain(conn *nftables.Conn, t *nftables.Table) {
	chain := conn.AddChain(&nftables.Chain{
		Name: "out", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookRef(arpOut), Priority: nftables.ChainPriorityRef(-350),
	})
	ethernetIPv4 := append(append(equals(expr.PayloadBaseNetworkHeader, 2, 0x08, 0x00), equals(expr.PayloadBaseNetworkHeader, 4, 6)...),
		equals(expr.PayloadBaseNetworkHeader, 5, 4)...)
	dropRule(conn, chain, countARP, ethernetIPv4, nftKnown4, nftOpen4, field(expr.PayloadBaseNetworkHeader, 14, 4))
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

// dropRule: when `when` holds and the address is known, it must be open.
func dropRule(conn *nftables.Conn, chain *nftables.Chain, counter int, when []expr.Any, known, open string, address *expr.Payload) {
	exprs := append(slices.Clone(when),
		address,
		&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: known},
		address,
		&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: open, Invert: true},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	)
	conn.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs,
		UserData: userdata.AppendString(nil, userdata.TypeComment, counterNames[counter])})
}

// change carries out one transaction on the known addresses of both tables.
func (n *nftGate) change(a netip.Addr, add bool) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	do := conn.SetDeleteElements
	if add {
		do = conn.SetAddElements
	}
	for _, family := range nftFamilies() {
		if err := nftElements(&nftables.Table{Name: n.table, Family: family}, []netip.Addr{a}, do); err != nil {
			return err
		}
	}
	return conn.Flush()
}

func (n *nftGate) put(a netip.Addr, slot uint32) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.ofSlot(slot)) >= nftMaxAddresses {
		return fmt.Errorf("declare %s to the gate: form nft holds at most %d addresses of one service", a, nftMaxAddresses)
	}
	old, known := n.vips[a]
	if !known {
		if err := n.change(a, true); err != nil {
			return fmt.Errorf("declare %s to the gate: %w", a, err)
		}
	}
	n.vips[a] = slot
	if known {
		n.rebuild(old)
	}
	n.rebuild(slot)
	return nil
}

func (n *nftGate) known() (addrs []netip.Addr) {
	for a := range n.vips {
		addrs = append(addrs, a)
	}
	return addrs
}

func (n *nftGate) ofSlot(slot uint32) (addrs []netip.Addr) {
	for a, s := range n.vips {
		if s == slot {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// rebuild writes the transactions of a slot anew.
func (n *nftGate) rebuild(slot uint32) {
	b := newBatches(n.table, n.ofSlot(slot))
	n.hot.Lock()
	defer n.hot.Unlock()
	n.slots[slot] = b
}

// forget also shuts the address, so that it is not open should it be declared again soon.
func (n *nftGate) forget(a netip.Addr) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	slot, known := n.vips[a]
	if !known {
		return nil
	}
	delete(n.vips, a)
	n.rebuild(slot)
	alone := newBatches(n.table, []netip.Addr{a})
	n.hot.Lock()
	err := n.sock.send(&alone.shut)
	n.hot.Unlock()
	if err == nil {
		err = n.change(a, false)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, errNoElement) {
		return fmt.Errorf("take %s out of the gate: %w", a, err)
	}
	return nil
}

// refresh opens a slot until the deadline at the latest: the time-out is counted from a reading of the clock before the
// transaction, and the clock is read again after it; when that took longer than the slack allows, the slot is set again
// with more slack, and shut if that does not help.
func (n *nftGate) refresh(slot uint32, deadline cluster.Instant) error {
	err := n.tryRefresh(slot, deadline)
	if errors.Is(err, errNoElement) { // somebody flushed the ruleset: not waiting for Run's next look
		if _, err := n.cover(nil); err != nil {
			return err
		}
		err = n.tryRefresh(slot, deadline)
	}
	if err != nil {
		return fmt.Errorf("set the deadline of the nftables gate %s: %w", n.table, err)
	}
	return nil
}

func (n *nftGate) tryRefresh(slot uint32, deadline cluster.Instant) error {
	n.hot.Lock()
	defer n.hot.Unlock()
	b := n.slots[slot]
	if b == nil {
		return nil // no addresses yet
	}
	for range 4 {
		now := boottime()
		timeout := deadline.Sub(now) - n.slack
		if timeout < time.Millisecond {
			break
		}
		b.open.setTimeout(timeout)
		if err := n.sock.send(&b.open); err != nil {
			return errors.Join(err, n.sock.send(&b.shut))
		}
		took := boottime().Sub(now)
		if took+nftTick <= n.slack {
			n.slack = max(nftSlack, n.slack-n.slack/16)
			return nil
		}
		n.slack = min(nftMaxSlack, max(2*n.slack, took+2*nftTick))
	}
	return n.sock.send(&b.shut)
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

func (n *nftGate) close() { n.sock.close() }

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
		if s.Name != nftKnown4 && s.Name != nftKnown6 {
			continue
		}
		elements, err := conn.GetSetElements(&nftables.Set{Table: t, Name: s.Name})
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

// nftShut empties the sets of open addresses.
func nftShut(t *nftables.Table) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	for _, s := range nftSets(t) {
		if s.HasTimeout {
			conn.FlushSet(s)
		}
	}
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

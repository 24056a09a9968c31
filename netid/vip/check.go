package vip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// How long a duplicate probe takes when nobody answers. RFC 5227 section 1.1 has seconds, for hosts that come up together
// on slow bridges; an operator waits for this one, and a host that has the address answers within milliseconds.
const (
	probes     = 3
	probeGap   = 150 * time.Millisecond
	probeWait  = 250 * time.Millisecond // after the last one
	probesOnce = 32                     // VIPs asked for at the same time
)

// Check says what is wrong with VIPs that are new in the spec, on this node and in the calling thread's network
// namespace: nil, or an error for each trouble. It looks at the machine and asks the network (about 0.6 s).
//
// Do not give it VIPs of the spec that is in force: one that is active on another node is of course in use.
func Check(addrs []Address) []error {
	if err := validate(addrs); err != nil {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			return joined.Unwrap()
		}
		return []error{err}
	}
	lists, err := openRoute()
	if err != nil {
		return []error{err}
	}
	defer lists.close()
	snap, err := lists.list()
	if err != nil {
		return []error{err}
	}
	var errs []error
	var ask []*question
	defer func() {
		for _, q := range ask {
			q.wire.close()
		}
	}()
	for _, a := range addrs {
		q, err := checkHere(&snap, a)
		if err != nil {
			errs = append(errs, err)
		} else if q != nil {
			ask = append(ask, q)
		}
	}
	return append(errs, askAll(ask)...)
}

// checkHere checks one VIP against this machine and returns the question to the network.
func checkHere(snap *snapshot, a Address) (*question, error) {
	ours := func(k kernelAddr) bool { return k.proto == Proto }
	for _, k := range snap.addrs {
		if k.prefix.Addr() == a.Prefix.Addr() && !ours(k) {
			name := "an interface"
			if l := snap.byIndex(k.link); l != nil {
				name = l.name
			}
			return nil, fmt.Errorf("VIP %v is this node's own fixed address on %s: choose another one for the VIP, or take it from %s",
				a.Prefix, name, name)
		}
	}
	l, fits, err := snap.find(a, ours)
	if err != nil {
		return nil, err
	}
	switch {
	case len(fits) > 1:
		slices.Sort(fits)
		return nil, fmt.Errorf("VIP %v fits to the interfaces %s: name one with interface =", a.Prefix, strings.Join(fits, ", "))
	case !l.admin:
		return nil, fmt.Errorf("VIP %v: interface %s is down: set it up, or name another with interface =", a.Prefix, l.name)
	case l.mac == nil && a.VirtualMAC:
		return nil, fmt.Errorf("VIP %v: %s is not an Ethernet interface and cannot carry a virtual MAC; use mac = \"own\"", a.Prefix, l.name)
	case l.mac == nil || l.name == "lo":
		return nil, nil
	}
	return openQuestion(snap, l, a.Prefix)
}

func askAll(ask []*question) []error {
	errs := make([]error, len(ask))
	slot := make(chan struct{}, probesOnce)
	var wg sync.WaitGroup
	for i, q := range ask {
		wg.Go(func() {
			slot <- struct{}{}
			defer func() { <-slot }()
			mac, used, err := q.ask(context.Background())
			switch {
			case err != nil:
				errs[i] = fmt.Errorf("VIP %v: ask the network on %s whether it is in use: %w", q.vip, q.wire.name, err)
			case used:
				errs[i] = fmt.Errorf("VIP %v is in use already: %v answered for it on %s; choose another address or take it from that machine",
					q.vip, mac, q.wire.name)
			}
		})
	}
	wg.Wait()
	var out []error
	for _, err := range errs {
		if err != nil {
			out = append(out, err)
		}
	}
	return out
}

// Probe asks the network whether somebody else has the address and who (RFC 5227 for IPv4, duplicate address detection
// of RFC 4862 for IPv6). It takes about 0.6 s when nobody answers; ctx ends it earlier with its error. It asks on the
// interface that the VIP goes to, or that has the address's network. A node whose gate is shut for a VIP that is in
// the spec hears no answer: ask from the active.
func (k *Keeper) Probe(ctx context.Context, addr netip.Addr) (hw net.HardwareAddr, inUse bool, err error) {
	k.prep.Lock()
	q, err := k.question(addr)
	k.prep.Unlock()
	if err != nil {
		return nil, false, err
	}
	defer q.wire.close()
	hw, inUse, err = q.ask(ctx)
	if err != nil {
		err = fmt.Errorf("ask the network on %s whether %v is in use: %w", q.wire.name, addr, err)
	}
	return hw, inUse, err
}

// question opens what it takes to ask for addr. prep is held.
func (k *Keeper) question(addr netip.Addr) (*question, error) {
	if k.isClosed() {
		return nil, errClosed
	}
	snap, err := k.lists.list()
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	s, ours := k.slotOf(addr), k.isOurs()
	k.mu.Unlock()
	var l *link
	if s != nil && s.err == nil {
		l = snap.byIndex(s.at.parent)
	}
	if l == nil {
		a := Address{Prefix: netip.PrefixFrom(addr, addr.BitLen())}
		if l, _, err = snap.find(a, ours); err != nil {
			return nil, err
		}
	}
	if l.mac == nil {
		return nil, fmt.Errorf("%v: %s is not an Ethernet interface, nobody can be asked there", addr, l.name)
	}
	var q *question
	err = k.ns.in(func() error {
		q, err = openQuestion(&snap, l, netip.PrefixFrom(addr, addr.BitLen()))
		return err
	})
	return q, err
}

// question is whether anybody but this host has an address.
type question struct {
	vip   netip.Prefix
	wire  *wire
	frame []byte
	own   []net.HardwareAddr
}

func openQuestion(snap *snapshot, l *link, vip netip.Prefix) (*question, error) {
	frame, err := probeFrame(l.mac, vip.Addr())
	if err != nil {
		return nil, err
	}
	w, err := openWire(l, vip.Addr().Is6(), []netip.Addr{vip.Addr()})
	if err != nil {
		return nil, err
	}
	q := &question{vip: vip, wire: w, frame: frame}
	for _, l := range snap.links {
		q.own = append(q.own, l.mac)
	}
	return q, nil
}

func (q *question) ask(ctx context.Context) (net.HardwareAddr, bool, error) {
	stop := context.AfterFunc(ctx, func() { _ = q.wire.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 1514)
	for n := range probes {
		if err := q.wire.send(q.frame); err != nil {
			return nil, false, err
		}
		wait := probeGap
		if n == probes-1 {
			wait = probeWait
		}
		if err := q.wire.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return nil, false, err
		}
		for {
			if err := ctx.Err(); err != nil {
				return nil, false, err
			}
			c, err := q.wire.read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, false, err
			}
			if c.ip == q.vip.Addr() && !q.isOwn(c.mac) {
				return c.mac, true, nil
			}
		}
	}
	return nil, false, ctx.Err()
}

func (q *question) isOwn(mac net.HardwareAddr) bool {
	for _, own := range q.own {
		if bytes.Equal(own, mac) {
			return true
		}
	}
	return false
}

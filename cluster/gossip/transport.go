package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hashicorp/memberlist"
)

// port is the one port between members. It only fills a field: members are found by node id.
const port = 7400

// addrOf is the address that stands for a node id in memberlist: its 16 bytes, as if they were IPv6. Nothing is ever
// sent to it.
func addrOf(id cluster.NodeID) *net.UDPAddr {
	return &net.UDPAddr{IP: net.IP(id[:]), Port: port}
}

func nodeOf(addr string) (id cluster.NodeID, err error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return id, err
	}
	ip := net.ParseIP(host)
	if len(ip) != len(id) {
		return id, fmt.Errorf("%q does not stand for a node id", addr)
	}
	copy(id[:], ip)
	return id, nil
}

// transport is memberlist's Transport over a Network.
type transport struct {
	self    cluster.NodeID
	network Network
	log     *slog.Logger
	packets chan *memberlist.Packet
	streams chan net.Conn
	ctx     context.Context
	stop    context.CancelFunc
	wg      sync.WaitGroup
}

func newTransport(self cluster.NodeID, n Network, log *slog.Logger) *transport {
	t := &transport{self: self, network: n, log: log, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn)}
	t.ctx, t.stop = context.WithCancel(context.Background())
	t.wg.Add(2)
	go t.pumpPackets()
	go t.pumpStreams()
	return t
}

func (t *transport) pumpPackets() {
	defer t.wg.Done()
	for {
		select {
		case p := <-t.network.Packets():
			if len(p.Data) > 2*MaxPacket {
				continue
			}
			select {
			case t.packets <- &memberlist.Packet{Buf: p.Data, From: addrOf(p.From), Timestamp: p.At}:
			case <-t.ctx.Done():
			}
		case <-t.ctx.Done():
			return
		}
	}
}

func (t *transport) pumpStreams() {
	defer t.wg.Done()
	for wait := time.Millisecond; ; {
		c, err := t.network.Accept()
		if t.ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return
		}
		if err != nil {
			t.log.Debug("gossip: accept", "err", err)
			select {
			case <-time.After(wait):
			case <-t.ctx.Done():
			}
			wait = min(2*wait, time.Second)
			continue
		}
		wait = time.Millisecond
		t.closeAtEnd(c)
		select {
		case t.streams <- c:
		case <-t.ctx.Done():
			c.Close()
		}
	}
}

// wait returns once nothing of the transport runs any more.
func (t *transport) wait() { t.wg.Wait() }

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return addrOf(t.self).IP, port, nil
}

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	id, err := nodeOf(addr)
	if err != nil {
		return time.Time{}, err
	}
	now := time.Now()
	return now, t.network.SendTo(id, b)
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	id, err := nodeOf(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	c, err := t.network.Dial(ctx, id)
	if err != nil {
		return nil, err
	}
	t.closeAtEnd(c)
	return c, nil
}

// closeAtEnd closes c at the latest when the transport ends, so that nobody waits for it.
func (t *transport) closeAtEnd(c net.Conn) { context.AfterFunc(t.ctx, func() { c.Close() }) }

func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn           { return t.streams }

func (t *transport) Shutdown() error {
	t.stop()
	return t.network.Close()
}

// logLines sends memberlist's log to slog, all of it at debug: what matters is in Members.
type logLines struct{ log *slog.Logger }

func (l logLines) Write(p []byte) (int, error) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("gossip: " + string(p))
	}
	return len(p), nil
}

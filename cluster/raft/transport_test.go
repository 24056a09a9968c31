package raft

import (
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"
)

// cuttable is a stream layer whose dialled connections can be cut behind the transport's back, as a link that goes down does.
type cuttable struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (c *cuttable) Dial(to hraft.ServerAddress, d time.Duration) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", string(to), d)
	if err == nil {
		c.mu.Lock()
		c.conns = append(c.conns, conn)
		c.mu.Unlock()
	}
	return conn, err
}

func (c *cuttable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

func TestACallWhoseConnectionHadDiedIsRepeated(t *testing.T) {
	mk := func() (*cuttable, transport) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &cuttable{Listener: l}
		tr := transport{pool: 3, NetworkTransport: hraft.NewNetworkTransportWithConfig(&hraft.NetworkTransportConfig{Stream: s, MaxPool: 3, Timeout: time.Second, Logger: newHCLog(slog.New(slog.DiscardHandler))})}
		t.Cleanup(func() { tr.Close() })
		return s, tr
	}
	mine, a := mk()
	theirs, b := mk()
	go func() {
		for rpc := range b.Consumer() {
			rpc.Respond(&hraft.RequestVoteResponse{Granted: true}, nil)
		}
	}()
	to := hraft.ServerAddress(theirs.Listener.Addr().String())
	ask := func() error {
		var ans hraft.RequestVoteResponse
		return a.RequestVote("b", to, &hraft.RequestVoteRequest{}, &ans)
	}
	var wg sync.WaitGroup
	for range 3 { // fills the pool
		wg.Go(func() {
			if err := ask(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	mine.cut()
	if err := ask(); err != nil {
		t.Fatalf("a vote was lost to a dead connection in the pool: %v", err)
	}
}

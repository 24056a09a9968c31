package stream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/stream/replica"
	"github.com/hanode/hanode/replication/tree"
)

// tlsPair is a connection as between two nodes.
func tlsPair(t testing.TB) func() (net.Conn, net.Conn) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"x"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return func() (net.Conn, net.Conn) {
		a, b := tcpPair()
		x, y := tls.Client(a, &tls.Config{InsecureSkipVerify: true}), tls.Server(b, &tls.Config{Certificates: []tls.Certificate{cert}})
		go y.Handshake()
		if err := x.Handshake(); err != nil {
			panic(err)
		}
		return x, y
	}
}

// echo is the bare round trip: so many bytes there, a short answer back.
func echo(c1, c2 net.Conn, size, n int) []time.Duration {
	go func() {
		b := make([]byte, size)
		for {
			if _, err := io.ReadFull(c2, b); err != nil {
				return
			}
			if _, err := c2.Write(b[:72]); err != nil {
				return
			}
		}
	}()
	b, back := make([]byte, size), make([]byte, 72)
	var took []time.Duration
	for range n {
		at := time.Now()
		if _, err := c1.Write(b); err != nil {
			return nil
		}
		if _, err := io.ReadFull(c1, back); err != nil {
			return nil
		}
		took = append(took, time.Since(at))
	}
	return took
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

type noTree struct{ *memTree }

func (noTree) Apply(*replication.Op) (tree.Applied, error) { return tree.Applied{}, nil }

// TestHowLongAnAcceptanceTakes measures with HANODE_FIGURES=1 (go test ./replication/stream -run Acceptance -v): both sides in one process, TLS over loopback.
func TestHowLongAnAcceptanceTakes(t *testing.T) {
	n := 300
	if os.Getenv("HANODE_FIGURES") != "" {
		n = 8000
	}
	g := newGroup(t, 2, replica.Sync)
	g.pipe = tlsPair(t)
	for _, x := range g.nodes { // a tree that costs nothing: it is not what is measured
		x.stop()
		x.tweak = func(c *Config) { c.Volumes[0].Tree = noTree{memTree: x.tree} }
		x.start()
	}
	g.lead(1)
	g.awaitInSync(1, 2)
	s := g.nodes[0].s
	l := s.Log(1)
	op := replication.Op{Kind: replication.Write, ID: 10, Data: make([]byte, 4096)}
	one := func() {
		op.Off = (op.Off + 4096) % (1 << 20)
		seq, err := l.Submit(&op)
		if err == nil {
			err = l.Wait(seq)
		}
		if err != nil {
			t.Fatal(err)
		}
		l.Done(seq, nil)
	}
	a, b := tcpPair()
	defer a.Close()
	defer b.Close()
	x, y := g.pipe()
	defer x.Close()
	defer y.Close()
	var accept, bare, sealed, syncs []time.Duration
	for range 4 { // interleaved
		bare = append(bare, echo(a, b, 4096+158, n/4)...)
		sealed = append(sealed, echo(x, y, 4096+158, n/4)...)
		for range n / 4 {
			at := time.Now()
			one()
			accept = append(accept, time.Since(at))
		}
		for range n / 16 {
			one()
			at := time.Now()
			if err := l.Sync(); err != nil {
				t.Fatal(err)
			}
			syncs = append(syncs, time.Since(at))
		}
	}
	began := time.Now()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			op := replication.Op{Kind: replication.Write, ID: 11, Data: make([]byte, 4096)}
			for range n / 4 {
				seq, err := l.Submit(&op)
				if err == nil {
					err = l.Wait(seq)
				}
				if err != nil {
					t.Error(err)
					return
				}
				l.Done(seq, nil)
			}
		})
	}
	wg.Wait()
	eight := float64(2*n) / time.Since(began).Seconds()
	ratio := float64(median(accept)) / float64(median(bare))
	t.Logf("4 KiB accepted p50 %v, p99 %v; bare TCP %v (ratio %.2f), bare TLS %v (ratio %.2f); sync on both disks p50 %v; 8 writers %.0f/s", median(accept), accept[len(accept)*99/100],
		median(bare), ratio, median(sealed), float64(median(accept))/float64(median(sealed)), median(syncs), eight)
	if s := fmt.Sprint(l.s.Status().Acks.Count); s == "0" {
		t.Error("nothing was counted")
	}
}

package link_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
)

// volumeServer is the TLS that a volume server does on a connection that it was given.
func (h *host) volumeServer(w *world, r link.Raw) (*tls.Conn, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{h.person.cert.TLS()}, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{string(link.Stream)}}
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		_, err := w.verify(s.PeerCertificates)
		return err
	}
	c := tls.Server(&replayed{Conn: r.Conn, first: r.First}, cfg)
	c.SetDeadline(time.Now().Add(3 * time.Second))
	return c, c.Handshake()
}

type replayed struct {
	net.Conn
	first []byte
}

func (r *replayed) Read(b []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(b, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(b)
}

// asVolume is the TLS of the side that dials.
func (h *host) asVolume(c net.Conn, protos ...string) (*tls.Conn, error) {
	t := tls.Client(c, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{h.person.cert.TLS()}, InsecureSkipVerify: true,
		ServerName: h.person.cert.Subject.ClusterID, NextProtos: protos})
	t.SetDeadline(time.Now().Add(3 * time.Second))
	return t, t.Handshake()
}

func dialStream(t *testing.T, from, to *host, no cluster.ServiceNo, down func()) *link.Raw {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r, err := from.DialStream(ctx, to.person.id, no, down)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Forget(); r.Conn.Close() })
	return r
}

func TestAConnectionForAVolumeIsHandedOverWithItsFirstBytes(t *testing.T) {
	w, a, b := pair(t, oneLink)
	introduce(a, b)
	got := make(chan error, 1)
	b.HandOver(func(r link.Raw) error {
		if r.Service != 7 {
			return errors.New("no such service here")
		}
		go func() {
			c, err := b.volumeServer(w, r)
			if err == nil {
				who, e := w.verify(c.ConnectionState().PeerCertificates)
				if e != nil || who.ID != a.person.id {
					err = errors.New("the peer is not a")
				}
				_, e = io.Copy(c, io.LimitReader(c, 5))
				err = errors.Join(err, e)
			}
			r.Conn.Close()
			got <- err
		}()
		return nil
	})
	r := dialStream(t, a, b, 7, func() {})
	c, err := a.asVolume(r.Conn, string(link.Stream), link.ServiceProto(7))
	if err != nil {
		t.Fatal(err)
	}
	if p := c.ConnectionState().NegotiatedProtocol; p != string(link.Stream) {
		t.Errorf("the channel is %q", p)
	}
	back := make([]byte, 5)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, back); err != nil || string(back) != "hello" {
		t.Errorf("%q came back, %v", back, err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	if n := b.e.Counters().HandOvers; n != 1 {
		t.Errorf("%d hand-overs are counted, want 1", n)
	}
}

func TestAConnectionThatNoVolumeServerWantsIsClosed(t *testing.T) {
	_, a, b := pair(t, oneLink)
	introduce(a, b)
	b.HandOver(func(link.Raw) error { return errors.New("no such service here") })
	r := dialStream(t, a, b, 8, func() {})
	if _, err := a.asVolume(r.Conn, string(link.Stream), link.ServiceProto(8)); err == nil {
		t.Error("somebody answered")
	}
	within(t, 5*time.Second, "counted", func() bool { return b.e.Counters().HandOversRefused == 1 })
}

// A name that is none of a hand-over's goes the ordinary way, where nobody serves it.
func TestOnlyTheTwoNamesOfAVolumeAreHandedOver(t *testing.T) {
	_, a, b := pair(t, oneLink)
	introduce(a, b)
	var taken atomic.Int32
	b.HandOver(func(r link.Raw) error { taken.Add(1); return errors.New("no") })
	for _, protos := range [][]string{{"stream"}, {"stream", "stream/0"}, {"stream", "stream/99999999999"}, {"stream", "raft"}, {"raft", "stream/7"}, {"stream", "stream/7", "raft"}} {
		r := dialStream(t, a, b, 7, func() {})
		if _, err := a.asVolume(r.Conn, protos...); err != nil && protos[0] == "stream" && len(protos) == 1 {
			t.Errorf("%v: %v", protos, err)
		}
	}
	if n := taken.Load(); n != 0 {
		t.Errorf("%d of them were handed over", n)
	}
}

func TestAVolumesConnectionIsGivenUpWhenItsPathFailsAndAnotherWorks(t *testing.T) {
	_, a, b := pair(t, twoLinks)
	b.HandOver(func(r link.Raw) error { t.Cleanup(func() { r.Conn.Close() }); return nil })
	rs := through(a, b)
	keyedBoth(t, a, b)
	within(t, 5*time.Second, "both paths are up", func() bool { return a.up(b.person) == 2 })
	down := make(chan struct{}, 1)
	dialStream(t, a, b, 7, func() { down <- struct{}{} })
	forgotten := dialStream(t, a, b, 7, func() { t.Error("told of a connection that was forgotten") })
	forgotten.Forget()
	rs[0][0].cut(true)
	rs[0][1].cut(true)
	select {
	case <-down:
	case <-time.After(5 * time.Second):
		t.Fatal("nobody was told")
	}
	if again := dialStream(t, a, b, 7, func() {}); again.Conn.RemoteAddr().String() != rs[1][1].addr.String() {
		t.Errorf("dialled %v, and not the path that works", again.Conn.RemoteAddr())
	}
}

func TestAVolumesConnectionsEndWithTheMembership(t *testing.T) {
	_, a, b := pair(t, oneLink)
	introduce(a, b)
	b.HandOver(func(r link.Raw) error { t.Cleanup(func() { r.Conn.Close() }); return nil })
	down := make(chan struct{}, 1)
	dialStream(t, a, b, 7, func() { down <- struct{}{} })
	a.SetPeers(nil)
	select {
	case <-down:
	case <-time.After(5 * time.Second):
		t.Fatal("nobody was told")
	}
}

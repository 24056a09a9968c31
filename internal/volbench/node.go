package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/journal/disk"
	"github.com/hanode/hanode/replication/stream"
	"github.com/hanode/hanode/replication/stream/replica"
	"github.com/hanode/hanode/replication/volume"
)

// adapter gives the stream's log the volume's word for a sequence.
type adapter struct{ l *stream.Log }

func (a adapter) Submit(op *replication.Op) (volume.Ticket, error) {
	seq, err := a.l.Submit(op)
	return volume.Ticket(seq), err
}
func (a adapter) Wait(t volume.Ticket) error      { return a.l.Wait(uint64(t)) }
func (a adapter) Done(t volume.Ticket, err error) { a.l.Done(uint64(t), err) }
func (a adapter) Sync() error                     { return a.l.Sync() }
func boottime() cluster.Instant {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return cluster.Instant(ts.Nano())
}

// alike is the resync of two copies that were just made: there is nothing to send.
type alike struct{}

func (alike) Serve(context.Context, cluster.MemberNo, io.ReadWriter) error       { return nil }
func (alike) Fetch(context.Context, cluster.MemberNo, io.ReadWriter, bool) error { return nil }

// addressed gives the interface that was moved into this namespace its address, when it has come.
func addressed(name, cidr string) error {
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	var link netlink.Link
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if link, err = netlink.LinkByName(name); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("interface %s did not come: %w", name, err)
		}
	}
	if lo, err := netlink.LinkByName("lo"); err == nil {
		netlink.LinkSetUp(lo)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// certificate is what both nodes show each other; the bench verifies nothing, the cost is that of the cluster's TLS.
func certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// node is one volume server with its stream: member 1 is the active, member 2 the standby. Facts that the log would give come by stdin: "insync".
func node(args []string) error {
	fs := flag.NewFlagSet("node", flag.ContinueOnError)
	back := fs.String("backing", "", "")
	mount := fs.String("mount", "", "")
	member := fs.Int("member", 1, "")
	modeName := fs.String("mode", "sync", "")
	ifname := fs.String("if", "", "")
	cidr := fs.String("addr", "", "")
	peer := fs.String("peer", "", "address of the standby")
	pprof := fs.String("pprof", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	syscall.Umask(0)
	raiseFiles()
	if err := addressed(*ifname, *cidr); err != nil {
		return err
	}
	if *pprof != "" {
		go http.ListenAndServe(*pprof, nil)
	}
	mode, ok := replica.ParseMode(*modeName)
	if !ok {
		return fmt.Errorf("no such mode: %s", *modeName)
	}
	t, err := openTree(*back, *mount)
	if err != nil {
		return err
	}
	j, _, err := journal.Open(filepath.Join(*back, "journal"), disk.OS{}, journal.Limits{Cluster: "bench", Service: "bench", Size: 1 << 30})
	if err != nil {
		return err
	}
	st, err := journal.LoadState(disk.OS{}, *back, "bench")
	if errors.Is(err, journal.ErrNoState) {
		st, err = journal.State{Cluster: "bench"}, nil
	}
	if err != nil {
		return err
	}
	facts := replica.Facts{Epoch: 1, Grant: 1, Gen: 1, Holder: replica.Run{Member: 1, Inc: 1}, InSync: cluster.SetOf(1),
		Admitted: []replica.Run{{Member: 1, Inc: 1}, {Member: 2, Inc: 1}}}
	lg := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	var s *stream.Stream
	s, err = stream.New(stream.Config{Self: replica.Run{Member: cluster.MemberNo(*member), Inc: 1}, Cluster: "bench", Service: "bench",
		Volumes: []stream.Volume{{Name: "data", Mode: mode, Tree: t}}, AloneDisk: true, Journal: j, State: st, Log: lg, Now: boottime, Resync: alike{},
		Store: func(x journal.State) error { return journal.StoreState(disk.OS{}, *back, x) },
		Events: stream.Events{
			CaughtUp:    func(replica.Run, cluster.Epoch, cluster.Generation) { fmt.Println("caughtup") },
			WantDegrade: func(m cluster.MemberNo, why string) { fmt.Println("degrade", m, why) },
			Dial:        func(cluster.MemberNo) { go dial(s, *peer) },
			Failed:      func(err error) { fmt.Println("failed", err); os.Exit(1) },
			Deposed:     func(why string) { fmt.Println("deposed", why); os.Exit(1) },
		}})
	if err != nil {
		return err
	}
	go j.Run(context.Background())
	go s.Run(context.Background())
	v, err := volume.New(volume.Config{Service: "bench", Volume: "data", Index: 1, Mount: *mount, Tree: t, Log: adapter{s.Log(1)}, Gate: func() error { return nil }, Logger: lg})
	if err != nil {
		return err
	}
	s.SetFacts(facts)
	if *member == 1 {
		if _, err := s.Lead(context.Background(), 1); err != nil {
			return err
		}
		if err := v.SetRole(volume.Active, 1); err != nil {
			return err
		}
	} else if err := listen(s, *cidr); err != nil {
		return err
	}
	go func() {
		for sc := bufio.NewScanner(os.Stdin); sc.Scan(); {
			if sc.Text() == "insync" {
				facts.InSync = cluster.SetOf(1, 2)
				s.SetFacts(facts)
				fmt.Println("insync")
			}
		}
	}()
	fmt.Println("ready")
	return untilTerm(v, t)
}

const port = "7400"

func listen(s *stream.Stream, cidr string) error {
	cert, err := certificate()
	if err != nil {
		return err
	}
	ip, _, err := net.ParseCIDR(cidr)
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", net.JoinHostPort(ip.String(), port), &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.AddConn(0, c)
		}
	}()
	return nil
}

// dial connects until it succeeds; the stream asks for it again when a connection is lost.
func dial(s *stream.Stream, peer string) {
	if peer == "" {
		return
	}
	for range 200 {
		c, err := tls.Dial("tcp", net.JoinHostPort(peer, port), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
		if err == nil {
			s.AddConn(0, c)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

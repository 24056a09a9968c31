package volserver

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/internal/page"
	"github.com/hanode/hanode/internal/pki"
)

// twin is a data path without data: it remembers what it was told.
type twin struct {
	h      *host
	mu     sync.Mutex
	told   []string
	facts  Facts
	drain  chan struct{} // closed: drained
	conns  chan net.Conn
	peers  chan cluster.MemberNo
	refuse error
}

func (t *twin) note(s string) {
	t.mu.Lock()
	t.told = append(t.told, s)
	t.mu.Unlock()
}

func (t *twin) heard() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.told, " ")
}

func (t *twin) Open(context.Context) (Ready, error) {
	return Ready{Pos: cluster.Position{Epoch: 3, Gen: 4, Seq: 5}}, t.refuse
}
func (t *twin) SetFacts(f Facts) { t.mu.Lock(); t.facts = f; t.mu.Unlock() }
func (t *twin) Lead(context.Context, cluster.Epoch) (Led, error) {
	t.note("lead")
	return Led{Applied: 7}, nil
}
func (t *twin) Drain(ctx context.Context) error {
	select {
	case <-t.drain:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
func (t *twin) Undrain()                    { t.note("undrain") }
func (t *twin) GoAlone()                    { t.note("alone") }
func (t *twin) Fence(why string)            { t.note("fence:" + why) }
func (t *twin) Abort()                      { t.note("abort") }
func (t *twin) Status() Status              { return Status{Role: "standby"} }
func (t *twin) Close(context.Context) error { t.note("close"); return nil }
func (t *twin) AddConn(p cluster.MemberNo, c net.Conn, incoming bool) {
	t.peers <- p
	t.conns <- c
}
func (t *twin) Order(_ context.Context, o Order) (json.RawMessage, error) {
	if o.What == "big" {
		return json.Marshal(strings.Repeat("x", 300<<10))
	}
	return nil, errors.New("refused: " + o.What)
}

// rig is a volume server in this process, with its daemon's end.
type rig struct {
	s     *Server
	twin  *twin
	w     *page.Writer
	ended chan error
}

func member(t *testing.T, ca *pki.Authority, name string) (dir string, id cluster.NodeID) {
	t.Helper()
	id = pki.NewNodeID()
	sub := pki.Subject{ClusterID: ca.ClusterID, Role: cluster.RoleNode, Name: name, ID: id}
	key := pki.NewKey()
	req, err := pki.NewRequest(key, sub)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(req, sub, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ident, err := pki.NewIdentity(cert, key, []*x509.Certificate{ca.Cert})
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "pki")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := ident.Save(dir); err != nil {
		t.Fatal(err)
	}
	return dir, id
}

func newRig(t *testing.T, start Start, ev Events) *rig {
	t.Helper()
	ours, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	far, err := wireOf(theirs)
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	w, err := page.Create("t")
	if err != nil {
		t.Fatal(err)
	}
	r, err := page.OpenFD(int(w.File().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	k := &rig{w: w, twin: &twin{drain: make(chan struct{}), conns: make(chan net.Conn, 8), peers: make(chan cluster.MemberNo, 8)}, ended: make(chan error, 1)}
	go func() {
		err := serve(far, r, slog.New(slog.DiscardHandler), func(h *host, _ Start) (engine, error) { k.twin.h = h; return k.twin, nil })
		far.close()
		k.ended <- err
	}()
	k.s = attach(Config{Start: start, Events: ev}, ours)
	t.Cleanup(func() {
		k.s.hangUp()
		k.s.wg.Wait()
		<-k.ended
		r.Close()
		w.Close()
	})
	return k
}

func authority(t *testing.T) *pki.Authority {
	ca, err := pki.NewAuthority(pki.NewClusterID(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 10 s: " + what)
		}
	}
}

func TestTheDaemonsOrdersReachTheVolumeServer(t *testing.T) {
	ca := authority(t)
	dir, _ := member(t, ca, "a")
	k := newRig(t, Start{Service: "db", PKI: dir, Cluster: ca.ClusterID}, Events{})
	ready, err := k.s.begin(soon(t))
	if err != nil || ready.Pos.Seq != 5 {
		t.Fatalf("%+v, %v", ready, err)
	}
	k.s.SetFacts(Facts{Epoch: 9})
	within(t, "the facts are there", func() bool { k.twin.mu.Lock(); defer k.twin.mu.Unlock(); return k.twin.facts.Epoch == 9 })
	if led, err := k.s.Lead(soon(t), 9); err != nil || led.Applied != 7 {
		t.Errorf("%+v, %v", led, err)
	}
	done := make(chan error, 1)
	go func() { done <- k.s.Drain(soon(t)) }()
	if st, err := k.s.Status(soon(t)); err != nil || st.Role != "standby" {
		t.Errorf("status while a drain is under way: %+v, %v", st, err)
	}
	close(k.twin.drain)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := k.s.Order(soon(t), Order{What: "verify"}); err == nil || err.Error() != "refused: verify" {
		t.Errorf("%v", err)
	}
	b, err := k.s.Order(soon(t), Order{What: "big"})
	var text string
	if err != nil || json.Unmarshal(b, &text) != nil || len(text) != 300<<10 {
		t.Errorf("a long answer: %d bytes, %v", len(b), err)
	}
	if err := k.s.Fence(soon(t), "over"); err != nil {
		t.Error(err)
	}
	within(t, "fenced, then aborted", func() bool { return strings.HasSuffix(k.twin.heard(), "fence:over abort") })
	if _, err := k.s.Lead(soon(t), 10); !errors.Is(err, ErrGone) {
		t.Errorf("a request after the end: %v", err)
	}
}

func TestAVolumeServerFencesItselfWhenItsDaemonIsGone(t *testing.T) {
	ca := authority(t)
	dir, _ := member(t, ca, "a")
	k := newRig(t, Start{Service: "db", PKI: dir, Cluster: ca.ClusterID}, Events{})
	if _, err := k.s.begin(soon(t)); err != nil {
		t.Fatal(err)
	}
	k.s.hangUp()
	within(t, "it fences itself", func() bool { return k.twin.heard() == "fence:the daemon has ended abort" })
}

func TestACopyThatCannotBeOpenedIsSaid(t *testing.T) {
	ca := authority(t)
	dir, _ := member(t, ca, "a")
	k := newRig(t, Start{Service: "db", PKI: dir, Cluster: ca.ClusterID}, Events{})
	k.twin.refuse = errors.New("/srv/.hanode-db: the header is another cluster's")
	if _, err := k.s.begin(soon(t)); err == nil || err.Error() != k.twin.refuse.Error() {
		t.Errorf("%v", err)
	}
}

// tcpPair is two ends of a TCP connection.
func tcpPair(t *testing.T) (dialled, accepted *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return d.(*net.TCPConn), a.(*net.TCPConn)
}

func TestTwoVolumeServersMeetOverAPassedConnection(t *testing.T) {
	ca := authority(t)
	dirA, idA := member(t, ca, "a")
	dirB, idB := member(t, ca, "b")
	dirC, _ := member(t, ca, "c") // of the cluster, and no node of the service
	facts := Facts{Peers: []Peer{{Run{1, 1}, idA, "a"}, {Run{2, 1}, idB, "b"}}}
	closed := make(chan uint64, 4)
	begin := func(dir string, self cluster.MemberNo) *rig {
		k := newRig(t, Start{Service: "db", No: 7, PKI: dir, Cluster: ca.ClusterID, Self: Run{self, 1}, Facts: facts}, Events{Closed: func(id uint64) { closed <- id }})
		if _, err := k.s.begin(soon(t)); err != nil {
			t.Fatal(err)
		}
		return k
	}
	a, b, c := begin(dirA, 1), begin(dirB, 2), begin(dirC, 3)
	d, acc := tcpPair(t)
	if err := a.s.Give(Conn{ID: 42, Peer: 2}, d); err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 10) // the daemon has read some of it
	if _, err := io.ReadFull(acc, first); err != nil {
		t.Fatal(err)
	}
	if err := b.s.Give(Conn{Incoming: true, First: first}, acc); err != nil {
		t.Fatal(err)
	}
	if p := <-a.twin.peers; p != 2 {
		t.Errorf("a met member %d", p)
	}
	if p := <-b.twin.peers; p != 1 {
		t.Errorf("b met member %d", p)
	}
	ca1, cb := <-a.twin.conns, <-b.twin.conns
	go ca1.Write([]byte("hello"))
	got := make([]byte, 5)
	if _, err := io.ReadFull(cb, got); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	a.s.Down(42)
	if _, err := io.ReadFull(ca1, got); err == nil {
		t.Error("a connection whose path failed goes on")
	}
	ca1.Close()
	if id := <-closed; id != 42 {
		t.Errorf("the end of connection %d was told, want 42", id)
	}
	cb.Close()

	d, acc = tcpPair(t)
	if err := c.s.Give(Conn{ID: 43, Peer: 2}, d); err != nil {
		t.Fatal(err)
	}
	if err := b.s.Give(Conn{Incoming: true}, acc); err != nil {
		t.Fatal(err)
	}
	within(t, "a stranger is refused", func() bool {
		st, err := b.s.Status(soon(t))
		return err == nil && st.Refused == 1
	})
	if string(link.Stream) != "stream" {
		t.Error("the channel has another name")
	}
}

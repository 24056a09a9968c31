package link_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/internal/pki"
)

// office is the side of a cluster that lets members in: one token, as the replicated log would keep it.
type office struct {
	w     *world
	host  *host
	token pki.Token

	mu   sync.Mutex
	used bool
	last link.JoinRequest
}

func (w *world) office(h *host, role cluster.Role, name string) *office {
	w.t.Helper()
	tok, err := w.ca.NewToken(h.e.Addrs(), role, name, w.now().Add(10*time.Minute))
	if err != nil {
		w.t.Fatal(err)
	}
	o := &office{w: w, host: h, token: tok}
	h.ServeJoin(&link.JoinHandler{Authorize: o.authorize, Admit: o.admit})
	return o
}

func (o *office) authorize(_ context.Context, r link.JoinRequest) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = r
	if err := o.token.Record().Check(r.Secret, r.Role, r.Name, o.w.now()); err != nil || o.used {
		return link.ErrBadToken
	}
	if r.Name == "taken" {
		return errors.New("the name taken is in use: choose another with --name")
	}
	return nil
}

func (o *office) admit(_ context.Context, r link.JoinRequest) (link.JoinAnswer, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.used = true
	cert, err := o.w.ca.Sign(r.CSR, pki.Subject{ClusterID: o.w.ca.ClusterID, Role: r.Role, Name: r.Name, ID: r.ID}, o.w.now())
	if err != nil {
		return link.JoinAnswer{}, err
	}
	return link.JoinAnswer{Cert: cert.Raw, CAs: [][]byte{o.w.ca.Cert.Raw}, Data: json.RawMessage(`{"members":["a"]}`)}, nil
}

// target is what the wiring makes of a token.
func target(t pki.Token, now func() time.Time) link.JoinTarget {
	return link.JoinTarget{ClusterID: t.ClusterID, Addrs: t.Addrs, VerifyServer: func(chain []*x509.Certificate) error {
		_, err := t.VerifyServer(chain, now())
		return err
	}}
}

func (o *office) request(p *person) link.JoinRequest {
	o.w.t.Helper()
	csr, err := pki.NewRequest(p.key, pki.Subject{ClusterID: o.w.ca.ClusterID, Role: p.role, Name: p.name, ID: p.id})
	if err != nil {
		o.w.t.Fatal(err)
	}
	return link.JoinRequest{Secret: o.token.Secret[:], Name: p.name, Role: p.role, ID: p.id, CSR: csr, Data: json.RawMessage(`{"release":"1.0"}`)}
}

func newcomer(name string, role cluster.Role) *person {
	return &person{name: name, role: role, id: pki.NewNodeID(), key: pki.NewKey()}
}

func (w *world) join(tok pki.Token, r link.JoinRequest, listen []netip.AddrPort) (link.JoinAnswer, error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	return link.RunJoin(ctx, link.Config{Listen: listen, Wall: w.now, Limits: w.limits, Log: testLog(w.t, r.Name)}, target(tok, w.now), r)
}

func TestATokenMakesAMember(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.person("a", cluster.RoleNode), twoLinks)
	o := w.office(a, cluster.RoleNode, "b")
	b := newcomer("b", cluster.RoleNode)
	tok, err := pki.ParseToken(o.token.String())
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	ans, err := w.join(tok, o.request(b), twoLinks)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("joined in %v", time.Since(start))
	cert, err := x509.ParseCertificate(ans.Cert)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(ans.CAs[0])
	if err != nil {
		t.Fatal(err)
	}
	if b.cert, err = pki.NewIdentity(cert, b.key, []*x509.Certificate{ca}); err != nil {
		t.Fatal(err)
	}
	if string(ans.Data) != `{"members":["a"]}` || string(o.last.Data) != `{"release":"1.0"}` || len(o.last.Addrs) != 2 {
		t.Errorf("answer %s, request %+v", ans.Data, o.last)
	}
	hb := w.start(b, twoLinks)
	introduce(a, hb)
	keyedBoth(t, a, hb)
	if _, err := w.join(tok, o.request(newcomer("b", cluster.RoleNode)), oneLink); !errors.Is(err, link.ErrBadToken) {
		t.Errorf("the token was used twice: %v", err)
	}
}

func TestAJoinIsRefusedWithItsReason(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.person("a", cluster.RoleNode), oneLink)
	o := w.office(a, cluster.RoleNode, "")
	good := o.request(newcomer("b", cluster.RoleNode))

	taken := o.request(newcomer("taken", cluster.RoleNode))
	if _, err := w.join(o.token, taken, oneLink); err == nil || !strings.Contains(err.Error(), "choose another") {
		t.Errorf("a taken name: %v", err)
	}
	witness := o.request(newcomer("w", cluster.RoleWitness))
	if _, err := w.join(o.token, witness, oneLink); !errors.Is(err, link.ErrBadToken) {
		t.Errorf("a witness with a node's token: %v", err)
	}
	skewed := link.Config{Listen: oneLink, Wall: func() time.Time { return w.now().Add(-3 * time.Hour) }}
	if _, err := link.RunJoin(t.Context(), skewed, target(o.token, w.now), good); err == nil || !strings.Contains(err.Error(), "clock") {
		t.Errorf("a clock three hours late: %v", err)
	}
	other := newWorld(t)
	wrong := o.token
	wrong.CA = other.ca.Fingerprint()
	if _, err := w.join(wrong, good, oneLink); err == nil || !strings.Contains(err.Error(), "authority") {
		t.Errorf("a token of another authority: %v", err)
	}
	wrong = o.token
	wrong.ClusterID = other.ca.ClusterID
	if _, err := w.join(wrong, good, oneLink); err == nil || !strings.Contains(err.Error(), "does not serve cluster") {
		t.Errorf("a token of another cluster: %v", err)
	}
	if _, err := w.join(o.token, good, []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:0")}); err == nil || !strings.Contains(err.Error(), "--advertise") {
		t.Errorf("no address to be reached at: %v", err)
	}
	bad := good
	bad.Data = json.RawMessage(`"` + strings.Repeat("x", 70<<10) + `"`)
	if _, err := w.join(o.token, bad, oneLink); err == nil {
		t.Error("an oversized request was sent")
	}
	a.ServeJoin(nil)
	if _, err := w.join(o.token, good, oneLink); err == nil {
		t.Error("joined while nobody serves joins")
	}
}

func TestGuessingTokensLocksTheSourceOut(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.person("a", cluster.RoleNode), oneLink)
	o := w.office(a, cluster.RoleNode, "")
	r := o.request(newcomer("b", cluster.RoleNode))
	r.Secret = []byte("guess")
	for range 5 {
		if _, err := w.join(o.token, r, oneLink); !errors.Is(err, link.ErrBadToken) {
			t.Fatal(err)
		}
	}
	r.Secret = o.token.Secret[:]
	if _, err := w.join(o.token, r, oneLink); err == nil || !strings.Contains(err.Error(), "locked out") {
		t.Errorf("the right token after five wrong ones: %v", err)
	}
	if n := a.e.Counters().JoinGuesses; n != 5 {
		t.Errorf("%d guesses counted", n)
	}
}

func TestAPortThatDoesNotAnswerIsNamedWithItsDirection(t *testing.T) {
	w := newWorld(t)
	w.limits.ProbeTimeout = 400 * time.Millisecond
	a := w.start(w.person("a", cluster.RoleNode), oneLink)
	o := w.office(a, cluster.RoleNode, "")

	// The joiner listens at one address and advertises it through a relay, as through a firewall.
	try := func(tcp, udp bool) error {
		t.Helper()
		e, err := link.Listen(link.Config{Listen: oneLink, Wall: w.now, Limits: w.limits})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx) }()
		defer func() { cancel(); <-done }()
		fw := newRelay(t, e.Addrs()[0])
		fw.refuse(tcp, udp)
		r := o.request(newcomer("b", cluster.RoleNode))
		r.Addrs = []netip.AddrPort{fw.addr}
		_, err = e.Join(ctx, target(o.token, w.now), r)
		return err
	}
	if err := try(false, false); err != nil {
		t.Errorf("through an open firewall: %v", err)
	}
	o.used = false
	if err := try(false, true); err == nil || !strings.Contains(err.Error(), "udp from a to b at ") || strings.Contains(err.Error(), "tcp from") {
		t.Errorf("udp towards the joiner closed: %v", err)
	}
	if err := try(true, false); err == nil || !strings.Contains(err.Error(), "tcp from a to b at ") || strings.Contains(err.Error(), "udp from") {
		t.Errorf("tcp towards the joiner closed: %v", err)
	}
	if o.used {
		t.Error("a join that failed used the token up")
	}

	// The member advertises an address whose UDP does not come through.
	closed := newRelay(t, a.e.Addrs()[0])
	closed.refuse(false, true)
	c := w.startAs(w.person("c", cluster.RoleNode), oneLink, link.ClusterIdentity{Incarnation: 1, Self: link.Peer{Addrs: []netip.AddrPort{closed.addr}}})
	o2 := w.office(c, cluster.RoleNode, "")
	if _, err := w.join(o2.token, o2.request(newcomer("b", cluster.RoleNode)), oneLink); err == nil || !strings.Contains(err.Error(), "udp from b to c at "+closed.addr.String()) {
		t.Errorf("udp towards the member closed: %v", err)
	}
}

func TestAMemberThatCannotSignSendsTheJoinerOn(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.person("a", cluster.RoleNode), oneLink)
	o := w.office(a, cluster.RoleNode, "")
	c := w.start(w.person("c", cluster.RoleNode), oneLink)
	c.ServeJoin(&link.JoinHandler{Authorize: func(context.Context, link.JoinRequest) error {
		return &link.TryElsewhere{Addrs: a.e.Addrs()}
	}})
	tok := o.token
	tok.Addrs = append([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}, c.e.Addrs()...)
	if _, err := w.join(tok, o.request(newcomer("b", cluster.RoleNode)), oneLink); err != nil {
		t.Error(err)
	}
}

func TestAWitnessJoinsASecondClusterWhileItServesOne(t *testing.T) {
	w1, w2 := newWorld(t), newWorld(t)
	wit := w1.start(w1.person("w", cluster.RoleWitness), oneLink)
	a := w2.start(w2.person("a", cluster.RoleNode), oneLink)
	o := w2.office(a, cluster.RoleWitness, "w")
	p := newcomer("w", cluster.RoleWitness)
	ans, err := wit.e.Join(t.Context(), target(o.token, w2.now), o.request(p))
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(ans.Cert)
	if p.cert, err = pki.NewIdentity(cert, p.key, []*x509.Certificate{w2.ca.Cert}); err != nil {
		t.Fatal(err)
	}
	wit2 := w2.add(wit.e, p, link.ClusterIdentity{Incarnation: 1})
	introduce(a, wit2)
	keyedBoth(t, a, wit2)
}

package member

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/cluster/raft"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/pki"
)

// DefaultPort is the one port between members, tcp and udp.
const DefaultPort = 7400

// InitOptions make the first member of a new cluster.
type InitOptions struct {
	Dir       string
	Name      string
	Cluster   string
	Site      string
	Advertise string   // IP or IP:PORT
	Links     []string // further addresses, IP or IP:PORT
}

// Addresses reads an advertised address and the further links; a port that is not given is that of the first, or 7400.
func Addresses(advertise string, links []string) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	port := uint16(DefaultPort)
	for i, s := range append([]string{advertise}, links...) {
		what := "--advertise"
		if i > 0 {
			what = "--link"
		}
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			a, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("%s %q: want the IP address, or IP:PORT, by which the other members reach this machine", what, s)
			}
			ap = netip.AddrPortFrom(a, port)
		}
		if a := ap.Addr(); a.IsUnspecified() || a.IsMulticast() || ap.Port() == 0 {
			return nil, fmt.Errorf("%s %s: want an address of this machine that the other members can reach", what, s)
		}
		port = ap.Port()
		out = append(out, ap)
	}
	return out, nil
}

// Init makes a new cluster's first member: its authority, identity and log. It starts nothing.
func Init(o InitOptions) (*Identity, error) {
	addrs, err := Addresses(o.Advertise, o.Links)
	if err != nil {
		return nil, err
	}
	if err := pki.CheckName(o.Name); err != nil {
		return nil, err
	}
	if err := CheckFresh(o.Dir); err != nil {
		return nil, err
	}
	now := time.Now()
	clusterID := pki.NewClusterID()
	ca, err := pki.NewAuthority(clusterID, now)
	if err != nil {
		return nil, err
	}
	node := pki.NewNodeID()
	key := pki.NewKey()
	sub := pki.Subject{ClusterID: clusterID, Role: cluster.RoleNode, Name: o.Name, ID: node}
	csr, err := pki.NewRequest(key, sub)
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(csr, sub, now)
	if err != nil {
		return nil, err
	}
	id, err := pki.NewIdentity(cert, key, []*x509.Certificate{ca.Cert})
	if err != nil {
		return nil, err
	}
	ident := Identity{ClusterID: clusterID, Cluster: o.Cluster, Name: o.Name, Role: pki.RoleWord(cluster.RoleNode), Site: o.Site, NodeID: node.String(),
		Advertise: addrStrings(addrs), First: true}
	if err := CreateDir(o.Dir, ident, id, ca, nil); err != nil {
		return nil, err
	}
	return &ident, raft.Bootstrap(filepath.Join(o.Dir, "raft"), clusterID, cluster.ServerID(o.Name, node))
}

func addrStrings(in []netip.AddrPort) []string {
	var out []string
	for _, a := range in {
		out = append(out, a.String())
	}
	return out
}

// JoinOptions make this machine a member of an existing cluster.
type JoinOptions struct {
	Dir       string
	Token     string
	Name      string
	Role      cluster.Role
	Site      string
	Advertise string
	Links     []string
	Log       *slog.Logger
}

// joinExtra and joinAdmitted are what members tell each other at a join beside what the link needs.
type joinExtra struct {
	Site string `json:"site"`
}

type joinAdmitted struct {
	Cluster string `json:"cluster"`
	Peers   []Peer `json:"peers"`
	CAKey   []byte `json:"ca_key,omitempty"` // for nodes, so that each of them can make tokens
}

// Join asks the cluster that the token names to take this machine in, and makes the state directory.
func Join(ctx context.Context, o JoinOptions) (*Identity, error) {
	addrs, err := Addresses(o.Advertise, o.Links)
	if err != nil {
		return nil, err
	}
	t, err := pki.ParseToken(o.Token)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(pki.CheckName(o.Name), CheckFresh(o.Dir)); err != nil {
		return nil, err
	}
	if t.Role != o.Role {
		return nil, fmt.Errorf("this token is for a %s: make one with hanode token create --role %s", pki.RoleWord(t.Role), pki.RoleWord(o.Role))
	}
	node, key := pki.NewNodeID(), pki.NewKey()
	sub := pki.Subject{ClusterID: t.ClusterID, Role: o.Role, Name: o.Name, ID: node}
	csr, err := pki.NewRequest(key, sub)
	if err != nil {
		return nil, err
	}
	extra, _ := json.Marshal(joinExtra{Site: o.Site})
	target := link.JoinTarget{ClusterID: t.ClusterID, Addrs: t.Addrs, VerifyServer: func(chain []*x509.Certificate) error {
		_, err := t.VerifyServer(chain, time.Now())
		return err
	}}
	a, err := link.RunJoin(ctx, link.Config{Listen: addrs, Log: o.Log}, target, link.JoinRequest{Secret: t.Secret[:], Name: o.Name, Role: o.Role, ID: node,
		Addrs: addrs, CSR: csr, Data: extra})
	if err != nil {
		return nil, fmt.Errorf("join as %s: %w", o.Name, err)
	}
	return finishJoin(o, sub, key, a, addrs)
}

func finishJoin(o JoinOptions, sub pki.Subject, key cryptoSigner, a link.JoinAnswer, addrs []netip.AddrPort) (*Identity, error) {
	cert, err := x509.ParseCertificate(a.Cert)
	if err != nil {
		return nil, fmt.Errorf("the certificate that the cluster made: %w", err)
	}
	var cas []*x509.Certificate
	for _, der := range a.CAs {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the cluster's authority: %w", err)
		}
		cas = append(cas, c)
	}
	id, err := pki.NewIdentity(cert, key, cas)
	if err != nil {
		return nil, err
	}
	var ad joinAdmitted
	if err := json.Unmarshal(a.Data, &ad); err != nil {
		return nil, fmt.Errorf("the cluster's answer: %w", err)
	}
	var ca *pki.Authority
	if len(ad.CAKey) > 0 {
		if ca, err = pki.ParseAuthority(sub.ClusterID, ad.CAKey, cas[0]); err != nil {
			return nil, err
		}
	}
	ident := Identity{ClusterID: sub.ClusterID, Cluster: ad.Cluster, Name: sub.Name, Role: pki.RoleWord(sub.Role), Site: o.Site, NodeID: sub.ID.String(), Advertise: addrStrings(addrs)}
	return &ident, CreateDir(o.Dir, ident, id, ca, ad.Peers)
}

// found makes the first commands of a new cluster, once, on its first member.
func (m *Member) found(ctx context.Context) error {
	addrs := m.ident.Advertise
	from, err := m.restored()
	if err != nil {
		return fmt.Errorf("what is to be taken over from the backup: %w", err)
	}
	o, err := m.Commit(ctx, &state.Command{Who: "init", Init: &state.Init{ClusterID: m.ident.ClusterID, Name: m.ident.Cluster, GossipKey: newGossipKey(), Level: state.FeatureLevel, Restored: from}})
	if err != nil || o.Err() != nil {
		return errors.Join(err, o.Err())
	}
	o, err = m.Commit(ctx, &state.Command{Who: "init", MemberAdd: &state.MemberAdd{Member: state.Member{ID: m.id, Name: m.ident.Name, Role: cluster.RoleNode,
		Site: m.ident.Site, Addrs: addrs, Version: m.cfg.Version, Serial: pki.Serial(m.cfg.Dir.PKI.Cert)}}})
	if err := errors.Join(err, o.Err()); err != nil {
		return err
	}
	m.founded()
	return nil
}

// MakeToken invites one new member.
func (m *Member) MakeToken(ctx context.Context, role cluster.Role, name, replace string, ttl time.Duration, who string) (pki.Token, error) {
	ca := m.cfg.Dir.CA
	if ca == nil {
		return pki.Token{}, errors.New("this member cannot sign: make the token on a node that holds the cluster's authority")
	}
	if ttl <= 0 || ttl > 7*24*time.Hour {
		return pki.Token{}, fmt.Errorf("ttl %v: choose up to 168h", ttl)
	}
	addrs, err := m.ident.Addrs()
	if err != nil {
		return pki.Token{}, err
	}
	if err := m.WaitJoined(ctx); err != nil {
		return pki.Token{}, err
	}
	_ = m.On(func(c *core.Core) {
		for i := range c.State().Members {
			if p := &c.State().Members[i]; !p.Removed && p.Role == cluster.RoleNode && p.ID != m.id {
				more, _ := parseAddrs(p.Addrs)
				addrs = append(addrs, more...)
			}
		}
	})
	if len(addrs) > 8 {
		addrs = addrs[:8]
	}
	t, err := ca.NewToken(addrs, role, name, time.Now().Add(ttl))
	if err != nil {
		return t, err
	}
	h := t.Record().Hash
	o, err := m.Commit(ctx, &state.Command{Who: who, TokenCreate: &state.Token{Hash: h[:], Role: role, Name: name, Until: state.Millis(t.Expires), Replace: replace, Who: who}})
	return t, errors.Join(err, o.Err())
}

// WaitJoined returns when the log has admitted this run.
func (m *Member) WaitJoined(ctx context.Context) error {
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		joined := false
		if err := m.On(func(c *core.Core) { joined = c.Joined() }); err != nil {
			return err
		}
		if joined {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return errors.New("this member is not admitted to the group yet: it needs a quorum; see hanode status")
		}
	}
}

// serveJoin lets new members join through this one, if it can sign.
func (m *Member) serveJoin() {
	if m.cfg.Dir.CA == nil {
		return
	}
	m.mesh.ServeJoin(&link.JoinHandler{Authorize: m.authorize, Admit: m.admit})
}

func (m *Member) authorize(ctx context.Context, r link.JoinRequest) error {
	h := pki.HashSecret(r.Secret)
	err := link.ErrBadToken
	e := m.On(func(c *core.Core) {
		st := c.State()
		for i := range st.Tokens {
			t := &st.Tokens[i]
			if !bytes.Equal(t.Hash, h[:]) {
				continue
			}
			rec := pki.TokenRecord{Hash: h, Role: t.Role, Name: t.Name, Expires: time.UnixMilli(t.Until)}
			if again := st.MemberByID(r.ID); !t.Used || (again != nil && again.Name == r.Name) {
				err = rec.Check(r.Secret, r.Role, r.Name, time.Now())
			}
			if have := st.MemberByName(r.Name); err == nil && have != nil && have.ID != r.ID && have.Name != t.Replace {
				err = fmt.Errorf("a member named %s exists: choose another --name, or make the token with --replace %s", r.Name, r.Name)
			}
		}
	})
	if e != nil {
		return e
	}
	if errors.Is(err, pki.ErrBadToken) {
		m.log.Warn("a join was refused", "from", r.From, "name", r.Name, "why", err)
		return link.ErrBadToken
	}
	return err
}

func (m *Member) admit(ctx context.Context, r link.JoinRequest) (link.JoinAnswer, error) {
	ca := m.cfg.Dir.CA
	cert, err := ca.Sign(r.CSR, pki.Subject{ClusterID: m.ident.ClusterID, Role: r.Role, Name: r.Name, ID: r.ID}, time.Now())
	if err != nil {
		return link.JoinAnswer{}, err
	}
	var extra joinExtra
	if err := json.Unmarshal(r.Data, &extra); err != nil {
		return link.JoinAnswer{}, fmt.Errorf("the joiner's description: %w", err)
	}
	if extra.Site == "" {
		extra.Site = "default"
	}
	h := pki.HashSecret(r.Secret)
	known := false
	_ = m.On(func(c *core.Core) { known = c.State().MemberByID(r.ID) != nil })
	if !known {
		o, err := m.Commit(ctx, &state.Command{Who: "join", MemberAdd: &state.MemberAdd{TokenHash: h[:], Member: state.Member{ID: r.ID, Name: r.Name, Role: r.Role,
			Site: extra.Site, Addrs: addrStrings(r.Addrs), Serial: pki.Serial(cert)}}})
		if err := errors.Join(err, o.Err()); err != nil {
			return link.JoinAnswer{}, err
		}
	}
	ad := joinAdmitted{Cluster: m.ident.Cluster, Peers: []Peer{{ID: m.id.String(), Name: m.ident.Name, Role: m.ident.Role, Addrs: m.ident.Advertise}}}
	_ = m.On(func(c *core.Core) {
		for i := range c.State().Members {
			if p := &c.State().Members[i]; !p.Removed && p.ID != m.id && p.ID != r.ID {
				ad.Peers = append(ad.Peers, Peer{ID: p.ID.String(), Name: p.Name, Role: pki.RoleWord(p.Role), Addrs: p.Addrs})
			}
		}
	})
	if r.Role == cluster.RoleNode {
		if ad.CAKey, err = ca.KeyPEM(); err != nil {
			return link.JoinAnswer{}, err
		}
	}
	data, err := json.Marshal(ad)
	a := link.JoinAnswer{Cert: cert.Raw, Data: data}
	for _, c := range m.cfg.Dir.PKI.CAs {
		a.CAs = append(a.CAs, c.Raw)
	}
	return a, err
}

// Fingerprint is that of the authority in a state directory.
func Fingerprint(dir string) (string, error) {
	id, err := pki.LoadIdentity(dir)
	if err != nil {
		return "", err
	}
	return pki.FingerprintOf(id.CAs[0]).String(), nil
}

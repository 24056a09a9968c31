package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
)

var day0 = time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority(NewClusterID(), day0)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func member(t *testing.T, a *Authority, name string, role cluster.Role) *Identity {
	t.Helper()
	key := NewKey()
	s := Subject{a.ClusterID, role, name, NewNodeID()}
	req, err := NewRequest(key, s)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Sign(req, s, day0)
	if err != nil {
		t.Fatal(err)
	}
	id, err := NewIdentity(cert, key, []*x509.Certificate{a.Cert})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func verifier(a *Authority, now time.Time) *Verifier {
	return &Verifier{ClusterID: a.ClusterID, Roots: []*x509.Certificate{a.Cert}, Now: func() time.Time { return now }}
}

func TestACertificateSaysWhomItSpeaksForUntilItExpires(t *testing.T) {
	a := authority(t)
	id := member(t, a, "a", cluster.RoleNode)
	chain := []*x509.Certificate{id.Cert, a.Cert}

	got, err := verifier(a, day0.Add(89*24*time.Hour)).Verify(chain, cluster.RoleNode)
	if err != nil || got != id.Subject {
		t.Fatalf("Verify = %+v, %v; want %+v", got, err, id.Subject)
	}
	if _, err := verifier(a, day0.Add(-30*time.Minute)).Verify(chain); err != nil {
		t.Errorf("a verifier half an hour behind: %v", err)
	}
	for _, at := range []time.Duration{91 * 24 * time.Hour, -2 * time.Hour} {
		if _, err := verifier(a, day0.Add(at)).Verify(chain); !errors.Is(err, ErrExpired) {
			t.Errorf("at day0%+v: %v, want ErrExpired", at, err)
		}
	}
	if at := RenewAt(id.Cert); at.Before(day0.Add(59*24*time.Hour)) || at.After(day0.Add(60*24*time.Hour)) {
		t.Errorf("renewed at %v, want two thirds of 90 days", at)
	}
	if d := DaysLeft(id.Cert, day0.Add(60*24*time.Hour)); d != 30 {
		t.Errorf("%d days left after 60 of 90", d)
	}
}

func TestWhatIsNotACertificateOfThisClusterIsRefused(t *testing.T) {
	a, other := authority(t), authority(t)
	id := member(t, a, "a", cluster.RoleNode)
	foreign := member(t, other, "a", cluster.RoleNode)
	witness := member(t, a, "w", cluster.RoleWitness)
	operator := member(t, a, "alice", RoleOperator)

	// A member that signs for others: its certificate is no authority.
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), URIs: []*url.URL{id.Subject.URI()}, NotBefore: day0, NotAfter: day0.Add(time.Hour),
		Subject: pkix.Name{CommonName: "forged"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, id.Cert, id.Key.Public(), id.Key)
	if err != nil {
		t.Fatal(err)
	}
	forged, _ := x509.ParseCertificate(der)

	v := verifier(a, day0)
	v.Revoked = func(serial string) bool { return serial == Serial(witness.Cert) }
	for name, chain := range map[string][]*x509.Certificate{
		"nothing":              nil,
		"foreign authority":    {foreign.Cert, other.Cert},
		"foreign, ours behind": {foreign.Cert, a.Cert},
		"signed by a member":   {forged, id.Cert, a.Cert},
		"the authority itself": {a.Cert},
		"revoked":              {witness.Cert},
		"wrong role":           {operator.Cert},
	} {
		if s, err := v.Verify(chain, cluster.RoleNode, cluster.RoleWitness); err == nil {
			t.Errorf("%s: accepted as %+v", name, s)
		}
	}
	fork := verifier(a, day0) // the cluster after a recover: same authority, new id
	fork.ClusterID = NewClusterID()
	if _, err := fork.Verify([]*x509.Certificate{id.Cert}); err == nil {
		t.Error("a member of the cluster before its fork was accepted")
	}
	if _, err := v.Verify([]*x509.Certificate{witness.Cert}); !errors.Is(err, ErrRevoked) {
		t.Errorf("revoked: %v", err)
	}
}

func TestTheAuthoritySignsOnlyWhatWasAuthorised(t *testing.T) {
	a := authority(t)
	key := NewKey()
	asked := Subject{a.ClusterID, cluster.RoleNode, "b", NewNodeID()}
	req, _ := NewRequest(key, asked)

	wrong := asked
	wrong.Name = "c"
	if _, err := a.Sign(req, wrong, day0); err == nil {
		t.Error("signed for c what asks for b")
	}
	broken := append([]byte(nil), req...)
	broken[len(broken)-1] ^= 1
	if _, err := a.Sign(broken, asked, day0); err == nil {
		t.Error("signed a request whose signature is wrong")
	}
	if _, err := a.Sign(make([]byte, maxRequest+1), asked, day0); err == nil {
		t.Error("read an oversized request")
	}
	weak, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if req, err := NewRequest(weak, asked); err == nil {
		if _, err := a.Sign(req, asked, day0); err == nil {
			t.Error("signed a P-224 key")
		}
	}
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	req, _ = NewRequest(p256, asked)
	if _, err := a.Sign(req, asked, day0); err != nil {
		t.Errorf("P-256: %v", err)
	}
}

func TestSecretsThatOthersCanReadAreRefused(t *testing.T) {
	dir := t.TempDir()
	a := authority(t)
	id := member(t, a, "a", cluster.RoleNode)
	if err := errors.Join(a.Save(dir), id.Save(dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadAuthority(dir, a.ClusterID); err != nil {
		t.Fatal(err)
	}
	got, err := LoadIdentity(dir)
	if err != nil || got.Subject != id.Subject {
		t.Fatalf("LoadIdentity = %+v, %v", got, err)
	}
	for _, name := range []string{CAKeyFile, KeyFile, CAFile} {
		path := filepath.Join(dir, name)
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
		_, errA := LoadAuthority(dir, a.ClusterID)
		_, errI := LoadIdentity(dir)
		if err := errors.Join(errA, errI); !errors.Is(err, ErrReadableByOthers) || !strings.Contains(err.Error(), "0600") {
			t.Errorf("%s with mode 0640: %v", name, err)
		}
		os.Chmod(path, 0o600)
	}
	link := filepath.Join(dir, "link")
	os.Symlink(filepath.Join(dir, KeyFile), link)
	if _, err := ReadSecret(link); err == nil {
		t.Error("followed a symbolic link to a secret")
	}
	os.Remove(filepath.Join(dir, CAKeyFile))
	if _, err := LoadAuthority(dir, a.ClusterID); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without ca.key: %v", err)
	}
}

func TestAnIdentityWhosePartsDoNotBelongTogetherIsRefused(t *testing.T) {
	a, other := authority(t), authority(t)
	id := member(t, a, "a", cluster.RoleNode)
	if _, err := NewIdentity(id.Cert, NewKey(), id.CAs); err == nil {
		t.Error("took another key")
	}
	if _, err := NewIdentity(id.Cert, id.Key, []*x509.Certificate{other.Cert}); err == nil {
		t.Error("took another authority")
	}
	got, err := NewIdentity(id.Cert, id.Key, []*x509.Certificate{other.Cert, a.Cert})
	if err != nil || got.CAs[0] != a.Cert {
		t.Errorf("the authority that signed is not first: %v", err)
	}
}

func TestNamesThatCouldBeReadInTwoWaysAreRefused(t *testing.T) {
	for _, name := range []string{"", "-a", "a/b", "a b", "ä", ".a", strings.Repeat("a", 64)} {
		if CheckName(name) == nil {
			t.Errorf("%q accepted", name)
		}
	}
	id := NewNodeID().String()
	c := NewClusterID()
	for _, s := range []string{
		"hanode://" + c + "/node/a/" + id + "/x", "https://" + c + "/node/a/" + id, "hanode://" + c + "/root/a/" + id,
		"hanode://" + c + "/node/a/" + id + "?q", "hanode://u@" + c + "/node/a/" + id, "hanode://" + c + "/node/%61/" + id,
		"hanode://x/node/a/" + id, "hanode://" + c + "/node/a/" + strings.ToUpper(id) + "F",
	} {
		u, err := url.Parse(s)
		if err != nil {
			continue
		}
		if got, err := ParseURI(u); err == nil {
			t.Errorf("%s read as %+v", s, got)
		}
	}
}

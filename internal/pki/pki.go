// Package pki is the cluster's own certificate authority: it makes the authority at init, signs the certificates of the
// members and operators, tells who a certificate belongs to, and makes the tokens by which a new member joins.
//
// It never touches the network and knows no cluster state: who may join and which serials are revoked is asked of the
// caller. It never reads the clock by itself; validity is judged at a time that the caller gives, so that a jump of the wall
// clock can be answered by the caller (for instance with the time of the last committed log entry).
//
// Why it is safe: the name that counts is one URI in the certificate, hanode://<cluster>/<role>/<name>/<node id>. It is
// written by Authority.Sign alone, from what the caller authorised, never from what the request asks for; Verify takes
// exactly one such URI, of exactly this cluster, signed directly by one of the given roots (no intermediate may sign). A
// certificate that other software of the same machine obtained elsewhere can therefore not be a member.
//
// Callers must keep ca.key and node.key on disks that only root reads: the functions here write them with mode 0600 and
// refuse to read them with any other.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
)

// Lifetimes. A member's certificate is renewed when two thirds of its life are over.
const (
	CALife     = 20 * 365 * 24 * time.Hour
	MemberLife = 90 * 24 * time.Hour

	backdate = time.Hour // members' clocks may differ by this much
)

// RoleOperator is the role of a certificate that may use the remote API and nothing else. It is no member's role.
const RoleOperator cluster.Role = 3

// RoleWord is the role as it stands in certificates and tokens.
func RoleWord(r cluster.Role) string {
	switch r {
	case cluster.RoleNode:
		return "node"
	case cluster.RoleWitness:
		return "witness"
	case RoleOperator:
		return "operator"
	}
	return ""
}

// ParseRole reads what RoleWord writes.
func ParseRole(s string) (cluster.Role, error) {
	for _, r := range []cluster.Role{cluster.RoleNode, cluster.RoleWitness, RoleOperator} {
		if s == RoleWord(r) {
			return r, nil
		}
	}
	return 0, fmt.Errorf("role %q: choose node, witness or operator", s)
}

// NewClusterID makes the identity of a new cluster: 128 random bits as 32 hexadecimal digits.
func NewClusterID() string { return hex.EncodeToString(random(16)) }

// NewNodeID makes the identity of a new member; it belongs to one data store.
func NewNodeID() cluster.NodeID { return cluster.NodeID(random(16)) }

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails, crypto/rand
	return b
}

// Fingerprint is the SHA-256 of a certificate's DER form.
type Fingerprint [32]byte

func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// FingerprintOf computes c's.
func FingerprintOf(c *x509.Certificate) Fingerprint { return sha256.Sum256(c.Raw) }

// Subject is whom a certificate speaks for.
type Subject struct {
	ClusterID string
	Role      cluster.Role
	Name      string
	ID        cluster.NodeID
}

// URI is the form of s in certificates.
func (s Subject) URI() *url.URL {
	return &url.URL{Scheme: "hanode", Host: s.ClusterID, Path: "/" + RoleWord(s.Role) + "/" + s.Name + "/" + s.ID.String()}
}

// ParseURI reads what URI writes and nothing else.
func ParseURI(u *url.URL) (Subject, error) {
	parts := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	if u.Scheme != "hanode" || len(parts) != 3 {
		return Subject{}, fmt.Errorf("name %q in a certificate: want hanode://cluster/role/name/id", u)
	}
	role, err := ParseRole(parts[0])
	if err != nil {
		return Subject{}, fmt.Errorf("name %q in a certificate: %w", u, err)
	}
	id, err := cluster.ParseNodeID(parts[2])
	if err != nil {
		return Subject{}, fmt.Errorf("name %q in a certificate: %w", u, err)
	}
	s := Subject{ClusterID: u.Host, Role: role, Name: parts[1], ID: id}
	if err := s.Check(); err != nil {
		return Subject{}, err
	}
	if s.URI().String() != u.String() {
		return Subject{}, fmt.Errorf("name %q in a certificate: not in its plain form", u)
	}
	return s, nil
}

// Check says what is wrong with s.
func (s Subject) Check() error {
	var errs []error
	if err := CheckName(s.Name); err != nil {
		errs = append(errs, err)
	}
	if len(s.ClusterID) != 32 || strings.Trim(s.ClusterID, "0123456789abcdef") != "" {
		errs = append(errs, fmt.Errorf("cluster id %q: want 32 hexadecimal digits", s.ClusterID))
	}
	if RoleWord(s.Role) == "" {
		errs = append(errs, fmt.Errorf("role %d: choose node, witness or operator", s.Role))
	}
	if s.ID.IsZero() {
		errs = append(errs, errors.New("node id is zero: make one with the data store"))
	}
	return errors.Join(errs...)
}

// CheckName says whether name can be a member's: 1 to 63 letters, digits, '.', '_' and '-', a letter or digit first.
func CheckName(name string) error {
	const alnum = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	if len(name) < 1 || len(name) > 63 || !strings.Contains(alnum, name[:1]) || strings.Trim(name, alnum+"._-") != "" {
		return fmt.Errorf("name %q: want 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit", name)
	}
	return nil
}

// NewKey makes a private key for a member or an authority.
func NewKey() crypto.Signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(fmt.Sprintf("ed25519: %v", err)) // crypto/rand never fails
	}
	return key
}

// maxRequest bounds a certificate signing request; one of ours has less than 400 bytes.
const maxRequest = 8 << 10

// NewRequest is the certificate signing request (PKCS #10, RFC 2986, DER) for s with key.
func NewRequest(key crypto.Signer, s Subject) ([]byte, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: s.Name}, URIs: []*url.URL{s.URI()},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate request of %s: %w", s.Name, err)
	}
	return der, nil
}

// Authority signs for one cluster.
type Authority struct {
	ClusterID string
	Cert      *x509.Certificate
	key       crypto.Signer
}

// NewAuthority makes the authority of a new cluster.
func NewAuthority(clusterID string, now time.Time) (*Authority, error) {
	key := NewKey()
	t := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: "hanode cluster " + clusterID},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(CALife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the new certificate authority: %w", err)
	}
	return &Authority{ClusterID: clusterID, Cert: cert, key: key}, nil
}

// newSerial is 127 random bits: positive and, as RFC 5280 section 4.1.2.2 wants, below 20 octets.
func newSerial() *big.Int {
	b := random(16)
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}

// Fingerprint is the authority's.
func (a *Authority) Fingerprint() Fingerprint { return FingerprintOf(a.Cert) }

// Sign makes a certificate for s, whom the caller has authorised, out of a request. The request must prove that its maker
// holds the key and must ask for s itself; nothing else in it is used.
func (a *Authority) Sign(request []byte, s Subject, now time.Time) (*x509.Certificate, error) {
	if s.ClusterID != a.ClusterID {
		return nil, fmt.Errorf("sign for %s: cluster %s is not this authority's %s", s.Name, s.ClusterID, a.ClusterID)
	}
	if err := s.Check(); err != nil {
		return nil, err
	}
	pub, err := requestKey(request, s)
	if err != nil {
		return nil, fmt.Errorf("certificate request of %s: %w", s.Name, err)
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if s.Role != RoleOperator {
		usage = append(usage, x509.ExtKeyUsageServerAuth)
	}
	t := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: s.Name},
		URIs:                  []*url.URL{s.URI()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(MemberLife),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usage,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.Cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", s.Name, err)
	}
	return x509.ParseCertificate(der)
}

// requestKey checks a request and returns the public key that it proves.
func requestKey(request []byte, s Subject) (crypto.PublicKey, error) {
	if len(request) > maxRequest {
		return nil, fmt.Errorf("%d bytes long, at most %d are read", len(request), maxRequest)
	}
	req, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, err
	}
	if err := req.CheckSignature(); err != nil {
		return nil, err
	}
	if len(req.URIs) != 1 || req.URIs[0].String() != s.URI().String() {
		return nil, fmt.Errorf("asks for %v, authorised is %v", req.URIs, s.URI())
	}
	switch k := req.PublicKey.(type) {
	case ed25519.PublicKey:
		return k, nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return k, nil
		}
	}
	return nil, errors.New("its key is neither Ed25519 nor P-256")
}

// RenewAt is when cert should be renewed: after two thirds of its life.
func RenewAt(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) * 2 / 3)
}

// DaysLeft is how many whole days cert is still valid at now; negative once it has expired.
func DaysLeft(cert *x509.Certificate, now time.Time) int {
	left := cert.NotAfter.Sub(now)
	if left < 0 {
		return -1
	}
	return int(left / (24 * time.Hour))
}

// Serial is the form in which a certificate is named in the revocation list.
func Serial(cert *x509.Certificate) string { return hex.EncodeToString(cert.SerialNumber.Bytes()) }

package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
)

// ErrRevoked is what Verify returns, wrapped, for a certificate whose serial is revoked.
var ErrRevoked = errors.New("certificate is revoked")

// ErrExpired is what Verify returns, wrapped, for a certificate that is not valid at the verifier's time.
var ErrExpired = errors.New("certificate is not valid at this time")

// Verifier tells who is at the other end of a connection. It is safe for concurrent use if its functions are.
type Verifier struct {
	ClusterID string
	Roots     []*x509.Certificate      // the cluster's authority; two while it is being replaced
	Now       func() time.Time         // the time at which certificates must be valid
	Revoked   func(serial string) bool // nil: none is
}

// Verify checks the chain that a peer presented, leaf first, and returns whom it speaks for. If roles are given, its role
// must be one of them.
func (v *Verifier) Verify(chain []*x509.Certificate, roles ...cluster.Role) (Subject, error) {
	if len(chain) == 0 {
		return Subject{}, errors.New("no certificate was presented: join the cluster first")
	}
	leaf := chain[0]
	if err := v.verifyChain(leaf); err != nil {
		return Subject{}, err
	}
	if leaf.IsCA || len(leaf.URIs) != 1 || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 {
		return Subject{}, errors.New("the certificate is not a member's: it must carry one hanode:// name and nothing else")
	}
	s, err := ParseURI(leaf.URIs[0])
	if err != nil {
		return Subject{}, err
	}
	if s.ClusterID != v.ClusterID {
		return Subject{}, fmt.Errorf("certificate of %s belongs to cluster %s, this is cluster %s", s.Name, s.ClusterID, v.ClusterID)
	}
	if v.Revoked != nil && v.Revoked(Serial(leaf)) {
		return Subject{}, fmt.Errorf("certificate %s of %s: %w: it was removed from the cluster, join again", Serial(leaf), s.Name, ErrRevoked)
	}
	if len(roles) > 0 && !slices.Contains(roles, s.Role) {
		return Subject{}, fmt.Errorf("%s is %s %s: not allowed here", s.Name, article(s.Role), RoleWord(s.Role))
	}
	return s, nil
}

func (v *Verifier) verifyChain(leaf *x509.Certificate) error {
	roots := x509.NewCertPool()
	for _, c := range v.Roots {
		roots.AddCert(c)
	}
	now := v.Now()
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: x509.NewCertPool(), // none: only a root itself signs members
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("certificate of %q is valid from %s to %s, and here it is %s: %w: set the clocks, or renew it",
			leaf.Subject.CommonName, leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339),
			now.UTC().Format(time.RFC3339), ErrExpired)
	}
	return fmt.Errorf("certificate of %q is not of this cluster's authority: %w", leaf.Subject.CommonName, err)
}

func article(r cluster.Role) string {
	if r == RoleOperator {
		return "an"
	}
	return "a"
}

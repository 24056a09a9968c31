package pki

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
)

const (
	tokenPrefix  = "hn1-"
	tokenVersion = 1
	secretLen    = 20 // 160 bits
	maxTokenText = 1024
	maxAddrs     = 16
)

// ErrBadToken is the answer to a token that is unknown, used up, expired, or bound to another name or role. It does not say
// which: that is for the log of the member that issued it.
var ErrBadToken = errors.New("the token is not accepted: make a new one with `hanode token create`")

// Token lets one new member join: it names the cluster, where to find it, how to recognise it, and proves the permission.
type Token struct {
	ClusterID string
	CA        Fingerprint
	Addrs     []netip.AddrPort // of members that can be asked
	Role      cluster.Role
	Name      string    // empty: any name that is free
	Expires   time.Time // whole seconds
	Secret    [secretLen]byte
}

// NewToken makes a token with a fresh secret.
func (a *Authority) NewToken(addrs []netip.AddrPort, role cluster.Role, name string, expires time.Time) (Token, error) {
	t := Token{ClusterID: a.ClusterID, CA: a.Fingerprint(), Addrs: addrs, Role: role, Name: name, Expires: expires.Truncate(time.Second)}
	copy(t.Secret[:], random(secretLen))
	return t, t.check()
}

func (t Token) check() error {
	var errs []error
	if len(t.Addrs) < 1 || len(t.Addrs) > maxAddrs {
		errs = append(errs, fmt.Errorf("%d addresses in a token: want 1 to %d", len(t.Addrs), maxAddrs))
	}
	for _, a := range t.Addrs {
		if !a.IsValid() || a.Port() == 0 || a.Addr().Zone() != "" {
			errs = append(errs, fmt.Errorf("address %v in a token: want IP:PORT", a))
		}
	}
	if RoleWord(t.Role) == "" {
		errs = append(errs, fmt.Errorf("role %d in a token: choose node or witness", t.Role))
	}
	if t.Name != "" {
		errs = append(errs, CheckName(t.Name))
	}
	if id, err := hex.DecodeString(t.ClusterID); err != nil || len(id) != 16 || t.ClusterID != strings.ToLower(t.ClusterID) {
		errs = append(errs, fmt.Errorf("cluster id %q in a token: want 32 hexadecimal digits", t.ClusterID))
	}
	if s := t.Expires.Unix(); s < 0 || s > 1<<40 {
		errs = append(errs, fmt.Errorf("expiry %v in a token is out of range", t.Expires))
	}
	return errors.Join(errs...)
}

// String is the one line that an operator carries to the new machine. It is a secret.
func (t Token) String() string {
	id, _ := hex.DecodeString(t.ClusterID)
	b := append([]byte{tokenVersion}, id...)
	b = append(b, t.CA[:]...)
	b = append(b, t.Secret[:]...)
	b = append(b, byte(t.Role))
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.Unix()))
	b = append(b, byte(len(t.Name)))
	b = append(b, t.Name...)
	b = append(b, byte(len(t.Addrs)))
	for _, a := range t.Addrs {
		ip := a.Addr().Unmap().AsSlice()
		b = append(b, byte(len(ip)))
		b = append(b, ip...)
		b = binary.BigEndian.AppendUint16(b, a.Port())
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b)) // a line cut short is told from a wrong one
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads what String writes. The error never repeats the token.
func ParseToken(text string) (Token, error) {
	text = strings.TrimSpace(text)
	if len(text) > maxTokenText || !strings.HasPrefix(text, tokenPrefix) {
		return Token{}, fmt.Errorf("this is not a join token: it starts with %q; copy the whole line that `hanode token create` printed", tokenPrefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text[len(tokenPrefix):])
	if err != nil || len(b) < 5 || crc32.ChecksumIEEE(b[:len(b)-4]) != binary.BigEndian.Uint32(b[len(b)-4:]) {
		return Token{}, errors.New("the join token is damaged: copy the whole line that `hanode token create` printed")
	}
	r := reader{b: b[:len(b)-4]}
	if v := r.byte(); v != tokenVersion {
		return Token{}, fmt.Errorf("the join token has version %d, this program reads %d: use the same release on both machines", v, tokenVersion)
	}
	var t Token
	t.ClusterID = hex.EncodeToString(r.take(16))
	copy(t.CA[:], r.take(len(t.CA)))
	copy(t.Secret[:], r.take(secretLen))
	t.Role = cluster.Role(r.byte())
	t.Expires = time.Unix(int64(r.uint64()), 0)
	t.Name = string(r.take(int(r.byte())))
	for n := min(int(r.byte()), maxAddrs+1); n > 0 && !r.short; n-- {
		ip, _ := netip.AddrFromSlice(r.take(int(r.byte())))
		port := r.take(2)
		if !r.short {
			t.Addrs = append(t.Addrs, netip.AddrPortFrom(ip, binary.BigEndian.Uint16(port)))
		}
	}
	if r.short || len(r.b) != 0 {
		return Token{}, errors.New("the join token is damaged: its parts do not fit its length")
	}
	return t, t.check()
}

// reader takes fields off a buffer; short is set, and zeros returned, when there is not enough.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.short, r.b = true, nil
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) byte() byte     { return r.take(1)[0] }
func (r *reader) uint64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

// TokenHash is the form in which a secret is stored and looked up.
type TokenHash [32]byte

// HashSecret computes it. One SHA-256 is enough for 160 random bits.
func HashSecret(secret []byte) TokenHash {
	return sha256.Sum256(append([]byte("hanode join token\x00"), secret...))
}

// TokenRecord is what the cluster keeps of a token; the secret cannot be computed from it.
type TokenRecord struct {
	Hash    TokenHash
	Role    cluster.Role
	Name    string
	Expires time.Time
}

// Record is what to keep of t.
func (t Token) Record() TokenRecord {
	return TokenRecord{Hash: HashSecret(t.Secret[:]), Role: t.Role, Name: t.Name, Expires: t.Expires}
}

// Check returns ErrBadToken, with the reason for the log, unless the record permits (role, name) at now with secret.
func (r TokenRecord) Check(secret []byte, role cluster.Role, name string, now time.Time) error {
	h := HashSecret(secret)
	switch {
	case subtle.ConstantTimeCompare(h[:], r.Hash[:]) != 1:
		return fmt.Errorf("%w (unknown secret)", ErrBadToken)
	case !now.Before(r.Expires):
		return fmt.Errorf("%w (expired at %s)", ErrBadToken, r.Expires.UTC().Format(time.RFC3339))
	case role != r.Role:
		return fmt.Errorf("%w (made for a %s, not a %s)", ErrBadToken, RoleWord(r.Role), RoleWord(role))
	case r.Name != "" && name != r.Name:
		return fmt.Errorf("%w (made for %s, not %s)", ErrBadToken, r.Name, name)
	}
	return nil
}

// VerifyServer checks that chain, leaf first, is of a member of the token's cluster: one of its certificates must be the
// authority that the token names, and must have signed the first.
func (t Token) VerifyServer(chain []*x509.Certificate, now time.Time) (Subject, error) {
	for _, c := range chain {
		if FingerprintOf(c) == t.CA {
			v := Verifier{ClusterID: t.ClusterID, Roots: []*x509.Certificate{c}, Now: func() time.Time { return now }}
			return v.Verify(chain, cluster.RoleNode, cluster.RoleWitness)
		}
	}
	return Subject{}, errors.New("the member that answered does not know the authority that the token names: " +
		"it is of another cluster, or somebody is between you and it; make a new token")
}

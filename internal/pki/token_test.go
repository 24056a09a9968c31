package pki

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
)

func token(t testing.TB, a *Authority) Token {
	t.Helper()
	tok, err := a.NewToken([]netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:7400"), netip.MustParseAddrPort("[fd00::1]:7400")},
		cluster.RoleNode, "b", day0.Add(10*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestATokenIsOneLineThatReadsBackWhole(t *testing.T) {
	want := token(t, authority(t))
	line := want.String()
	if strings.ContainsAny(line, " \n\t") || len(line) > 300 {
		t.Errorf("%d characters: %q", len(line), line)
	}
	got, err := ParseToken(" " + line + "\n")
	got.Expires = got.Expires.UTC()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("ParseToken = %+v, %v\nwant %+v", got, err, want)
	}
	for n := range line {
		if _, err := ParseToken(line[:n]); err == nil {
			t.Fatalf("the first %d characters were taken for a token", n)
		}
		if n < len(tokenPrefix) {
			continue
		}
		typo := []byte(line)
		if typo[n] = 'A'; line[n] == 'A' {
			typo[n] = 'B'
		}
		if _, err := ParseToken(string(typo)); err == nil {
			t.Fatalf("a wrong character %d was not noticed", n)
		}
	}
}

func TestATokenPermitsItsRoleAndNameUntilItExpires(t *testing.T) {
	tok := token(t, authority(t))
	r := tok.Record()
	if err := r.Check(tok.Secret[:], cluster.RoleNode, "b", day0); err != nil {
		t.Fatal(err)
	}
	other := tok.Secret
	other[3] ^= 1
	for what, err := range map[string]error{
		"secret": r.Check(other[:], cluster.RoleNode, "b", day0),
		"empty":  r.Check(nil, cluster.RoleNode, "b", day0),
		"role":   r.Check(tok.Secret[:], cluster.RoleWitness, "b", day0),
		"name":   r.Check(tok.Secret[:], cluster.RoleNode, "c", day0),
		"time":   r.Check(tok.Secret[:], cluster.RoleNode, "b", day0.Add(10*time.Minute)),
	} {
		if !errors.Is(err, ErrBadToken) {
			t.Errorf("wrong %s: %v", what, err)
		}
	}
}

func TestATokenRecognisesItsClusterAndNoOther(t *testing.T) {
	a, other := authority(t), authority(t)
	tok := token(t, a)
	id, op := member(t, a, "a", cluster.RoleNode), member(t, a, "alice", RoleOperator)
	foreign := member(t, other, "a", cluster.RoleNode)
	evil, err := NewAuthority(a.ClusterID, day0) // somebody between, who read the cluster's id
	if err != nil {
		t.Fatal(err)
	}
	between := member(t, evil, "a", cluster.RoleNode)
	if s, err := tok.VerifyServer([]*x509.Certificate{id.Cert, a.Cert}, day0); err != nil || s != id.Subject {
		t.Fatalf("own cluster: %+v, %v", s, err)
	}
	for what, chain := range map[string][]*x509.Certificate{
		"foreign":                      {foreign.Cert, other.Cert},
		"a made-up authority":          {between.Cert, evil.Cert},
		"foreign with our authority":   {foreign.Cert, a.Cert},
		"an operator":                  {op.Cert, a.Cert},
		"a member without its CA":      {id.Cert},
		"our authority without member": {a.Cert},
	} {
		if _, err := tok.VerifyServer(chain, day0); err == nil {
			t.Errorf("%s was taken for a member", what)
		}
	}
}

func FuzzToken(f *testing.F) {
	a, err := NewAuthority(NewClusterID(), day0)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token(f, a).String())
	f.Add("hn1-")
	f.Add("hn1-AQAAAAAA")
	body := func(s string) string { return s[len(tokenPrefix):] }(token(f, a).String())
	if raw, err := base64.RawURLEncoding.DecodeString(body); err == nil {
		f.Add(string(raw[:len(raw)-4])) // reaches the fields: the target puts the checksum on
	}
	f.Fuzz(func(t *testing.T, s string) {
		sealed := binary.BigEndian.AppendUint32([]byte(s), crc32.ChecksumIEEE([]byte(s)))
		for _, s := range []string{s, tokenPrefix + base64.RawURLEncoding.EncodeToString(sealed)} {
			roundTrip(t, s)
		}
	})
}

func roundTrip(t *testing.T, s string) {
	tok, err := ParseToken(s)
	if err != nil {
		return
	}
	again, err := ParseToken(tok.String())
	if err != nil || again.String() != tok.String() {
		t.Fatalf("%q read, but its own form %q is not: %v", s, tok, err)
	}
}

package pki

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Names of the files in a directory of certificates.
const (
	CAKeyFile   = "ca.key"
	CAFile      = "ca.crt"
	KeyFile     = "node.key"
	CertFile    = "node.crt"
	maxFile     = 256 << 10
	maxCerts    = 8
	pemKey      = "PRIVATE KEY"
	pemCert     = "CERTIFICATE"
	secretsMode = 0o600
)

// ErrReadableByOthers is what ReadSecret returns, wrapped, for a file with a wrong mode or owner.
var ErrReadableByOthers = errors.New("others may have read this secret")

// WriteSecret writes data to path with mode 0600, atomically and durably: after an error or a crash the old file is still
// there, whole.
func WriteSecret(path string, data []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // gone after the rename
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(secretsMode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// ReadSecret reads a file that only its owner, this process's user, may read; it refuses any other, symbolic links too.
func ReadSecret(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("read the secret: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("read %s: not a plain file", path)
	}
	if st.Mode&0o177 != 0 || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%s has mode %04o and owner %d: %w: make it 0600 and owned by %d, and replace it if anybody else had access",
			path, st.Mode&0o7777, st.Uid, ErrReadableByOthers, os.Geteuid())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("read %s: longer than %d bytes", path, maxFile)
	}
	return data, nil
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

func readKey(path string) (crypto.Signer, error) {
	data, err := ReadSecret(path)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	b, _ := pem.Decode(data)
	if b == nil || b.Type != pemKey {
		return nil, errors.New("it holds no private key")
	}
	key, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("its key cannot sign")
	}
	return signer, nil
}

// EncodeCerts is the PEM form of certs.
func EncodeCerts(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: c.Raw})...)
	}
	return out
}

// DecodeCerts reads one to eight certificates in PEM form.
func DecodeCerts(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for len(out) < maxCerts {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		if b.Type != pemCert {
			return nil, fmt.Errorf("a %q where a certificate was expected", b.Type)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return out, nil
}

func readCerts(path string) ([]*x509.Certificate, error) {
	data, err := ReadSecret(path) // not secret, but whoever can change it decides who is a member
	if err != nil {
		return nil, err
	}
	certs, err := DecodeCerts(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs, nil
}

// Save writes the authority's key and certificate into dir.
func (a *Authority) Save(dir string) error {
	key, err := encodeKey(a.key)
	if err != nil {
		return fmt.Errorf("encode the authority's key: %w", err)
	}
	if err := WriteSecret(filepath.Join(dir, CAKeyFile), key); err != nil {
		return err
	}
	return WriteSecret(filepath.Join(dir, CAFile), EncodeCerts(a.Cert))
}

// LoadAuthority reads what Save wrote. A member without the key gets an error that is os.ErrNotExist: it cannot sign.
func LoadAuthority(dir, clusterID string) (*Authority, error) {
	key, err := readKey(filepath.Join(dir, CAKeyFile))
	if err != nil {
		return nil, err
	}
	certs, err := readCerts(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, err
	}
	for _, c := range certs {
		if pub, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && pub.Equal(key.Public()) {
			return &Authority{ClusterID: clusterID, Cert: c, key: key}, nil
		}
	}
	return nil, fmt.Errorf("%s does not belong to any certificate in %s: restore both from the same backup", CAKeyFile, filepath.Join(dir, CAFile))
}

// Identity is a member's own certificate with its key and the authorities that it trusts.
type Identity struct {
	Subject Subject
	Cert    *x509.Certificate
	Key     crypto.Signer
	CAs     []*x509.Certificate // the one that signed Cert first
}

// Save writes the identity into dir, the key first, so that a certificate never stands beside a missing key.
func (i *Identity) Save(dir string) error {
	key, err := encodeKey(i.Key)
	if err != nil {
		return fmt.Errorf("encode the key of %s: %w", i.Subject.Name, err)
	}
	if err := WriteSecret(filepath.Join(dir, KeyFile), key); err != nil {
		return err
	}
	if err := WriteSecret(filepath.Join(dir, CAFile), EncodeCerts(i.CAs...)); err != nil {
		return err
	}
	return WriteSecret(filepath.Join(dir, CertFile), EncodeCerts(i.Cert))
}

// LoadIdentity reads what Save wrote. It does not judge the certificate's validity.
func LoadIdentity(dir string) (*Identity, error) {
	key, err := readKey(filepath.Join(dir, KeyFile))
	if err != nil {
		return nil, err
	}
	cas, err := readCerts(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, err
	}
	certs, err := readCerts(filepath.Join(dir, CertFile))
	if err != nil {
		return nil, err
	}
	return NewIdentity(certs[0], key, cas)
}

// NewIdentity puts an identity together and checks that its parts belong to each other.
func NewIdentity(cert *x509.Certificate, key crypto.Signer, cas []*x509.Certificate) (*Identity, error) {
	if pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return nil, fmt.Errorf("the certificate of %q belongs to another key", cert.Subject.CommonName)
	}
	if len(cert.URIs) != 1 {
		return nil, fmt.Errorf("the certificate of %q is not a member's", cert.Subject.CommonName)
	}
	s, err := ParseURI(cert.URIs[0])
	if err != nil {
		return nil, err
	}
	for n, ca := range cas {
		if cert.CheckSignatureFrom(ca) == nil {
			cas[0], cas[n] = cas[n], cas[0]
			return &Identity{Subject: s, Cert: cert, Key: key, CAs: cas}, nil
		}
	}
	return nil, fmt.Errorf("the certificate of %s was signed by none of the %d authorities given", s.Name, len(cas))
}

// TLS is the identity as crypto/tls wants it, the authority's certificate behind the member's: a joining member knows the
// authority only by its fingerprint.
func (i *Identity) TLS() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{i.Cert.Raw, i.CAs[0].Raw}, PrivateKey: i.Key, Leaf: i.Cert}
}

// KeyPEM is the authority's private key as Save writes it, for another node that shall be able to sign. It is the cluster's greatest
// secret: whoever has it can make members.
func (a *Authority) KeyPEM() ([]byte, error) { return encodeKey(a.key) }

// ParseAuthority puts together what KeyPEM and the authority's certificate say.
func ParseAuthority(clusterID string, keyPEM []byte, cert *x509.Certificate) (*Authority, error) {
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("the authority's key: %w", err)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(cert.PublicKey) {
		return nil, errors.New("the authority's key and certificate do not belong to each other")
	}
	return &Authority{ClusterID: clusterID, Cert: cert, key: key}, nil
}

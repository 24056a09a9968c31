package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hanode/hanode/internal/lab/world"
)

// doors are bad inputs where a person can make them: two daemons on one directory, a port that is taken, a token used twice, state of another cluster,
// damaged state. Each is refused with a reason and a status, and nothing changes for those who run.
func doors() []situation {
	return []situation{
		{name: "door: a second daemon, a taken port, a used token", play: func(p *play) {
			b := p.standby
			before := digest(p.dataDir(b))
			p.refused(b, 1, "in use by a running daemon", "run", "--data", p.dataDir(b))
			p.refused(b, 3, "is the state directory of "+b, "init", "--name", "x", "--data", p.dataDir(b), "--advertise", address(b, 0))
			p.check(digest(p.dataDir(b)) == before, "the state directory of %s was changed by who was refused", b)

			other := filepath.Join(p.host(b).Dir(), "other")
			_, err := p.command(p.ctx, b, "init", "--name", "x", "--cluster", "other", "--data", other, "--advertise", fmt.Sprintf("%s:%d", address(b, 0), memberPort))
			p.must(err)
			p.runs(b, 1, "address already in use", other)

			token, err := p.token(p.ctx, "node")
			p.must(err)
			w := p.host(witnessHost) // has room for one more member, on another port
			asNode := *p.product
			asNode.witness = p.hanode
			join := func(token, name, dir string) []string {
				return []string{"join", "--token", token, "--name", name, "--data", filepath.Join(w.Dir(), dir),
					"--advertise", address(witnessHost, 0) + ":7401", "--link", address(witnessHost, 1) + ":7401", "--timeout", "8s"}
			}
			p.refusal(asNode.command(p.ctx, witnessHost, join(token, "b", "named-b")...))(3, "a member named b exists")
			wrong := []byte(token)
			wrong[len(wrong)/2] ^= 1
			p.refusal(asNode.command(p.ctx, witnessHost, join(string(wrong), "d", "mistyped")...))(3, "")
			_, err = asNode.command(p.ctx, witnessHost, join(token, "d", "d")...)
			p.must(err)
			p.refusal(asNode.command(p.ctx, witnessHost, join(token, "e", "e")...))(3, "token")
			_, err = p.command(p.ctx, nodeA, "member", "remove", "d", "--yes")
			p.must(err)
			p.undisturbed(p.begin)
		}},
		{name: "door: damaged and foreign state", play: func(p *play) {
			b := p.standby
			dir := p.dataDir(b)
			p.killDaemon(b)
			broken := func(name string, harm func(dir string)) string {
				to := filepath.Join(p.host(b).Dir(), name)
				p.must(os.CopyFS(to, skipSockets{os.DirFS(dir)}))
				p.must(filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
					return errors.Join(err, os.Chmod(path, map[bool]fs.FileMode{true: 0o700, false: 0o600}[d.IsDir()]))
				}))
				harm(to)
				return to
			}
			for _, x := range []struct {
				name, words string
				harm        func(dir string)
			}{
				{"short-db", "raft.db", func(d string) { p.must(os.Truncate(filepath.Join(d, "raft", "raft.db"), 10000)) }},
				{"empty-db", "missing or empty although this member has run before", func(d string) { p.must(os.Truncate(filepath.Join(d, "raft", "raft.db"), 0)) }},
				{"no-db", "missing or empty although this member has run before", func(d string) { p.must(os.Remove(filepath.Join(d, "raft", "raft.db"))) }},
				{"flipped-identity", "identity", func(d string) { p.flip(filepath.Join(d, "identity.json"), `"node_id": "`) }},
				{"torn-identity", "identity.json is damaged", func(d string) { p.must(os.Truncate(filepath.Join(d, "identity.json"), 20)) }},
				{"no-incarnation", "incarnation is missing", func(d string) { p.must(os.Remove(filepath.Join(d, "incarnation"))) }},
				{"flipped-incarnation", "incarnation is damaged", func(d string) { p.must(os.WriteFile(filepath.Join(d, "incarnation"), []byte("99 00000000\n"), 0o600)) }},
				{"newer-format", "has the format", func(d string) { p.must(os.WriteFile(filepath.Join(d, "VERSION"), []byte("hanode state 9\n"), 0o600)) }},
				{"foreign-certificate", "name different members", func(d string) {
					other := filepath.Join(d, "..", "foreign")
					_, err := p.command(p.ctx, b, "init", "--name", b, "--cluster", "other", "--data", other, "--advertise", fmt.Sprintf("%s:%d", address(b, 0), memberPort))
					p.must(err)
					for _, f := range []string{"identity.json", "VERSION", "incarnation", "peers.json"} {
						raw, err := os.ReadFile(filepath.Join(d, f))
						p.must(err)
						p.must(os.WriteFile(filepath.Join(other, f), raw, 0o600))
					}
					p.must(os.RemoveAll(d))
					p.must(os.Rename(other, d))
				}},
			} {
				bad := broken(x.name, x.harm)
				before := digest(filepath.Join(bad, "raft"))
				p.runs(b, 1, x.words, bad)
				p.check(digest(filepath.Join(bad, "raft")) == before, "%s: the refused start changed the log", x.name)
				p.must(os.RemoveAll(bad))
			}
			p.must(p.startDaemon(p.ctx, b))
			p.must(p.waitProtected(p.ctx, protectedWithin))
			p.stillThere(p.begin)
		}},
	}
}

// runs starts a daemon on a directory, which must end by itself with a status and a reason.
func (p *play) runs(host string, status int, words, dir string) {
	p.Helper()
	env := p.env(host)
	for i, e := range env {
		if strings.HasPrefix(e, "HANODE_SOCKET=") {
			env[i] = "HANODE_SOCKET=" + filepath.Join(dir, "hanode.sock")
		}
	}
	res, err := p.host(host).Exec(p.ctx, world.Cmd{Argv: []string{p.binary(host), "run", "--data", dir}, Env: env, Timeout: 15 * time.Second})
	p.must(err)
	said := strings.Join(strings.Fields(string(res.Stderr)), " ")
	switch {
	case res.TimedOut:
		p.Errorf("%s: the daemon goes on: %s", filepath.Base(dir), said)
	case res.Exit != status || !strings.Contains(said, words) || strings.Contains(said, "panic"):
		p.Errorf("%s: status %d, want %d and %q: %s", filepath.Base(dir), res.Exit, status, words, said)
	default:
		p.Logf("%s: %s", filepath.Base(dir), said[max(0, strings.LastIndex(said, "hanode: ")):])
	}
}

// flip changes one digit after some words of a file.
func (p *play) flip(file, after string) {
	p.Helper()
	b, err := os.ReadFile(file)
	p.must(err)
	i := strings.Index(string(b), after)
	if i < 0 {
		p.Fatalf("%s has no %q", file, after)
	}
	i += len(after)
	if b[i] == '0' {
		b[i] = '1'
	} else {
		b[i] = '0'
	}
	p.must(os.WriteFile(file, b, 0o600))
}

// digest is a sum over the names and contents of a tree, without what a running daemon changes all the time.
func digest(dir string) string {
	h := sha256.New()
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(path, "status") || d.Name() == "raft.db" && !strings.Contains(dir, "raft") || d.Name() == "ballast" {
			return nil
		}
		b, _ := os.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n", path, len(b))
		h.Write(b)
		return nil
	})
	return hex.EncodeToString(h.Sum(nil))
}

// skipSockets is a tree without what is not a file or a directory, and without the ballast.
type skipSockets struct{ fs.FS }

func (s skipSockets) ReadDir(name string) ([]fs.DirEntry, error) {
	all, err := fs.ReadDir(s.FS, name)
	var out []fs.DirEntry
	for _, e := range all {
		if (e.IsDir() || e.Type().IsRegular()) && e.Name() != "ballast" {
			out = append(out, e)
		}
	}
	return out, err
}

package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// pgBin is where Debian keeps PostgreSQL's programs; "" without it.
func pgBin() string {
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(dirs) == 0 {
		return ""
	}
	return dirs[len(dirs)-1]
}

// postgres runs a program of PostgreSQL as its user.
func postgres(prog string, args ...string) (string, error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return "", err
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	cmd := exec.Command(filepath.Join(pgBin(), prog), args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PGOPTIONS=", "HOME=/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", prog, err, tail(string(out)))
	}
	return string(out), nil
}

func tail(s string) string {
	return s[max(0, len(s)-400):]
}

// pgCluster is a PostgreSQL server in a directory that the user postgres owns.
type pgCluster struct{ data, sock string }

func (c pgCluster) conf(extra ...string) error {
	f, err := os.OpenFile(filepath.Join(c.data, "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	fmt.Fprintf(w, "listen_addresses=''\nunix_socket_directories='%s'\nshared_buffers='256MB'\nmax_wal_size='2GB'\nautovacuum=off\ncheckpoint_timeout='30min'\n", c.sock)
	for _, e := range extra {
		fmt.Fprintln(w, e)
	}
	return w.Flush()
}

func (c pgCluster) start() error {
	_, err := postgres("pg_ctl", "-D", c.data, "-w", "-t", "60", "-l", filepath.Join(c.sock, "log"), "start")
	return err
}

func (c pgCluster) stop() { postgres("pg_ctl", "-D", c.data, "-m", "immediate", "-w", "stop") }

func (c pgCluster) psql(sql string) (string, error) {
	return postgres("psql", "-h", c.sock, "-d", "postgres", "-Atc", sql)
}

var tpsLine = regexp.MustCompile(`tps = ([0-9.]+)`)

func (c pgCluster) bench(d time.Duration) (float64, error) {
	out, err := postgres("pgbench", "-h", c.sock, "-n", "-c", "8", "-j", "2", "-T", fmt.Sprint(max(int(d.Seconds()), 3)), "postgres")
	if err != nil {
		return 0, err
	}
	m := tpsLine.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench says no rate: %s", tail(out))
	}
	return strconv.ParseFloat(m[1], 64)
}

// newCluster makes a cluster in dir/pg with pgbench's tables.
func newCluster(dir string) (c pgCluster, err error) {
	if pgBin() == "" {
		return c, errNoPostgres
	}
	c = pgCluster{data: filepath.Join(dir, "pg", "data"), sock: filepath.Join(os.TempDir(), fmt.Sprint("volbench-pg-", os.Getpid()))}
	if err := os.MkdirAll(c.sock, 0o777); err != nil {
		return c, err
	}
	os.Chmod(c.sock, 0o777)
	pg := filepath.Join(dir, "pg")
	os.RemoveAll(pg)
	if err := os.MkdirAll(pg, 0o777); err != nil {
		return c, err
	}
	os.Chmod(pg, 0o777)
	if _, err := postgres("initdb", "-D", c.data, "-A", "trust", "--no-locale", "-N"); err != nil {
		return c, err
	}
	if err := c.conf(); err != nil {
		return c, err
	}
	if err := c.start(); err != nil {
		return c, err
	}
	_, err = postgres("pgbench", "-h", c.sock, "-i", "-q", "-s", "10", "postgres")
	if err == nil {
		_, err = c.psql("CHECKPOINT")
	}
	return c, err
}

var errNoPostgres = fmt.Errorf("PostgreSQL is not installed")

func pgbench(j *job) error {
	c, err := newCluster(j.dir)
	defer func() {
		c.stop()
		os.RemoveAll(c.sock)
		os.RemoveAll(filepath.Join(j.dir, "pg"))
	}()
	if err != nil {
		return err
	}
	tps, err := c.bench(2 * j.time)
	if err != nil {
		return err
	}
	j.say("pgbench", "tx/s", tps)
	return nil
}

// pgOwnSync is PostgreSQL's own synchronous replication: a primary on one disk, a standby on the other, joined by a socket.
func pgOwnSync(a, b string, d time.Duration) (float64, error) {
	c, err := newCluster(a)
	defer func() {
		c.stop()
		os.RemoveAll(c.sock)
		os.RemoveAll(filepath.Join(a, "pg"))
	}()
	if err != nil {
		return 0, err
	}
	s := pgCluster{data: filepath.Join(b, "pg", "data"), sock: c.sock + "-standby"}
	os.RemoveAll(filepath.Join(b, "pg"))
	os.MkdirAll(filepath.Join(b, "pg"), 0o777)
	os.Chmod(filepath.Join(b, "pg"), 0o777)
	os.MkdirAll(s.sock, 0o777)
	os.Chmod(s.sock, 0o777)
	defer os.RemoveAll(s.sock)
	defer os.RemoveAll(filepath.Join(b, "pg"))
	if _, err := postgres("pg_basebackup", "-h", c.sock, "-D", s.data, "-R", "-c", "fast"); err != nil {
		return 0, err
	}
	if err := s.conf(fmt.Sprintf("primary_conninfo='host=%s application_name=s1'", c.sock)); err != nil {
		return 0, err
	}
	if err := s.start(); err != nil {
		return 0, err
	}
	defer s.stop()
	for _, sql := range []string{"ALTER SYSTEM SET synchronous_standby_names='s1'", "SELECT pg_reload_conf()"} {
		if _, err := c.psql(sql); err != nil {
			return 0, err
		}
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if out, err := c.psql("SELECT sync_state FROM pg_stat_replication"); err == nil && strings.TrimSpace(out) == "sync" {
			break
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("the standby of PostgreSQL is not synchronous after 20 s")
		}
	}
	return c.bench(d)
}

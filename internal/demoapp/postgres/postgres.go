// Package postgres runs Debian's PostgreSQL as the service with data of the demonstration, and pgbench as its clients. What pgbench's own log
// calls a committed transaction must be in the table afterwards: that is the whole test.
//
// The server command makes the database at its first start, in a directory below the volume, and becomes PostgreSQL.
package postgres

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The words behind which ServerMain and ClientMain are reached in the program that embeds them.
const (
	ServerCommand = "postgres-server"
	ClientCommand = "postgres-client"
)

// Find returns the directory of PostgreSQL's programs of the newest version that has all that is needed, "" if there is none, or no user
// postgres: PostgreSQL refuses to run as root.
func Find() string {
	if _, err := user.Lookup("postgres"); err != nil {
		return ""
	}
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	sort.Slice(dirs, func(i, j int) bool { return version(dirs[i]) > version(dirs[j]) })
	for _, d := range dirs {
		all := true
		for _, p := range []string{"postgres", "initdb", "pgbench", "psql"} {
			if _, err := os.Stat(filepath.Join(d, p)); err != nil {
				all = false
			}
		}
		if all {
			return d
		}
	}
	return ""
}

func version(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return n
}

// ServerMain makes the database if there is none, and becomes the server. It is started as root and goes on as postgres.
func ServerMain(args []string, stderr io.Writer) int {
	fs := flag.NewFlagSet(ServerCommand, flag.ContinueOnError)
	fs.SetOutput(stderr)
	bin := fs.String("bin", "", "directory of PostgreSQL's programs")
	data := fs.String("data", "", "the database's directory")
	port := fs.Int("port", 5432, "port")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	err := serve(*bin, *data, *port, stderr)
	fmt.Fprintln(stderr, "postgres:", err)
	return 1
}

func serve(bin, data string, port int, stderr io.Writer) error {
	u, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if err := os.Mkdir(data, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := os.Chown(data, uid, gid); err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups([]int{gid}), syscall.Setgid(gid), syscall.Setuid(uid), os.Chdir("/")); err != nil {
		return fmt.Errorf("become the user postgres: %w", err)
	}
	made := filepath.Join(data, "hanode-demo-made")
	if _, err := os.Stat(made); errors.Is(err, os.ErrNotExist) {
		if err := create(bin, data, stderr); err != nil {
			return err
		}
		if err := os.WriteFile(made, nil, 0o600); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return syscall.Exec(filepath.Join(bin, "postgres"), []string{"postgres", "-D", data, "-p", strconv.Itoa(port), "-h", "0.0.0.0", "-k", "/tmp",
		"-c", "shared_buffers=64MB", "-c", "max_connections=50", "-c", "logging_collector=off"}, os.Environ())
}

// create makes the database. What an interrupted attempt left goes first.
func create(bin, data string, stderr io.Writer) error {
	old, err := os.ReadDir(data)
	if err != nil {
		return err
	}
	for _, e := range old {
		if err := os.RemoveAll(filepath.Join(data, e.Name())); err != nil {
			return err
		}
	}
	cmd := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-A", "trust", "-E", "UTF8", "--locale=C", "-U", "postgres")
	cmd.Stdout, cmd.Stderr = stderr, stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(data, "pg_hba.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("host all all 0.0.0.0/0 trust\n")
	return errors.Join(err, f.Close())
}

// ClientMain lets pgbench insert rows for a time, waits until the database answers again, and prints what became of them as JSON.
func ClientMain(args []string, stdout, stderr io.Writer) int {
	b := bench{}
	fs := flag.NewFlagSet(ClientCommand, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&b.bin, "bin", "", "directory of PostgreSQL's programs")
	fs.StringVar(&b.host, "host", "10.77.0.101", "address of the service")
	fs.IntVar(&b.port, "port", 5432, "port of the service")
	fs.StringVar(&b.run, "run", "r", "letters and digits that make the rows of this run distinct")
	fs.IntVar(&b.clients, "clients", 4, "clients at a time")
	d := fs.Duration("for", 6*time.Second, "how long to write")
	patience := fs.Duration("patience", 2*time.Minute, "how long to wait for the database afterwards")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	a, err := b.measure(*d, *patience)
	if err != nil {
		fmt.Fprintln(stderr, "postgres client:", err)
		return 1
	}
	if err := json.NewEncoder(stdout).Encode(a); err != nil {
		return 1
	}
	return 0
}

// Account is what became of the transactions that pgbench logged as committed.
type Account struct {
	Acked   int      `json:"acknowledged"`
	Missing []string `json:"missing,omitempty"` // committed, and not there
	GapMS   float64  `json:"gap_ms"`            // the longest time without a commit
}

type bench struct {
	bin, host, run string
	port, clients  int
}

// measure runs pgbench again and again: it ends when it loses its connections, and is started again until the time is over.
func (b *bench) measure(d, patience time.Duration) (Account, error) {
	a := Account{}
	dir, err := os.MkdirTemp("", "hanode-pgbench-")
	if err != nil {
		return a, err
	}
	defer os.RemoveAll(dir)
	if _, err := b.sqlAgain("create table if not exists ledger (run text, client int, n int, primary key (run, client, n))", patience); err != nil {
		return a, err
	}
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("\\set n :n + 1\ninsert into ledger values (':run' || :turn, :client_id, :n);\n"), 0o600); err != nil {
		return a, err
	}
	turn := 0
	acked := map[string]bool{}
	var times []time.Time
	for end := time.Now().Add(d); time.Until(end) > time.Second/2; turn++ {
		prefix := filepath.Join(dir, fmt.Sprintf("log%d", turn))
		left := max(1, int(time.Until(end).Seconds()+0.5))
		ctx, cancel := context.WithTimeout(context.Background(), time.Until(end)+20*time.Second)
		cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "pgbench"), "-n", "-h", b.host, "-p", strconv.Itoa(b.port), "-U", "postgres", "-c", strconv.Itoa(b.clients),
			"-T", strconv.Itoa(left), "-f", script, "-D", "n=0", "-D", "run="+b.run, "-D", fmt.Sprintf("turn=%d", turn), "-l", "--log-prefix="+prefix, "postgres")
		cmd.Env = append(os.Environ(), "PGCONNECT_TIMEOUT=2")
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
		_ = cmd.Run() // it fails when its connections break: what it logged before counts
		cancel()
		t, err := readLogs(prefix, func(client, n int) { acked[fmt.Sprintf("%s%d|%d|%d", b.run, turn, client, n)] = true })
		if err != nil {
			return a, err
		}
		times = append(times, t...)
	}
	a.Acked = len(acked)
	a.GapMS = longest(times)
	rows, err := b.sqlAgain(fmt.Sprintf("select run || '|' || client || '|' || n from ledger where run like '%s%%'", b.run), patience)
	if err != nil {
		return a, err
	}
	for _, r := range strings.Fields(rows) {
		delete(acked, r)
	}
	for r := range acked {
		a.Missing = append(a.Missing, r)
	}
	sort.Strings(a.Missing)
	return a, nil
}

// readLogs reads pgbench's per-transaction logs: client, transaction, latency, script, seconds, microseconds. The transactions of a client are counted from 1, as
// in the rows.
func readLogs(prefix string, committed func(client, n int)) (times []time.Time, err error) {
	files, err := filepath.Glob(prefix + "*")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		in := bufio.NewScanner(bytes.NewReader(raw))
		for in.Scan() {
			var client, n, script int
			var took, sec, us int64
			if k, _ := fmt.Sscan(in.Text(), &client, &n, &took, &script, &sec, &us); k != 6 {
				continue // the last line of one that was interrupted
			}
			committed(client, n)
			times = append(times, time.Unix(sec, us*1000))
		}
	}
	return times, nil
}

func longest(t []time.Time) float64 {
	sort.Slice(t, func(i, j int) bool { return t[i].Before(t[j]) })
	var most time.Duration
	for i := 1; i < len(t); i++ {
		most = max(most, t[i].Sub(t[i-1]))
	}
	return float64(most.Microseconds()) / 1000
}

// sqlAgain runs a statement, again and again until the database answers.
func (b *bench) sqlAgain(statement string, patience time.Duration) (string, error) {
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var out, said bytes.Buffer
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "psql"), "-h", b.host, "-p", strconv.Itoa(b.port), "-U", "postgres", "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statement, "postgres")
		cmd.Env = append(os.Environ(), "PGCONNECT_TIMEOUT=2")
		cmd.Stdout, cmd.Stderr = &out, &said
		err = cmd.Run()
		cancel()
		if err == nil {
			return out.String(), nil
		}
		err = fmt.Errorf("psql: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return "", fmt.Errorf("the database did not answer within %v: %w", patience, err)
}

package postgres

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ServerCommand {
		os.Exit(ServerMain(os.Args[2:], os.Stderr))
	}
	os.Exit(m.Run())
}

func TestWhatPgbenchCallsCommittedIsInTheTable(t *testing.T) {
	bin := Find()
	switch {
	case bin == "":
		t.Skip("PostgreSQL is not installed")
	case os.Getuid() != 0:
		t.Skip("needs root, to become the user postgres")
	}
	top, err := os.MkdirTemp("", "hanode-pg-") // t.TempDir is closed to the user postgres
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	if err := os.Chmod(top, 0o755); err != nil {
		t.Fatal(err)
	}
	const port = 54329
	data := filepath.Join(top, "data")
	start := func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe", ServerCommand, "-bin", bin, "-data", data, "-port", strconv.Itoa(port))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	server := start()
	defer func() {
		_ = server.Process.Signal(syscall.SIGINT)
		_ = server.Wait()
	}()
	// The server is killed once in the middle, with all its children, as a node would be.
	killed := make(chan error, 1)
	b := bench{bin: bin, host: "127.0.0.1", port: port, run: "r", clients: 2}
	if _, err := b.sqlAgain("select 1", time.Minute); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := b.sqlAgain("select 1/(count(*) > 50)::int from ledger", 20*time.Second)
		err = errors.Join(err, server.Process.Signal(syscall.SIGQUIT)) // immediate shutdown: recovery follows
		_ = server.Wait()
		server = start()
		killed <- err
	}()
	var out, said bytes.Buffer
	status := ClientMain([]string{"-bin", bin, "-host", "127.0.0.1", "-port", strconv.Itoa(port), "-for", "4s", "-clients", "2"}, &out, &said)
	if err := <-killed; err != nil {
		t.Fatal(err)
	}
	var a Account
	if err := json.Unmarshal(out.Bytes(), &a); status != 0 || err != nil {
		t.Fatalf("status %d: %s%v", status, said.String(), err)
	}
	if len(a.Missing) > 0 || a.Acked < 100 {
		t.Errorf("%+v", a)
	}
}

func TestTheLogOfAnInterruptedPgbenchCounts(t *testing.T) {
	prefix := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(prefix+".17", []byte("0 1 2100 0 1700000000 1000\n1 1 2000 0 1700000000 2000\n0 2 1900 0 1700000000 900000\n1 2 19"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got []string
	times, err := readLogs(prefix, func(client, n int) { got = append(got, strconv.Itoa(client)+"-"+strconv.Itoa(n)) })
	if err != nil || strings.Join(got, " ") != "0-1 1-1 0-2" || longest(times) != 898 {
		t.Errorf("%v, longest %v, %v", got, longest(times), err)
	}
}

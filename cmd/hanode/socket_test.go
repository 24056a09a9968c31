package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/api/apitest"
)

// TestTheCommandsSpeakToARealSocket runs the commands as users do: against a daemon's socket that --socket names.
func TestTheCommandsSpeakToARealSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "cli") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sock := filepath.Join(dir, "s")
	fake := apitest.New()
	srv, err := api.NewServer(api.Config{Backend: fake, Socket: sock, Group: "root"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	w := newWorld(t)
	command := func(args ...string) result {
		var out, errOut bytes.Buffer
		e := w.env(strings.NewReader(""), &out, &errOut)
		e.dial = dialSocket
		status := run(t.Context(), e, append(args, "--socket", sock))
		return result{status, out.String(), errOut.String()}
	}
	for deadline := time.Now().Add(5 * time.Second); command("leader").status != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server does not answer")
		}
	}
	if r := command("status"); r.status != 0 || !strings.Contains(r.out, "b takes over by itself") {
		t.Errorf("%+v", r)
	}
	if r := command("switchover", "db"); r.status != 0 || !strings.Contains(r.errOut, "hold new writes [a]  2 ms") {
		t.Errorf("%+v", r)
	}
	if r := command("switchover", "db", "--to", "b"); r.status != 3 || !strings.Contains(r.errOut, "b is active already") {
		t.Errorf("%+v", r)
	}
	fake.Hang = make(chan struct{})
	if r := command("switchover", "db", "--timeout", "50ms"); r.status != 5 || !strings.Contains(r.errOut, "may still be carried out") {
		t.Errorf("%+v", r)
	}
	var out bytes.Buffer
	e := w.env(strings.NewReader(""), &out, io.Discard)
	e.dial = dialSocket
	if status := run(t.Context(), e, []string{"status", "--socket", sock + "x", "--data", w.dir}); status != 4 {
		t.Errorf("exit %d without a daemon", status)
	}
}

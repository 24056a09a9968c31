package member

import (
	"context"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestSystemdHearsOfReadinessAfterTheLogHasAdmittedThisRun(t *testing.T) {
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"}
	l, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", addr.Name)
	h := &host{t: t, name: "a", dir: filepath.Join(t.TempDir(), "a")}
	t.Cleanup(h.stop)
	if _, err := Init(InitOptions{Dir: h.dir, Name: "a", Cluster: "test", Site: "default", Advertise: "127.0.7.9:" + strconv.Itoa(freePort(t))}); err != nil {
		t.Fatal(err)
	}
	h.start()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- Notify(ctx, h.m) }()
	heard := func(what string) {
		t.Helper()
		b := make([]byte, 4096)
		for {
			if err := l.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, err := l.Read(b)
			if err != nil {
				t.Fatalf("%s was not heard: %v", what, err)
			}
			said := string(b[:n])
			if strings.Contains(said, "READY=1") && what != "READY=1" {
				continue
			}
			if strings.Contains(said, what) {
				return
			}
		}
	}
	heard("READY=1")
	heard("WATCHDOG=1")
	cancel()
	heard("STOPPING=1")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

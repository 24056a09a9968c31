package demoapp

import (
	"bufio"
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func start(t *testing.T, s *Service) (addr string, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Listen = ln.Addr().String()
	ln.Close()
	s.PIDFile = filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(s.PIDFile); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	return s.Listen, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestTheServiceAnswersEachLineWithItsNodeItsEpochAndACounter(t *testing.T) {
	epoch := uint64(3)
	s := &Service{Name: "a", Epoch: func() uint64 { return epoch }}
	addr, stop := start(t, s)
	pid, err := os.ReadFile(s.PIDFile)
	if err != nil || strings.TrimSpace(string(pid)) != strconv.Itoa(os.Getpid()) {
		t.Errorf("pid file: %q, %v", pid, err)
	}
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(c)
	for _, want := range []string{"a 3 1 hello\n", "a 4 2 hello\n"} {
		if _, err := c.Write([]byte("hello\n")); err != nil {
			t.Fatal(err)
		}
		if got, err := br.ReadString('\n'); got != want || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
		epoch++
	}
	stop() // with a connection open: Run must end it, not wait for it
	if _, err := br.ReadByte(); err == nil {
		t.Error("the connection outlived the service")
	}
}

func TestALineWithoutAnEndIsNotKept(t *testing.T) {
	addr, stop := start(t, &Service{Name: "a"})
	defer stop()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = c.Write([]byte(strings.Repeat("x", 2*maxLine))) // may be cut off half-way
	if b, err := bufio.NewReader(c).ReadByte(); err == nil {
		t.Errorf("answered with %q", b)
	} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Error("the service still waits for the end of an endless line")
	}
}

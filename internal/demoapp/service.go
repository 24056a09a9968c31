// Package demoapp is the hot service that the demonstration and the benchmark protect: a TCP server that answers each
// line with the name of its node, the epoch in which it answers and a counter. It runs on both nodes all the time;
// whether anybody can reach it is decided by who has the address.
//
// It never decides anything itself and knows nothing of the cluster but the epoch, which it asks for at each answer: a
// client that sees an epoch fall, or two nodes in one epoch, has seen two actives.
package demoapp

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Command is the word behind which Main is reached in the program that embeds the service.
const Command = "service"

// Service is the server.
type Service struct {
	Name    string        // of the node, the first word of each answer
	Listen  string        // "host:port"
	PIDFile string        // written after the port is open; "" for none
	Epoch   func() uint64 // of the tenure in which this node serves; nil: always 0

	count atomic.Uint64
	mu    sync.Mutex
	conns map[net.Conn]bool // open ones, so that Run can end them
}

const (
	idle    = 30 * time.Second // a client that says nothing for so long is let go
	maxLine = 4096
	maxOpen = 4096 // clients at a time; more wait in the backlog
)

// Run serves until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	ln, err := net.Listen("tcp4", s.Listen)
	if err != nil {
		return fmt.Errorf("demo service: %w", err)
	}
	s.conns = map[net.Conn]bool{}
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	defer ln.Close()
	if s.PIDFile != "" {
		if err := os.WriteFile(s.PIDFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxOpen)
	for {
		slots <- struct{}{}
		c, err := ln.Accept()
		if err != nil {
			s.closeAll()
			wg.Wait()
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("demo service: %w", err)
		}
		s.track(c, true)
		wg.Go(func() {
			defer func() { <-slots }()
			defer s.track(c, false)
			defer c.Close()
			s.serve(c)
		})
	}
}

func (s *Service) track(c net.Conn, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if open {
		s.conns[c] = true
	} else {
		delete(s.conns, c)
	}
}

func (s *Service) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// serve answers line by line until the client closes: the side that closes first keeps the port in TIME_WAIT, and
// several hundred clients a second would fill the server with them.
func (s *Service) serve(c net.Conn) {
	br := bufio.NewReaderSize(c, maxLine)
	for {
		_ = c.SetDeadline(time.Now().Add(idle))
		line, err := br.ReadSlice('\n') // a longer line is an error, and the end
		if err != nil {
			return
		}
		var epoch uint64
		if s.Epoch != nil {
			epoch = s.Epoch()
		}
		if _, err := fmt.Fprintf(c, "%s %d %d %s", s.Name, epoch, s.count.Add(1), line); err != nil {
			return
		}
	}
}

// Main is the service as a process of its own. It returns the exit status.
func Main(args []string, stderr io.Writer) int {
	host, _ := os.Hostname() // empty is shown as it is
	epoch, err := PageEpoch(os.Getenv(PageVariable))
	if err != nil {
		fmt.Fprintln(stderr, "demo service:", err)
		return 1
	}
	s := &Service{Epoch: epoch}
	fs := flag.NewFlagSet(Command, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&s.Name, "name", host, "name of the node, the first word of each answer")
	fs.StringVar(&s.Listen, "listen", ":8080", "address and port")
	fs.StringVar(&s.PIDFile, "pidfile", "", "file to write the process id to")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := s.Run(ctx); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

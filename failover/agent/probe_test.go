package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

func once(t *testing.T, kind, target string, timeout time.Duration) Result {
	t.Helper()
	s := spec3()
	s.Kind, s.Target, s.Timeout = kind, target, timeout
	r := Once(t.Context(), s, Deps{})
	if r.Took < 0 || r.Took > timeout+2*time.Second || r.At == 0 {
		t.Errorf("the run took %v at %v", r.Took, r.At)
	}
	return r
}

func wantResult(t *testing.T, r Result, ok bool, says string) {
	t.Helper()
	if r.OK != ok || !strings.Contains(r.Output, says) {
		t.Errorf("%+v, want ok = %v and %q", r, ok, says)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestTCPSucceedsIfSomebodyAcceptsAndLeavesNoTimeWait(t *testing.T) {
	l := listen(t)
	got := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		got <- err
	}()
	wantResult(t, once(t, "tcp", l.Addr().String(), time.Second), true, "connected to "+l.Addr().String())
	if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server saw %v, want a reset", err)
	}
}

func TestTCPFailsAtOnceIfNobodyListens(t *testing.T) {
	l := listen(t)
	l.Close()
	r := once(t, "tcp", l.Addr().String(), 5*time.Second)
	wantResult(t, r, false, "connection refused")
	if r.Took > time.Second {
		t.Errorf("it took %v", r.Took)
	}
}

func TestTCPFailsAtItsTimeoutIfTheQueueIsFull(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port)
	for range 4 { // who is not accepted fills the queue
		c, err := net.DialTimeout("tcp", addr, 50*time.Millisecond)
		if err != nil {
			break
		}
		defer c.Close()
	}
	r := once(t, "tcp", addr, 100*time.Millisecond)
	wantResult(t, r, false, "no answer within 100ms")
}

func TestAConnectionThatMeetsItselfIsNoSuccess(t *testing.T) {
	// Bound and connected to the same port: what the kernel may choose by itself in its ephemeral range.
	port := listen(t).Addr().(*net.TCPAddr).Port // of 127.0.0.1, and free on 127.0.0.2
	var l net.Dialer
	l.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2), Port: port}
	c, err := l.Dial("tcp", fmt.Sprintf("127.0.0.2:%d", port))
	if err != nil {
		t.Fatalf("the kernel does not connect a socket to itself any more: %v", err)
	}
	defer c.Close()
	if !itself(c) || itself(pair(t)) {
		t.Error("connections to themselves are not told apart")
	}
}

func pair(t *testing.T) net.Conn {
	l := listen(t)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestHTTPJudgesByTheStatus(t *testing.T) {
	var elsewhere atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	var hops atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "GET" || r.UserAgent() != "hanode-check" {
			t.Errorf("asked with %s by %s", r.Method, r.UserAgent())
		}
		io.WriteString(w, "\n  fine\x1b[31m\nsecond line")
	})
	mux.HandleFunc("/empty", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) })
	mux.HandleFunc("/ill", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no database", 503) })
	mux.HandleFunc("/gone", http.NotFound)
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", 302) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, 302) })
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { hops.Add(1); http.Redirect(w, r, "/loop", 302) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/stalls", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begin")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	s := httptest.NewServer(mux)
	defer s.Close()
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	for _, c := range []struct {
		path, says string
		ok         bool
	}{
		{"/ok", "200 OK: fine [31m", true},
		{"/empty", "204 No Content", true},
		{"/ill", "503 Service Unavailable: no database", false},
		{"/gone", "404 Not Found", false},
		{"/here", "200 OK", true},
		{"/away", "302 Found", true},
		{"/loop", "more than 5 redirects", false},
		{"/slow", "no answer within 300ms", false},
		{"/stalls", "no answer within 300ms", false},
		{"/endless", "200 OK", true},
	} {
		r := once(t, "http", s.URL+c.path, 300*time.Millisecond)
		wantResult(t, r, c.ok, c.says)
		if strings.ContainsAny(r.Output, "\x1b\n") || len(r.Output) > maxLine {
			t.Errorf("%s: the output %q would harm a terminal", c.path, r.Output)
		}
	}
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	wantResult(t, once(t, "http", "http://0.0.0.0:"+port+"/empty", time.Second), true, "204") // no proxy is used for loopback addresses anyway
	if elsewhere.Load() != 0 {
		t.Error("a redirect to another host was followed")
	}
	if hops.Load() != 6 {
		t.Errorf("%d requests of a loop of redirects, want 1 and 5 more", hops.Load())
	}
}

func TestHTTPSOnThisHostNeedsNoNameInTheCertificate(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "tls") })
	defer s.Close()
	wantResult(t, once(t, "http", s.URL, 2*time.Second), true, "200 OK: tls")
	for host, want := range map[string]bool{"127.0.0.1": true, "::1": true, "localhost": true, "10.0.0.1": false, "localhost.example.org": false, "127.0.0.1.example.org": false} {
		if loopback(host) != want {
			t.Errorf("%s: loopback = %v", host, !want)
		}
	}
}

func TestThePasswordOfAURLIsNotShown(t *testing.T) {
	l := listen(t)
	l.Close()
	r := once(t, "http", "http://monitor:secret@"+l.Addr().String()+"/", time.Second)
	wantResult(t, r, false, "connection refused")
	if strings.Contains(r.Output, "secret") {
		t.Error(r.Output)
	}
}

func TestOnceRefusesWhatItCannotRun(t *testing.T) {
	wantResult(t, once(t, "smtp", "127.0.0.1:25", time.Second), false, "smtp is not supported")
}

func TestALineIsOneBoundedHarmlessLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                             "",
		"\n\n one \n two":              "one",
		"a\tb\x00c\x7f\u202ed":         "a b c  d",
		"\xff\xfe broken":              "? broken",
		strings.Repeat("ä", 300):       strings.Repeat("ä", 128),
		"x" + strings.Repeat("ä", 300): "x" + strings.Repeat("ä", 127),
	} {
		if got := line(in); got != want || len(got) > maxLine {
			t.Errorf("line(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestAServiceIsSeenToComeUpAndGoDown(t *testing.T) {
	l := listen(t)
	addr := l.Addr().String()
	l.Close()
	s := spec3()
	s.Target, s.Every, s.Failures = addr, 40*time.Millisecond, 2
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	states := make(chan Status, 100)
	done := make(chan error, 1)
	go func() { done <- Run(ctx, []cluster.CheckSpec{s}, Deps{}, func(st Status) { states <- st }) }()
	expect := func(want State) Status {
		t.Helper()
		for {
			select {
			case st := <-states:
				if st.State == want {
					return st
				}
			case <-ctx.Done():
				t.Fatalf("it never became %s", want)
			}
		}
	}
	expect(StateFailed)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if st := expect(StateOK); st.LastOK == 0 || st.Name != "c" {
		t.Errorf("%+v", st)
	}
	l.Close()
	expect(StateFailing)
	if st := expect(StateFailed); !strings.Contains(st.Output, "refused") || st.Failures != 2 {
		t.Errorf("%+v", st)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func openFiles(t *testing.T) int {
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

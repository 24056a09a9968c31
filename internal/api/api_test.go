package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/api/apitest"
)

func TestMain(m *testing.M) {
	if sock := os.Getenv("API_TEST_ASK"); sock != "" {
		os.Exit(askAs(sock))
	}
	goleak.VerifyTestMain(m)
}

// serve runs a server on a fresh socket until the test ends.
func serve(t *testing.T, b api.Backend) string { t.Helper(); return serveFor(t, b, 0) }

func serveFor(t *testing.T, b api.Backend, patience time.Duration) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "api") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "s")
	s, err := api.NewServer(api.Config{Backend: b, Socket: sock, Group: "root", Patience: patience})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
		if _, err := os.Stat(sock); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket was left behind: %v", err)
		}
		os.RemoveAll(dir)
	})
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(sock); err == nil {
			return sock
		}
		if time.Now().After(deadline) {
			t.Fatal("the server does not listen")
		}
	}
}

func client(t *testing.T, sock string) *api.Client {
	c := api.Dial(sock)
	t.Cleanup(c.Close)
	return c
}

func TestTheFakeKeepsTheContract(t *testing.T) {
	apitest.Suite(t, func(*testing.T) api.Backend { return apitest.New() })
}

func TestTheClientOnASocketKeepsTheContract(t *testing.T) {
	apitest.Suite(t, func(t *testing.T) api.Backend { return client(t, serve(t, apitest.New())) })
}

// forwarder serves b to members over TCP and returns a client that passes requests on to it.
func forwarder(t *testing.T, b api.Backend, identify func(context.Context, net.Conn) (string, error)) *api.Client {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := api.NewServer(api.Config{Backend: b})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServeMembers(ctx, ln, identify) }()
	c := api.Forward("b", func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", ln.Addr().String())
	})
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func isA(context.Context, net.Conn) (string, error) { return "a", nil }

func TestARequestPassedOnByAMemberKeepsTheContract(t *testing.T) {
	apitest.Suite(t, func(t *testing.T) api.Backend { return forwarder(t, apitest.New(), isA) })
}

func TestTheKernelSaysWhoOrderedAndNotTheClient(t *testing.T) {
	f := apitest.New()
	c := client(t, serve(t, f))
	r := api.MoveRequest{Service: "db", Order: api.Order{Who: "mallory", Via: "b"}}
	if _, err := c.Switchover(t.Context(), r, nil); err != nil {
		t.Fatal(err)
	}
	if want := "switchover of db, a to b by root"; os.Getuid() == 0 && !strings.HasPrefix(f.Orders[0], want) || strings.Contains(f.Orders[0], "via") {
		t.Fatalf("recorded %q, want %q", f.Orders[0], want)
	}
}

func TestAMemberSaysWhoOrderedAndIsRecordedItself(t *testing.T) {
	f := apitest.New()
	c := forwarder(t, f, isA)
	if _, err := c.Switchover(t.Context(), api.MoveRequest{Service: "db", Order: api.Order{Who: "alice"}}, nil); err != nil {
		t.Fatal(err)
	}
	if want := "switchover of db, a to b by alice via a"; f.Orders[0] != want {
		t.Fatalf("recorded %q, want %q", f.Orders[0], want)
	}
}

func TestAPeerThatIsNoMemberIsRefused(t *testing.T) {
	f := apitest.New()
	c := forwarder(t, f, func(context.Context, net.Conn) (string, error) { return "", errors.New("its certificate is revoked") })
	_, err := c.Status(t.Context(), api.StatusQuery{})
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeDenied || !strings.Contains(e.Why, "revoked") {
		t.Fatalf("got %v", err)
	}
}

// askAs runs in a child that has another user: it asks for the status and prints how that ended.
func askAs(sock string) int {
	c := api.Dial(sock)
	_, err := c.Status(context.Background(), api.StatusQuery{})
	if err != nil {
		e := api.AsError(err)
		fmt.Printf("%s: %s\n", e.Code, e.Why)
		return api.ExitStatus(err)
	}
	fmt.Println("answered")
	return 0
}

func ask(t *testing.T, sock string, uid uint32, groups ...uint32) string {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(filepath.Dir(sock), "ask") // the test's own folder is not open to other users
	if err := os.WriteFile(exe, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = []string{"API_TEST_ASK=" + sock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: groups}}
	out, err := cmd.Output()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		t.Fatal(err)
	}
	return string(out)
}

func TestOnlyRootAndTheOperatorsGroupAreAnswered(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it starts processes of other users")
	}
	sock := serve(t, apitest.New()) // the group is root, 0
	if err := os.Chmod(filepath.Dir(sock), 0o755); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	if st, err := os.Stat(sock); err != nil || st.Mode().Perm() != 0o660 {
		t.Fatalf("mode of the socket: %v, %v", st.Mode(), err)
	}
	if got := ask(t, sock, nobody); !strings.HasPrefix(got, "denied: this user is neither root nor in the operators' group") {
		t.Errorf("nobody, by the file's mode: %q", got)
	}
	if got := ask(t, sock, nobody, 0); got != "answered\n" {
		t.Errorf("a member of the group: %q", got)
	}
	if err := os.Chmod(sock, 0o666); err != nil { // somebody opened it: the credentials still decide
		t.Fatal(err)
	}
	if got := ask(t, sock, nobody); !strings.HasPrefix(got, "denied: nobody is neither root nor in the group root") {
		t.Errorf("nobody, by credentials: %q", got)
	}
}

func raw(t *testing.T, sock, request string) (*http.Response, string) {
	t.Helper()
	c, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	go func() { _, _ = io.WriteString(c, request) }()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	return resp, string(b)
}

func post(path, body string) string {
	return "POST " + path + " HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: " +
		strconv.Itoa(len(body)) + "\r\n\r\n" + body
}

func TestWhatIsNotUnderstoodIsRefused(t *testing.T) {
	f := apitest.New()
	sock := serve(t, f)
	for _, c := range []struct {
		name, request string
		status        int
		says          string
	}{
		{"unknown path", "GET /v1/selfdestruct HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 404, "not known here"},
		{"wrong method", "GET /v1/switchover HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 404, "not known here"},
		{"unknown key", post("/v1/switchover", `{"service":"db","gently":true}`), 400, "gently"},
		{"two objects", post("/v1/switchover", `{"service":"db"}{}`), 400, "more than one object"},
		{"wrong type", post("/v1/switchover", `{"service":7}`), 400, "service"},
		{"no JSON", post("/v1/switchover", `service=db`), 400, "not understood"},
		{"form", strings.Replace(post("/v1/switchover", `{}`), "application/json", "text/plain", 1), 400, "application/json"},
		{"oversized body", post("/v1/spec/apply", `{"text":"`+strings.Repeat("x", api.MaxRequest)+`"}`), 400, "larger than 1048576 bytes"},
		{"version that is no number", "GET /v1/spec?version=x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 400, "want a number"},
	} {
		resp, body := raw(t, sock, c.request)
		if resp.StatusCode != c.status || !strings.Contains(body, c.says) {
			t.Errorf("%s: %d %q, want %d and %q", c.name, resp.StatusCode, body, c.status, c.says)
		}
	}
	if len(f.Orders) != 0 {
		t.Errorf("obeyed: %q", f.Orders)
	}
}

func TestTheClientRefusesAnOversizedSpecItself(t *testing.T) {
	c := client(t, serve(t, apitest.New()))
	_, err := c.Apply(t.Context(), api.ApplyRequest{Text: strings.Repeat("x", api.MaxRequest)}, nil)
	if api.ExitStatus(err) != api.ExitUsage {
		t.Fatalf("got %v", err)
	}
}

func TestASlowSenderDoesNotKeepOthersWaiting(t *testing.T) {
	sock := serve(t, apitest.New())
	slow, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := io.WriteString(slow, "POST /v1/switchover HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	if _, err := client(t, sock).Status(t.Context(), api.StatusQuery{}); err != nil {
		t.Fatal(err)
	}
}

// watched tells when a follower of events was given up.
type watched struct {
	*apitest.Fake
	ended chan error
}

func (w watched) Events(ctx context.Context, q api.EventQuery, yield func(api.Event) error) error {
	err := w.Fake.Events(ctx, q, yield)
	w.ended <- err
	return err
}

func TestAReaderThatStopsReadingIsGivenUp(t *testing.T) {
	f := watched{apitest.New(), make(chan error, 1)}
	sock := serveFor(t, f, 50*time.Millisecond)
	c, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, post("/v1/events", `{"follow":true}`)); err != nil {
		t.Fatal(err)
	}
	for i := range 2000 { // more than the socket's buffers hold
		f.Happen(strings.Repeat("much happens ", 100) + strconv.Itoa(i))
	}
	select {
	case err := <-f.ended:
		if err == nil {
			t.Error("the stream ended as if all was read")
		}
	case <-time.After(10 * time.Second):
		t.Error("the reader was not given up")
	}
	if _, err := client(t, sock).Status(t.Context(), api.StatusQuery{}); err != nil {
		t.Error(err)
	}
}

func TestARequestThatDoesNotArriveWholeIsRefused(t *testing.T) {
	f := apitest.New()
	sock := serveFor(t, f, 50*time.Millisecond)
	resp, body := raw(t, sock, strings.Replace(post("/v1/switchover", `{"service":"db"}`), "Content-Length: 16", "Content-Length: 17", 1))
	if resp.StatusCode != 400 || !strings.Contains(body, "did not arrive whole") || len(f.Orders) > 0 {
		t.Errorf("%d %s, obeyed %q", resp.StatusCode, body, f.Orders)
	}
}

func TestAnOrderEndsWhenTheClientGoesAway(t *testing.T) {
	f := apitest.New()
	f.Hang = make(chan struct{})
	c := client(t, serve(t, f))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.Switchover(ctx, api.MoveRequest{Service: "db"}, nil)
	if api.ExitStatus(err) != api.ExitTimeout {
		t.Fatalf("got %v, want a timeout", err)
	}
}

func TestEveryKindOfErrorHasItsExitStatusAndArrivesWhole(t *testing.T) {
	f := apitest.New()
	c := client(t, serve(t, f))
	for code, exit := range map[api.Code]int{api.CodeFailed: 1, api.CodeUsage: 2, api.CodeInvalid: 2, api.CodeNotFound: 2, api.CodeRefused: 3,
		api.CodeMoved: 3, api.CodeDenied: 3, api.CodeNoQuorum: 4, api.CodeUnreachable: 4, api.CodeTimeout: 5} {
		f.Fail = &api.Error{Code: code, What: "w", Why: "y", Do: "d", Problems: []api.Diagnostic{{Line: 3}}}
		for _, err := range []error{second(c.Status(t.Context(), api.StatusQuery{})), second(c.Wait(t.Context(), api.WaitRequest{}, nil))} {
			var e *api.Error
			if !errors.As(err, &e) || e.Code != code || e.What != "w" || e.Why != "y" || e.Do != "d" || len(e.Problems) != 1 || e.Exit != exit {
				t.Errorf("%s came as %#v", code, err)
			}
			if got := api.ExitStatus(err); got != exit {
				t.Errorf("%s: exit %d, want %d", code, got, exit)
			}
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestADeadDaemonIsUnreachable(t *testing.T) {
	dir := t.TempDir()
	_, err := api.Dial(filepath.Join(dir, "none")).Status(t.Context(), api.StatusQuery{})
	if api.ExitStatus(err) != api.ExitUnreachable || !strings.Contains(err.Error(), "systemctl start hanode") {
		t.Fatalf("got %v", err)
	}
}

func TestASecondServerOnTheSameSocketIsRefused(t *testing.T) {
	sock := serve(t, apitest.New())
	s, err := api.NewServer(api.Config{Backend: apitest.New(), Socket: sock})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another hanode answers") {
		t.Fatalf("got %v", err)
	}
	if _, err := client(t, sock).Version(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestASocketLeftByACrashIsReplaced(t *testing.T) {
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sock := filepath.Join(dir, "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	s, err := api.NewServer(api.Config{Backend: apitest.New(), Socket: sock, Group: "root"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	c := client(t, sock)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := c.Version(ctx); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestDurationsAreMillisecondsAndTimesAreRFC3339(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0", 250 * time.Millisecond: "250", 1500 * time.Microsecond: "1.5", -1: "0",
		-time.Millisecond: "-1", 4100 * time.Microsecond: "4.1", time.Hour: "3600000"} {
		b, err := json.Marshal(api.Ms(d))
		if err != nil || string(b) != want {
			t.Errorf("%v: %s, %v, want %s", d, b, err, want)
		}
		var m api.Millis
		if err := json.Unmarshal(b, &m); err != nil || m.D() != d.Round(time.Microsecond) {
			t.Errorf("%s came back as %v, %v", b, m.D(), err)
		}
	}
	var m api.Millis
	for _, bad := range []string{`"x"`, `1e300`, `-1e15`} {
		if err := json.Unmarshal([]byte(bad), &m); err == nil {
			t.Errorf("%s was taken for %v", bad, m.D())
		}
	}
	b, _ := json.Marshal(struct {
		T, Z api.Time
		L    api.List[string]
	}{T: api.At(apitest.Epoch0.In(time.FixedZone("x", 3600)))})
	if want := `{"T":"2026-03-01T03:08:02.000Z","Z":null,"L":[]}`; string(b) != want {
		t.Errorf("%s, want %s", b, want)
	}
}

func TestTheLastKnownStatusIsReadWithItsAge(t *testing.T) {
	dir := t.TempDir()
	s := apitest.Healthy()
	if err := api.SaveLastStatus(dir, &s); err != nil {
		t.Fatal(err)
	}
	got, err := api.LoadLastStatus(dir, apitest.Epoch0.Add(4*time.Minute))
	if err != nil || got.Source != api.SourceLastKnown || got.AgeMs.D() != 4*time.Minute || got.Cluster.Quorum {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, api.LastStatusFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.LoadLastStatus(dir, apitest.Epoch0); err == nil {
		t.Fatal("half a file was taken")
	}
}

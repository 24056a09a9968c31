package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/supervise/launch"
)

// MaxOutput bounds what is kept of a check's answer, in bytes.
const MaxOutput = 256

// kinds that this version can run.
var kinds = [...]string{"tcp", "http", "exec"}

// Check refuses a check that this version cannot run, and says what it can.
func Check(spec cluster.CheckSpec) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("check %q: "+format, append([]any{spec.Name}, args...)...)
	}
	switch spec.Kind {
	case "tcp":
		if _, err := tcpTarget(spec.Target); err != nil {
			return bad("%w", err)
		}
	case "http":
		if _, err := httpTarget(spec.Target); err != nil {
			return bad("%w", err)
		}
	case "exec":
		if len(spec.Argv) == 0 {
			return bad("exec needs a program and its arguments as a list")
		}
		if _, err := launch.LookPath(spec.Argv[0], nil); err != nil {
			return bad("exec: %w", err)
		}
	default:
		return bad("kind %q is not supported by this version: choose one of %v", spec.Kind, kinds)
	}
	if spec.Every <= 0 || spec.Timeout <= 0 {
		return bad("every = %v, timeout = %v: both must be above 0", spec.Every, spec.Timeout)
	}
	return nil
}

// tcpTarget: "5432", ":5432" and "host:5432"; without a host it is the node itself, because a check of the VIP from the
// active goes through loopback and proves nothing of the outside.
func tcpTarget(target string) (string, error) {
	if !strings.Contains(target, ":") {
		target = ":" + target
	}
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return "", fmt.Errorf("tcp = %q: give \"port\" or \"host:port\": %w", target, err)
	}
	if _, err := net.LookupPort("tcp", port); err != nil || port == "" {
		return "", fmt.Errorf("tcp = %q: %q is not a port", target, port)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// httpTarget: a URL, or a path on the node itself ("/health", ":8080/health").
func httpTarget(target string) (string, error) {
	switch {
	case strings.HasPrefix(target, "/"):
		target = "http://127.0.0.1" + target
	case strings.HasPrefix(target, ":"):
		target = "http://127.0.0.1" + target
	}
	u, err := url.Parse(target)
	if err != nil {
		return "", fmt.Errorf("http = %q: %w", target, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("http = %q: give a URL with http:// or https://, or \":port/path\" on the node itself", target)
	}
	return target, nil
}

// probe runs the check once, at most until ctx ends.
type probe func(ctx context.Context) Result

func newProbe(spec cluster.CheckSpec, d Deps) (probe, error) {
	if err := Check(spec); err != nil {
		return nil, err
	}
	switch spec.Kind {
	case "tcp":
		target, err := tcpTarget(spec.Target)
		return func(ctx context.Context) Result { return probeTCP(ctx, target) }, err
	case "http":
		target, err := httpTarget(spec.Target)
		return func(ctx context.Context) Result { return probeHTTP(ctx, target) }, err
	default:
		return func(ctx context.Context) Result { return probeExec(ctx, spec, d) }, nil
	}
}

func probeTCP(ctx context.Context, target string) Result {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", target)
	if err != nil {
		return failure(err)
	}
	conn.Close()
	return Result{OK: true, Output: "connected to " + target}
}

// probeHTTP is ok for status 200 to 399; redirects are not followed, certificates are not checked: it asks whether the
// server lives, not who it is.
func probeHTTP(ctx context.Context, target string) Result {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return failure(err)
	}
	req.Header.Set("User-Agent", "hanode-check")
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: insecure()},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return failure(err)
	}
	defer resp.Body.Close()
	line, _ := bufio.NewReaderSize(io.LimitReader(resp.Body, MaxOutput), MaxOutput).ReadString('\n')
	r := Result{OK: resp.StatusCode >= 200 && resp.StatusCode < 400, Output: clean(resp.Status + " " + line)}
	return r
}

// probeExec is ok for exit status 0. The program runs through the exec step: not real-time, in a group of its own, killed
// with all that it started when its time is over.
func probeExec(ctx context.Context, spec cluster.CheckSpec, d Deps) Result {
	prog := launch.Program{Self: d.Self, Argv: spec.Argv, Env: append(launch.BaseEnv("", ""), d.Env...)}
	if d.Group != nil {
		g, err := d.Group.Sub(groupOf(spec))
		if err != nil {
			return failure(err)
		}
		defer g.Close()
		prog.Cgroup, prog.Stay = g, true
	}
	res, err := launch.Run(ctx, prog, 4096)
	switch {
	case err != nil:
		return failure(err)
	case res.Code != 0:
		return Result{Output: clean(fmt.Sprintf("status %d: %s", res.Code, res.FirstLine(MaxOutput)))}
	}
	return Result{OK: true, Output: res.FirstLine(MaxOutput)}
}

func failure(err error) Result {
	if errors.Is(err, context.DeadlineExceeded) {
		return Result{Output: "no answer in time"}
	}
	return Result{Output: clean(err.Error())}
}

// clean makes one line of at most MaxOutput bytes of text that came from outside.
func clean(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return strings.ToValidUTF8(s[:min(len(s), MaxOutput)], "")
}

// once runs the probe with the check's time-out.
func once(ctx context.Context, p probe, timeout time.Duration) Result {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	began := time.Now()
	r := p(ctx)
	r.Took = time.Since(began)
	return r
}

package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// dialTCP succeeds if somebody accepts a connection. It is closed by a reset, so that it leaves no TIME-WAIT behind.
func dialTCP(ctx context.Context, target string) (string, error) {
	conn, err := dial(ctx, "tcp", target)
	if err != nil {
		return "", err
	}
	if c, ok := conn.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
	return "connected to " + conn.RemoteAddr().String(), conn.Close()
}

// dial connects, but not to itself: on one host, a connection to a port of the ephemeral range where nobody listens can
// meet itself (simultaneous open, RFC 9293 3.5).
func dial(ctx context.Context, network, target string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, target)
	if err != nil {
		return nil, err
	}
	if itself(conn) {
		conn.Close()
		return nil, fmt.Errorf("nobody listens at %s", target)
	}
	return conn, nil
}

func itself(c net.Conn) bool { return c.LocalAddr().String() == c.RemoteAddr().String() }

const (
	maxBody      = 4 << 10
	maxHeader    = 16 << 10
	maxRedirects = 5
)

var errRedirects = errors.New("more than 5 redirects")

// getHTTP succeeds if the answer to a GET is 200 to 399. A redirect is followed on the same host only; one that leads
// elsewhere is the answer. Proxies of the environment are not used. The certificate of a loopback address is not verified
// (no name fits, and an expired one is no reason for a failover); any other is.
func getHTTP(ctx context.Context, target string) (string, error) {
	u, err := url.Parse(target)
	if err != nil {
		return "", err
	}
	tr := &http.Transport{
		DialContext:            dial,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
		TLSClientConfig:        &tls.Config{InsecureSkipVerify: loopback(u.Hostname())},
	}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		switch {
		case req.URL.Host != u.Host || req.URL.Scheme != u.Scheme:
			return http.ErrUseLastResponse
		case len(via) > maxRedirects:
			return errRedirects
		}
		return nil
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("User-Agent", "hanode-check")
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	text := resp.Status
	if b := strings.TrimSpace(string(body)); b != "" {
		text += ": " + b
	}
	switch {
	case resp.StatusCode < 200 || resp.StatusCode > 399:
		return "", errors.New(text)
	case err != nil:
		return text, fmt.Errorf("the answer breaks off: %w", err)
	}
	return text, nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback() || host == "localhost"
}

package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
)

// Client asks a daemon. It is a Backend itself, so that whoever has a Backend need not know where it is.
type Client struct {
	where string // for errors
	hc    *http.Client
	tr    *http.Transport
}

var _ Backend = (*Client)(nil)

// Dial returns a client of the daemon that listens on a Unix socket. It connects with the first request.
func Dial(socket string) *Client {
	return newClient(socket, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", socket)
		return c, dialError(err, socket)
	})
}

// Forward returns a client that reaches another member through dial, which returns a connection on that member's api
// channel. Set Order.Who before passing an order on.
func Forward(member string, dial func(ctx context.Context) (net.Conn, error)) *Client {
	return newClient(member, func(ctx context.Context) (net.Conn, error) {
		c, err := dial(ctx)
		if err != nil {
			return nil, &Error{Code: CodeUnreachable, What: member + " cannot be reached", Why: err.Error(),
				Do: "hanode status", cause: err}
		}
		return c, nil
	})
}

func newClient(where string, dial func(context.Context) (net.Conn, error)) *Client {
	tr := &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConnsPerHost: 2,
		DisableCompression:  true,
	}
	return &Client{where: where, hc: &http.Client{Transport: tr}, tr: tr}
}

// Close drops idle connections.
func (c *Client) Close() { c.tr.CloseIdleConnections() }

// dialError says what to do when nobody answers on the socket, or when this user may not connect.
func dialError(err error, socket string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrPermission):
		e := Denied("this user is neither root nor in the operators' group, to which "+socket+" belongs",
			"usermod -aG "+DefaultGroup+" USER, then log in again; or use sudo")
		e.cause = err
		return e
	}
	return &Error{Code: CodeUnreachable, What: "hanode does not answer on this machine", Why: err.Error(),
		Do: "systemctl start hanode, then hanode status (or choose the daemon with --socket)", cause: err}
}

// failed makes an *Error of what net/http returns.
func (c *Client) failed(ctx context.Context, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if ctx.Err() != nil {
		return AsError(context.Cause(ctx))
	}
	return &Error{Code: CodeUnreachable, What: "the connection to hanode (" + c.where + ") broke", Why: err.Error(),
		Do: "hanode status; an order that had been given may still be carried out: hanode events", cause: err}
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	var rd io.Reader
	if body != nil {
		rd = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://hanode"+path, rd)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.hc.Do(req)
	if err != nil {
		return nil, c.failed(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, MaxLine))
	var eb errorBody
	if err := json.Unmarshal(b, &eb); err != nil || eb.Error == nil {
		return nil, &Error{Code: CodeFailed, What: fmt.Sprintf("%s answered %q to %s", c.where, resp.Status, path),
			Why: fmt.Sprintf("%.200q", b), Do: "compare the versions: hanode version"}
	}
	return nil, eb.Error
}

func getOne[A any](ctx context.Context, c *Client, path string) (*A, error) {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxReply+1))
	switch {
	case err != nil:
		return nil, c.failed(ctx, err)
	case len(b) > MaxReply:
		return nil, Errorf(CodeFailed, "%s answered with more than %d bytes to %s", c.where, MaxReply, path)
	}
	a := new(A)
	if err := json.Unmarshal(b, a); err != nil {
		return nil, Errorf(CodeFailed, "the answer of %s to %s: %w", c.where, path, err)
	}
	return a, nil
}

// stream sends an order and reads its lines until the end.
func (c *Client) stream(ctx context.Context, path string, req any, each func(frame) error) (json.RawMessage, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, Errorf(CodeFailed, "write the request: %w", err)
	}
	if len(body) > MaxRequest {
		return nil, &Error{Code: CodeUsage, What: "request refused", Why: fmt.Sprintf("it has %d bytes; at most %d are taken", len(body), MaxRequest),
			Do: "make the spec smaller; large things belong into files that it names"}
	}
	resp, err := c.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(make([]byte, 0, 4096), MaxLine+1)
	for sc.Scan() {
		var f frame
		if err := json.Unmarshal(sc.Bytes(), &f); err != nil {
			return nil, Errorf(CodeFailed, "a line of %s: %w", c.where, err)
		}
		switch {
		case f.Error != nil:
			return nil, f.Error
		case f.Result != nil:
			return f.Result, nil
		}
		if err := each(f); err != nil {
			return nil, err
		}
	}
	err = sc.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return nil, c.failed(ctx, err)
}

func send[A any](ctx context.Context, c *Client, path string, req any, p Progress) (*A, error) {
	raw, err := c.stream(ctx, path, req, func(f frame) error {
		if f.Step != nil && p != nil {
			p(*f.Step)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	a := new(A)
	if err := json.Unmarshal(raw, a); err != nil {
		return nil, Errorf(CodeFailed, "the answer of %s to %s: %w", c.where, path, err)
	}
	return a, nil
}

func (c *Client) Version(ctx context.Context) (*Version, error) {
	return getOne[Version](ctx, c, pathVersion)
}

func (c *Client) Status(ctx context.Context, q StatusQuery) (*Status, error) {
	path := pathStatus
	if q.Local {
		path += "?local=true"
	}
	return getOne[Status](ctx, c, path)
}

func (c *Client) Explain(ctx context.Context, target string) (*Explanation, error) {
	return getOne[Explanation](ctx, c, pathExplain+"?target="+url.QueryEscape(target))
}

func (c *Client) Events(ctx context.Context, q EventQuery, yield func(Event) error) error {
	_, err := c.stream(ctx, pathEvents, q, func(f frame) error {
		if f.Event == nil {
			return nil
		}
		return yield(*f.Event)
	})
	return err
}

func (c *Client) Alarms(ctx context.Context) ([]Alarm, error) {
	l, err := getOne[[]Alarm](ctx, c, pathAlarms)
	return deref(l), err
}

func (c *Client) Wait(ctx context.Context, r WaitRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathWait, r, p)
}

func (c *Client) Leader(ctx context.Context) (*Leadership, error) {
	return getOne[Leadership](ctx, c, pathLeader)
}

func (c *Client) DebugBundle(ctx context.Context, w io.Writer) error {
	return c.download(ctx, pathBundle, w)
}

func (c *Client) download(ctx context.Context, path string, w io.Writer) error {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return c.failed(ctx, err)
	}
	return nil
}

func (c *Client) Spec(ctx context.Context, version uint64) (*SpecText, error) {
	return getOne[SpecText](ctx, c, pathSpec+"?version="+strconv.FormatUint(version, 10))
}

func (c *Client) SpecLog(ctx context.Context) ([]SpecChange, error) {
	l, err := getOne[[]SpecChange](ctx, c, pathSpecLog)
	return deref(l), err
}

func (c *Client) Apply(ctx context.Context, r ApplyRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathApply, r, p)
}

func (c *Client) Switchover(ctx context.Context, r MoveRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathSwitchover, r, p)
}

func (c *Client) Failover(ctx context.Context, r MoveRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathFailover, r, p)
}

func (c *Client) Failback(ctx context.Context, r MoveRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathFailback, r, p)
}

func (c *Client) Recover(ctx context.Context, r RecoverRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathRecover, r, p)
}

func (c *Client) Force(ctx context.Context, r ForceRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathForce, r, p)
}

func (c *Client) Service(ctx context.Context, r ServiceRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathService, r, p)
}

func (c *Client) Pause(ctx context.Context, r PauseRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathPause, r, p)
}

func (c *Client) Resume(ctx context.Context, r PauseRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathResume, r, p)
}

func (c *Client) AckAlarm(ctx context.Context, r AckRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathAck, r, p)
}

func (c *Client) TokenCreate(ctx context.Context, r TokenRequest) (*Token, error) {
	return send[Token](ctx, c, pathToken, r, nil)
}

func (c *Client) Members(ctx context.Context) ([]Member, error) {
	l, err := getOne[[]Member](ctx, c, pathMembers)
	return deref(l), err
}

func (c *Client) MemberSet(ctx context.Context, r MemberRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathSet, r, p)
}

func (c *Client) MemberReplace(ctx context.Context, r MemberRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathReplace, r, p)
}

func (c *Client) MemberRemove(ctx context.Context, r MemberRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathRemove, r, p)
}

func (c *Client) Drain(ctx context.Context, r MemberRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathDrain, r, p)
}

func (c *Client) Undrain(ctx context.Context, r MemberRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathUndrain, r, p)
}

func (c *Client) TransferLeader(ctx context.Context, r LeaderRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathTransfer, r, p)
}

func (c *Client) Leave(ctx context.Context, r LeaveRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathLeave, r, p)
}

func deref[T any](l *[]T) []T {
	if l == nil {
		return nil
	}
	return *l
}

package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// call and answer are what travels on the socket pair between the lab and the first process of a host: a stream of
// JSON objects. Both ends are the same binary, so there is no version.
type call struct {
	ID   uint64          `json:"id"`
	Op   string          `json:"op"`
	Args json.RawMessage `json:"args,omitempty"`
}

type answer struct {
	ID     uint64          `json:"id"`
	Err    string          `json:"err,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// errGone is returned for calls to a host whose first process is no more.
var errGone = errors.New("the host is dead")

// caller is the lab's end.
type caller struct {
	conn net.Conn

	mu      sync.Mutex
	enc     *json.Encoder
	next    uint64
	waiting map[uint64]chan answer
	gone    bool
	done    chan struct{} // closed when the reader has ended
}

func newCaller(conn net.Conn) *caller {
	c := &caller{conn: conn, enc: json.NewEncoder(conn), waiting: map[uint64]chan answer{}, done: make(chan struct{})}
	go c.read()
	return c
}

func (c *caller) read() {
	defer close(c.done)
	dec := json.NewDecoder(c.conn)
	for {
		var a answer
		err := dec.Decode(&a)
		c.mu.Lock()
		if err != nil {
			c.gone = true
			for _, ch := range c.waiting {
				close(ch)
			}
			c.waiting = nil
			c.mu.Unlock()
			return
		}
		ch := c.waiting[a.ID]
		delete(c.waiting, a.ID)
		c.mu.Unlock()
		if ch != nil {
			ch <- a
		}
	}
}

// call asks for op and decodes the answer into result, unless that is nil. It returns when the answer is there, the
// host is dead or ctx ends; in the last case the host may still carry it out.
func (c *caller) call(ctx context.Context, op string, args, result any) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	ch := make(chan answer, 1)
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return fmt.Errorf("%s: %w", op, errGone)
	}
	c.next++
	id := c.next
	c.waiting[id] = ch
	err = c.enc.Encode(call{ID: id, Op: op, Args: raw})
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	select {
	case a, ok := <-ch:
		if !ok {
			return fmt.Errorf("%s: %w", op, errGone)
		}
		if a.Err != "" {
			return fmt.Errorf("%s: %s", op, a.Err)
		}
		if result == nil || len(a.Result) == 0 {
			return nil
		}
		return json.Unmarshal(a.Result, result)
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
		return fmt.Errorf("%s: %w", op, ctx.Err())
	}
}

// close ends the host: its first process sees the end of the stream and exits, and the kernel kills the rest.
func (c *caller) close() {
	_ = c.conn.Close()
	<-c.done
}

// handler carries out one operation within a host.
type handler func(args json.RawMessage) (any, error)

// serve answers calls until the lab closes its end, which is how a host ends when the lab dies in any way.
func serve(conn net.Conn, ops map[string]handler) error {
	var mu sync.Mutex
	enc := json.NewEncoder(conn)
	dec := json.NewDecoder(conn)
	for {
		var q call
		if err := dec.Decode(&q); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		go func() {
			a := answer{ID: q.ID}
			if h := ops[q.Op]; h == nil {
				a.Err = "unknown operation " + q.Op
			} else if res, err := h(q.Args); err != nil {
				a.Err = err.Error()
			} else if res != nil {
				a.Result, err = json.Marshal(res)
				if err != nil {
					a.Err = err.Error()
				}
			}
			mu.Lock()
			defer mu.Unlock()
			_ = enc.Encode(a) // the lab is gone: the next Decode says so
		}()
	}
}

// op adapts a typed function to a handler.
func op[A any, R any](f func(A) (R, error)) handler {
	return func(raw json.RawMessage) (any, error) {
		var a A
		if err := json.Unmarshal(raw, &a); err != nil {
			return nil, err
		}
		return f(a)
	}
}

// do adapts a typed function without a result.
func do[A any](f func(A) error) handler {
	return func(raw json.RawMessage) (any, error) {
		var a A
		if err := json.Unmarshal(raw, &a); err != nil {
			return nil, err
		}
		return nil, f(a)
	}
}

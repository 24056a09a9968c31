package memory_test

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication/memory"
	"github.com/hanode/hanode/replication/memory/region"
	"github.com/hanode/hanode/replication/memory/wire"
)

// Bad input gets an error that names the region and says what to do, and loses nothing.
func TestBadInputIsRefusedAndLosesNothing(t *testing.T) {
	_, a, _ := pair(t)
	app := dial(t, a)
	r := open(t, app, "calls", region.Options{Size: 8192, Layout: 3})
	put(r, 0, 42)
	if err := r.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	other := dial(t, a)
	for what, c := range map[string]struct {
		app  *region.App
		name string
		opt  region.Options
		kind error
		says []string
	}{
		"a size of zero":              {other, "more", region.Options{}, region.ErrTooBig, []string{"more", "0 bytes", "ask for"}},
		"a size beyond the limit":     {other, "more", region.Options{Size: 2 << 20}, region.ErrTooBig, []string{"more", "spec", "raise"}},
		"a region not in the spec":    {other, "nosuch", region.Options{Size: 1}, region.ErrUnknown, []string{"nosuch", "add memory"}},
		"a name that leaves":          {other, "../x", region.Options{Size: 1}, region.ErrUnknown, []string{"../x"}},
		"the same name twice":         {app, "calls", region.Options{Size: 1}, region.ErrBusy, []string{"calls", "already"}},
		"another process's region":    {other, "calls", region.Options{Size: 1}, region.ErrBusy, []string{"calls", "belongs to process", "end that one"}},
		"a negative size (of an int)": {other, "more", region.Options{Size: -1}, region.ErrTooBig, []string{"more"}},
	} {
		_, err := c.app.Open(c.name, c.opt)
		if !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", what, err)
			continue
		}
		for _, w := range c.says {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", what, err, w)
			}
		}
	}
	app.Close() // the region is free again
	within(t, "the region is free again", func() bool { return a.Status().Regions[0].Owner == 0 })
	if _, err := other.Open("calls", region.Options{Size: 8192, Layout: 4}); !errors.Is(err, region.ErrLayout) || !strings.Contains(err.Error(), "version 3") {
		t.Errorf("another layout version: %v", err)
	}
	r2 := open(t, other, "calls", region.Options{Size: 8192, Layout: 4, AnyLayout: true})
	if _, layout := r2.Image(); get(r2, 0) != 42 || layout != 3 {
		t.Errorf("after all that the region has %d, layout %d", get(r2, 0), layout)
	}
	if err := r2.Checkpoint(); err != nil { // converted
		t.Fatal(err)
	}
	if got := a.Status().Regions[0].Image.Layout; got != 4 {
		t.Errorf("layout %d after the conversion", got)
	}
	if err := r2.Append(make([]byte, 40<<10)); err == nil {
		t.Error("a record of 40 KiB was taken")
	}
}

// raw speaks to the server without a library.
func raw(t *testing.T, m *member) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: m.sock, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

func say(t *testing.T, c *net.UnixConn, b []byte) (wire.App, bool) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		return wire.App{}, false
	}
	buf := make([]byte, wire.MaxApp)
	n, err := c.Read(buf)
	if err != nil || n == 0 {
		return wire.App{}, false
	}
	var m wire.App
	if err := wire.ParseApp(buf[:n], &m); err != nil {
		t.Fatal(err)
	}
	return m, true
}

func TestFramesThatLieAreRefused(t *testing.T) {
	_, a, _ := pair(t)
	hello := wire.AppendApp(nil, &wire.App{Kind: wire.Hello, ID: 1, Value: wire.Version})
	long := append([]byte(nil), hello...)
	long[0]++
	for what, b := range map[string][]byte{
		"a length that is not the message's": long,
		"a length of 4 GiB":                  append([]byte{255, 255, 255, 255}, hello[4:]...),
		"a piece of a header":                hello[:20],
		"no hello":                           wire.AppendApp(nil, &wire.App{Kind: wire.Open, ID: 1}),
		"another version":                    wire.AppendApp(nil, &wire.App{Kind: wire.Hello, ID: 1, Value: 99}),
	} {
		if m, ok := say(t, raw(t, a), b); !ok || m.Status != wire.Invalid || !strings.Contains(string(m.Body), "db") {
			t.Errorf("%s: %+v %s", what, m, m.Body)
		}
	}
	c := raw(t, a)
	say(t, c, hello)
	o := wire.Opening{Layout: 1, Name: "calls"}
	open, ok := say(t, c, wire.AppendApp(nil, &wire.App{Kind: wire.Open, ID: 2, Value: 8192, Body: o.Append(nil)}))
	if !ok || open.Status != wire.OK {
		t.Fatalf("%+v %s", open, open.Body)
	}
	before := a.Status().Regions[0].Image
	part := func(p ...wire.Part) []byte {
		return wire.AppendApp(nil, &wire.App{Kind: wire.Checkpoint, ID: 3, Body: wire.AppendParts(nil, p)})
	}
	for what, b := range map[string][]byte{
		"more blocks than the region":    part(wire.Part{Region: open.Region, Blocks: 3}),
		"beyond the staging memory":      part(wire.Part{Region: open.Region, Blocks: 1, Offset: 1 << 40}),
		"an offset that wraps":           part(wire.Part{Region: open.Region, Blocks: 1, Offset: ^uint64(0) - 4096}),
		"blocks out of order":            part(wire.Part{Region: open.Region, Blocks: 2}), // both say block 0
		"a region twice":                 part(wire.Part{Region: open.Region}, wire.Part{Region: open.Region}),
		"a region that was not opened":   part(wire.Part{Region: 2}),
		"no region":                      wire.AppendApp(nil, &wire.App{Kind: wire.Checkpoint, ID: 3}),
		"half a part":                    wire.AppendApp(nil, &wire.App{Kind: wire.Checkpoint, ID: 3, Body: make([]byte, 20)}),
		"a question of another version":  wire.AppendApp(nil, &wire.App{Kind: 99, ID: 3, Region: open.Region}),
		"memory without the flag for it": wire.AppendApp(nil, &wire.App{Kind: wire.Open, ID: 3, Value: 1, Body: (&wire.Opening{Flags: wire.OpenBring, Name: "more"}).Append(nil)}),
		"an open with a body of 3 bytes": wire.AppendApp(nil, &wire.App{Kind: wire.Open, ID: 3, Value: 1, Body: []byte("abc")}),
		"a growth beyond the limit":      wire.AppendApp(nil, &wire.App{Kind: wire.Grow, ID: 3, Region: open.Region, Value: 1 << 50}),
		"a growth to less":               wire.AppendApp(nil, &wire.App{Kind: wire.Grow, ID: 3, Region: open.Region, Value: 1}),
	} {
		m, ok := say(t, c, b)
		if !ok || m.Status == wire.OK || len(m.Body) == 0 {
			t.Errorf("%s: %v %+v %s", what, ok, m, m.Body)
		}
	}
	if after := a.Status().Regions[0].Image; after != before {
		t.Errorf("something was taken: %+v", after)
	}
	// It dies in the middle of a checkpoint: nothing of it counts, and the region is free.
	c.Close()
	within(t, "the region is free", func() bool { return a.Status().Regions[0].Owner == 0 })
}

func TestAForeignProcessIsTurnedAway(t *testing.T) {
	admit := memory.OfService("db", "/hanode-a/db", []uint32{1000})
	for what, c := range map[string]struct {
		p    memory.Peer
		says string
	}{
		"another user":   {memory.Peer{PID: 7, UID: 1001, Cgroup: "/hanode-a/db/run/x"}, "user 1001"},
		"another cgroup": {memory.Peer{PID: 7, UID: 1000, Cgroup: "/hanode-a/dbx"}, "start it as a process of the service"},
		"no cgroup":      {memory.Peer{PID: 7, UID: 1000}, "cgroup"},
	} {
		if err := admit(c.p); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := admit(memory.Peer{PID: 7, UID: 1000, Cgroup: "/hanode-a/db/run/x"}); err != nil {
		t.Error(err)
	}
	m := start(t, 1, tmp(t), func(c *memory.Config) {
		c.Admit = memory.OfService("db", "/no/such/cgroup", nil)
	})
	if _, err := region.Dial(m.sock); !errors.Is(err, region.ErrForeign) || !strings.Contains(err.Error(), "cgroup") {
		t.Errorf("this process: %v", err)
	}
}

// A standby whose application reads another layout refuses the region long before it would have to serve with it.
func TestAStandbyWithAnotherLayoutIsNeverInSync(t *testing.T) {
	l := &log{}
	a, b := start(t, 1, tmp(t)), start(t, 2, tmp(t))
	l.lead(t, a, b)
	open(t, dial(t, b), "calls", region.Options{Size: 4096, Layout: 2})
	app := dial(t, a)
	r := open(t, app, "calls", region.Options{Size: 4096, Layout: 1})
	connect(t, a, b)
	within(t, "the active sees the refusal", func() bool {
		for _, p := range a.Status().Peers {
			if p.State == "refused" && strings.Contains(p.Refused, "layout version 1") && strings.Contains(p.Refused, "version 2") {
				return true
			}
		}
		return false
	})
	if err := r.Checkpoint(); err != nil { // alone, as the log says
		t.Fatal(err)
	}
	select {
	case m := <-a.caught:
		t.Errorf("member %d is proposed to be in sync", m)
	default:
	}
}

func TestAMemberOfAnotherServiceIsNotSpokenTo(t *testing.T) {
	a := start(t, 1, tmp(t))
	b := start(t, 2, tmp(t), func(c *memory.Config) { c.Service = "web" })
	connect(t, a, b)
	<-a.dial
	if len(a.Status().Peers) != 0 {
		t.Error("it is a peer")
	}
}

func TestAServerDoesNotLeadInAnOlderEpochThanItSaw(t *testing.T) {
	dir := tmp(t)
	l := &log{epoch: 8}
	a := start(t, 1, dir)
	l.lead(t, a)
	a.end(t)
	a2 := start(t, 1, dir)
	if _, err := a2.Lead(cluster.Epoch(9), 1); err != nil {
		t.Errorf("the same: %v", err)
	}
	if _, err := a2.Lead(cluster.Epoch(8), 1); err == nil || !strings.Contains(err.Error(), "epoch 9 was seen") {
		t.Errorf("an older one: %v", err)
	}
	os.RemoveAll(dir)
}

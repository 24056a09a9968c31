package stream

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/journal/disk"
	"github.com/hanode/hanode/replication/resync"
	"github.com/hanode/hanode/replication/stream/replica"
	"github.com/hanode/hanode/replication/tree"
)

const (
	childEnv    = "HANODE_STREAM_CHILD"
	crashFiles  = 4 // writers, each with a file of its own
	recordSize  = 96
	renameEvery = 16
	tempEvery   = 7
	syncEvery   = 5
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := childMain(dir); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// order is what the parent tells a child.
type order struct {
	Cmd   string
	Facts replica.Facts `json:",omitzero"`
	Epoch cluster.Epoch `json:",omitempty"`
	Addr  string        `json:",omitempty"`
}

// child is a volume server without a mount: journal, tree and stream, and writers that use the log as a file system does.
type child struct {
	dir   string
	s     *Stream
	t     *tree.Tree
	mode  replica.Mode
	out   sync.Mutex
	w     *bufio.Writer
	acked [crashFiles]atomic.Int64
	epoch atomic.Int64
	dirMu sync.Mutex // operations on the root directory are applied in their order
}

func (c *child) say(format string, a ...any) {
	c.out.Lock()
	defer c.out.Unlock()
	fmt.Fprintf(c.w, format+"\n", a...)
	c.w.Flush()
}

func childMain(dir string) error {
	no, _ := strconv.Atoi(os.Getenv(childEnv + "_NO"))
	mode, _ := replica.ParseMode(os.Getenv(childEnv + "_MODE"))
	if err := tree.Make(dir); err != nil {
		return err
	}
	t, err := tree.Open(dir, tree.Options{})
	if err != nil {
		return err
	}
	// Small segments: in hundreds of rounds the journal must not matter to the disk.
	j, _, err := journal.Open(filepath.Join(dir, "journal"), disk.OS{}, journal.Limits{Cluster: "c", Service: "s", Size: 16 << 20, Segment: 4 << 20})
	if err != nil {
		return err
	}
	st, err := journal.LoadState(disk.OS{}, dir, "c")
	if errors.Is(err, journal.ErrNoState) {
		st, err = journal.State{Cluster: "c"}, nil
	}
	if err != nil {
		return err
	}
	c := &child{dir: dir, t: t, mode: mode, w: bufio.NewWriter(os.Stdout)}
	c.s, err = New(Config{Self: replica.Run{Member: cluster.MemberNo(no), Inc: 1}, Cluster: "c", Service: "s", AloneDisk: true, Journal: j, State: st,
		Volumes: []Volume{{"v", mode, t}}, Now: boottime, Checkpoint: 150 * time.Millisecond, Dirty: os.Getenv(childEnv+"_DIRTY") != "",
		Store:    func(x journal.State) error { return journal.StoreState(disk.OS{}, dir, x) },
		Resync:   &resync.Volumes{Trees: []*tree.Tree{t}},
		SetAside: func(from, to uint64) error { c.say("aside %d %d", from, to); return nil },
		Events: Events{
			CaughtUp:    func(r replica.Run, e cluster.Epoch, g cluster.Generation) { c.say("caughtup %d %d %d", r.Member, e, g) },
			WantDegrade: func(m cluster.MemberNo, why string) { c.say("degrade %d", m) },
			Dial:        func(m cluster.MemberNo) { c.say("dial %d", m) },
			Deposed:     func(why string) { c.say("deposed %s", why) },
			Failed:      func(err error) { c.say("failed %v", err) },
		}})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go j.Run(ctx)
	go c.s.Run(ctx)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.s.AddConn(0, conn)
		}
	}()
	c.say("listening %s", l.Addr())
	in := json.NewDecoder(os.Stdin)
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			return nil // the parent has gone
		}
		switch o.Cmd {
		case "facts":
			c.s.SetFacts(o.Facts)
		case "conn":
			go func() {
				if conn, err := net.DialTimeout("tcp", o.Addr, time.Second); err == nil {
					c.s.AddConn(0, conn)
				}
			}()
		case "lead":
			go func() {
				_, err := c.s.Lead(ctx, o.Epoch)
				if err == nil {
					c.epoch.Store(int64(o.Epoch))
				}
				c.say("led %d %v", o.Epoch, err)
			}()
		case "write":
			for w := range crashFiles {
				go c.writer(w)
			}
		case "status":
			s := c.s.Status()
			c.say("status %d %d %v", s.Position.Seq, s.Applied, s.Leads)
		}
	}
}

// op carries one operation through the log, as a file system does.
func (c *child) op(op replication.Op) error {
	l := c.s.Log(1)
	op.Time = time.Now().UnixNano()
	if op.Kind != replication.Write {
		c.dirMu.Lock()
		defer c.dirMu.Unlock()
	}
	seq, err := l.Submit(&op)
	if err != nil {
		return err
	}
	if err := l.Wait(seq); err != nil {
		return err
	}
	_, err = c.t.Apply(&op)
	l.Done(seq, err)
	return err
}

// writer appends records to its file, renames it, and makes and removes other files, until something fails.
func (c *child) writer(w int) {
	name, id, next, err := c.find(w)
	if err != nil {
		c.say("broken %v", err)
		return
	}
	c.acked[w].Store(next - 1)
	if id == 0 {
		id = c.t.NextID()
		name = fmt.Sprintf("w%d-0", w)
		if c.op(replication.Op{Kind: replication.Create, ID: id, Parent: 1, Name: name, Mode: unix.S_IFREG | 0o644}) != nil {
			return
		}
	}
	for ; ; next++ {
		if next%renameEvery == 0 && next > 0 {
			to := fmt.Sprintf("w%d-%d", w, next/renameEvery)
			if to != name {
				if c.op(replication.Op{Kind: replication.Rename, ID: id, Parent: 1, Name: name, NewParent: 1, NewName: to}) != nil {
					return
				}
				name = to
				c.say("r %d %d", w, next/renameEvery)
			}
		}
		if next%tempEvery == 0 {
			x := c.t.NextID()
			temp := fmt.Sprintf("t%d-%d-%d", w, next, x)
			if c.op(replication.Op{Kind: replication.Create, ID: x, Parent: 1, Name: temp, Mode: unix.S_IFREG | 0o600}) != nil ||
				c.op(replication.Op{Kind: replication.Unlink, ID: x, Parent: 1, Name: temp}) != nil {
				return
			}
			c.say("u %s", temp)
		}
		if c.op(replication.Op{Kind: replication.Write, ID: id, Off: next * recordSize, Data: c.record(w, next)}) != nil {
			return
		}
		c.acked[w].Store(next)
		c.say("a %d %d %d", w, next, c.epoch.Load())
		if next%syncEvery == 0 {
			if c.s.Log(1).Sync() != nil {
				return
			}
			c.say("s %d %d", w, next)
		}
	}
}

// record names its writer and number, the epoch, and what of the other files was acknowledged before: a copy that holds it must hold that too.
func (c *child) record(w int, n int64) []byte {
	s := fmt.Sprintf("%d %08d %08d", w, n, c.epoch.Load())
	for i := range c.acked {
		s += fmt.Sprintf(" %08d", c.acked[i].Load())
	}
	return []byte(s + strings.Repeat(" ", recordSize-1-len(s)) + "\n")
}

// find looks for the file of a writer in the tree.
func (c *child) find(w int) (name string, id replication.FileID, next int64, err error) {
	list, err := c.t.ReadDir(1, 0, 10000)
	if err != nil {
		return "", 0, 0, err
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name, fmt.Sprintf("w%d-", w)) {
			st, err := c.t.Stat(e.ID)
			return e.Name, e.ID, int64(st.Size) / recordSize, err
		}
	}
	return "", 0, 0, nil
}

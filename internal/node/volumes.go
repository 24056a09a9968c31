package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/internal/cgroup"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/volserver"
)

// volumes is a service's data on this node: it keeps a volume server running, as standby unless the service's runner makes it the active, and carries
// what it says to the core and what the log says to it.
type volumes struct {
	n     *Node
	s     *service
	group *cgroup.Group
	dir   string // what this node remembers of it

	mu     sync.Mutex
	server *volserver.Server // nil: none that has opened its copy
	epoch  cluster.Epoch     // that it leads; 0: standby
	ending bool              // its end was ordered
	facts  core.Facts
	told   chan struct{} // closed and replaced when facts or server change
	why    string        // why there is no server
	last   volserver.Status
	lastAt time.Time
	raws   map[uint64]*link.Raw
	dials  map[cluster.MemberNo]bool
	nextID uint64
	off    bool // disconnected by an operator
}

// kept is what a node remembers of a service's volumes: where they were mounted, and that its backing directories were made once, so that one that is
// missing is a disk that is not mounted, and is not filled anew.
type kept struct {
	Mounts []string `json:"mounts"`
	Made   []string `json:"made"`
	Off    bool     `json:"off"` // an operator keeps this copy away from the others
}

func newVolumes(n *Node, s *service) (*volumes, error) {
	g, err := n.root.Group(s.name + ".volumes")
	if err != nil {
		return nil, err
	}
	v := &volumes{n: n, s: s, group: g, dir: filepath.Join(n.dir.Path, "volumes"), told: make(chan struct{}), raws: map[uint64]*link.Raw{}, dials: map[cluster.MemberNo]bool{}}
	return v, nil
}

// catchUp takes what the log says now. From when the service is known to the daemon, each change is told.
func (v *volumes) catchUp() {
	_ = v.n.m.On(func(c *core.Core) {
		if f, ok := c.Facts(v.s.no); ok {
			v.SetFacts(f)
		}
	})
}

// changed wakes those that wait. mu is held.
func (v *volumes) changed() {
	close(v.told)
	v.told = make(chan struct{})
}

// wait waits until ok, which is called with mu held, says so.
func (v *volumes) wait(ctx context.Context, ok func() bool) error {
	for {
		v.mu.Lock()
		done, told, why := ok(), v.told, v.why
		v.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-told:
		case <-ctx.Done():
			if why != "" {
				return errors.New(why)
			}
			return ctx.Err()
		}
	}
}

// SetFacts takes what the log says. It runs on the loop.
func (v *volumes) SetFacts(f core.Facts) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.facts = f
	if v.server != nil {
		v.server.SetFacts(wireFacts(f))
	}
	v.changed()
}

func wireFacts(f core.Facts) volserver.Facts {
	out := volserver.Facts{Epoch: f.Epoch, Grant: f.Grant, Closed: f.Closed, Gen: f.Gen, Holder: volserver.Run{Member: f.Holder.Node, Inc: f.Holder.Inc}, InSync: f.InSync,
		Sticky: f.Sticky, Alone: f.Alone, Rebooted: f.Rebooted, Forced: f.Forced, LogTime: f.LogTime}
	for _, m := range f.Members {
		out.Peers = append(out.Peers, volserver.Peer{Run: volserver.Run{Member: m.Node, Inc: m.Inc}, ID: m.ID, Name: m.Name})
	}
	return out
}

// GoAlone passes the core's order on. It runs on the loop.
func (v *volumes) GoAlone() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.server != nil {
		v.server.Alone()
	}
}

// Run keeps a volume server running until ctx ends.
func (v *volumes) Run(ctx context.Context) {
	for wait := time.Duration(0); ctx.Err() == nil; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		srv, err := v.launch(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			v.n.raise("volume", v.s.name, "crit", "the volumes of "+v.s.name+" are not served here: "+err.Error(), "mend what it names; it is tried again by itself")
			v.mu.Lock()
			v.why = err.Error()
			v.changed()
			v.mu.Unlock()
			wait = min(max(2*wait, 250*time.Millisecond), 10*time.Second)
			continue
		}
		v.n.clear("volume", v.s.name)
		wait = 0
		if ended := v.watch(ctx, srv); !ended {
			return
		}
	}
}

// watch follows a volume server to its end. It says whether another one is to be started.
func (v *volumes) watch(ctx context.Context, srv *volserver.Server) bool {
	poll := time.NewTicker(time.Second)
	defer poll.Stop()
	for {
		select {
		case <-srv.Done():
			srv.Wait()
			v.over(srv)
			return ctx.Err() == nil
		case <-ctx.Done():
			v.stop(srv)
			srv.Wait()
			v.over(srv)
			return false
		case <-poll.C:
			v.poll(ctx, srv)
		}
	}
}

// stop ends the server at the end of the service here: a standby in good order, an active fenced.
func (v *volumes) stop(srv *volserver.Server) {
	v.mu.Lock()
	v.ending = true
	leads := v.epoch != 0
	v.mu.Unlock()
	c, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var err error
	if leads {
		err = srv.Fence(c, "the service ends here")
	} else {
		err = srv.Stop(c)
	}
	if err != nil {
		v.n.log.Warn("stop the volume server", "service", v.s.name, "err", err)
		srv.Kill()
	}
	select {
	case <-srv.Done():
	case <-c.Done():
		srv.Kill()
	}
}

// over clears up after a server that has ended, and tells the core if it was not ordered.
func (v *volumes) over(srv *volserver.Server) {
	v.mu.Lock()
	ordered, led := v.ending, v.epoch
	v.server, v.epoch, v.ending = nil, 0, false
	v.why = "the volume server is being started"
	for id, r := range v.raws {
		r.Forget()
		delete(v.raws, id)
	}
	v.changed()
	v.mu.Unlock()
	if err := v.group.Kill(); err != nil { // nobody but it should be there
		v.n.log.Debug("cgroup", "service", v.s.name, "err", err)
	}
	if ordered {
		return
	}
	how := srv.Ended()
	v.n.log.Error("the volume server ended", "service", v.s.name, "how", how)
	if led != 0 {
		v.n.m.Step(core.DiskFailed{Service: v.s.no, Text: "its volume server ended: " + how, Ended: true})
	}
}

func (v *volumes) launch(ctx context.Context) (*volserver.Server, error) {
	if err := v.wait(ctx, func() bool { return v.facts.HasData && v.facts.Self.Inc != 0 }); err != nil {
		return nil, err
	}
	v.mu.Lock()
	f := v.facts
	v.ending = false
	v.mu.Unlock()
	k := v.remember()
	v.mu.Lock()
	v.off = k.Off
	v.mu.Unlock()
	paths := v.mounts()
	if err := unmountStale(append(append([]string(nil), k.Mounts...), paths...)); err != nil {
		return nil, err
	}
	k.Mounts = paths
	if err := v.keep(k); err != nil {
		return nil, err
	}
	data := v.n.dir.Identity.ClusterID
	if err := v.n.m.On(func(c *core.Core) {
		if was := c.State().Was; len(was) > 0 {
			data = was[0] // the copies were made before the cluster was forked
		}
	}); err != nil {
		return nil, err
	}
	start := volserver.Start{Cluster: v.n.dir.Identity.ClusterID, Data: data, Service: v.s.name, No: v.s.no, Self: volserver.Run{Member: f.Self.Node, Inc: f.Self.Inc}, Name: v.n.dir.Identity.Name,
		PKI: v.n.dir.Path, Boot: bootID(), AloneDisk: v.s.spec.AloneAck != "memory", Volumes: v.s.spec.Volumes, Facts: wireFacts(f)}
	start.Make = v.mayMake(k, f)
	srv, ready, err := volserver.Launch(ctx, volserver.Config{Group: v.group, Page: v.s.page.File(), Log: v.n.log, Start: start, Events: v.events()})
	if err != nil {
		return nil, err
	}
	for _, w := range ready.Warnings {
		v.n.log.Warn("volumes", "service", v.s.name, "warning", w)
	}
	k.Made = v.backings()
	if err := v.keep(k); err != nil {
		srv.Kill()
		srv.Wait()
		return nil, err
	}
	v.mu.Lock()
	v.server, v.why = srv, ""
	srv.SetFacts(wireFacts(v.facts))
	v.changed()
	v.mu.Unlock()
	v.n.log.Info("the volume server is ready", "service", v.s.name, "pid", srv.Pid(), "epoch", ready.Pos.Epoch, "gen", ready.Pos.Gen, "seq", ready.Pos.Seq, "took", time.Duration(ready.TookMs)*time.Millisecond)
	v.n.m.Step(core.Replica{Service: v.s.no, Member: f.Self.Node, Pos: ready.Pos, Good: ready.Inconsistent == "", Connected: true})
	v.poll(ctx, srv)
	return srv, nil
}

// mayMake says whether backing directories that are not there may be made: not where they were made before, for then a disk is not mounted; and not on a
// member that is in sync, whose data would be missing, unless the service never ran.
func (v *volumes) mayMake(k kept, f core.Facts) bool {
	for _, b := range v.backings() {
		for _, m := range k.Made {
			if b == m {
				return false
			}
		}
	}
	return f.Epoch == 0 || f.Epoch == f.Grant && f.Epoch == 1 && f.Holder == f.Self || !f.InSync.Has(f.Self.Node)
}

func (v *volumes) mounts() (out []string) {
	for i := range v.s.spec.Volumes {
		out = append(out, v.s.spec.Volumes[i].Path)
	}
	return out
}

func (v *volumes) backings() (out []string) {
	for i := range v.s.spec.Volumes {
		out = append(out, v.s.spec.Volumes[i].Backing)
	}
	return out
}

func (v *volumes) file() string { return filepath.Join(v.dir, v.s.name+".json") }

func (v *volumes) remember() (k kept) {
	b, err := os.ReadFile(v.file())
	if err == nil {
		err = json.Unmarshal(b, &k)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		v.n.log.Warn("what was known of the volumes cannot be read", "service", v.s.name, "err", err)
	}
	return k
}

func (v *volumes) keep(k kept) error {
	b, err := json.Marshal(k)
	if err == nil {
		err = os.MkdirAll(v.dir, 0o700)
	}
	if err == nil {
		err = writeFile(v.file(), b)
	}
	if err != nil {
		return fmt.Errorf("remember where the volumes of %s are: %w", v.s.name, err)
	}
	return nil
}

// writeFile replaces a small file durably.
func writeFile(name string, b []byte) error {
	tmp := name + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, name)
	}
	return err
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Ready waits until a volume server has opened its copy.
func (v *volumes) Ready(ctx context.Context) error {
	return v.wait(ctx, func() bool { return v.server != nil })
}

// leadWait bounds the promotion: the tail of the journal is applied, which is what a standby had not applied yet.
const leadWait = 2 * time.Minute

// Lead makes the volumes writable in an epoch.
func (v *volumes) Lead(ctx context.Context, e cluster.Epoch, current func() bool) (volserver.Led, error) {
	ctx, cancel := context.WithTimeout(ctx, leadWait)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // a tenure that is over needs no promotion
		t := time.NewTicker(20 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-stop:
				return
			case <-t.C:
				if !current() {
					cancel()
				}
			}
		}
	}()
	if err := v.wait(ctx, func() bool { return v.server != nil && v.facts.Epoch >= e }); err != nil {
		return volserver.Led{}, fmt.Errorf("wait for the volume server: %w", err)
	}
	v.mu.Lock()
	srv := v.server
	if srv == nil {
		v.mu.Unlock()
		return volserver.Led{}, volserver.ErrGone
	}
	e = v.facts.Epoch // a Bump may have come meanwhile
	v.epoch = e
	v.mu.Unlock()
	led, err := srv.Lead(ctx, e)
	if err != nil {
		v.mu.Lock()
		if v.server == srv {
			v.epoch = 0
		}
		v.mu.Unlock()
	}
	return led, err
}

// Leads says whether a server here has been made the active.
func (v *volumes) Leads() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.server != nil && v.epoch != 0
}

// Drain holds new operations and waits for those in flight.
func (v *volumes) Drain(ctx context.Context) error {
	v.mu.Lock()
	srv := v.server
	v.mu.Unlock()
	if srv == nil {
		return nil
	}
	return srv.Drain(ctx)
}

// Undrain lets operations go on after a move that does not take place.
func (v *volumes) Undrain() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.server != nil {
		v.server.Undrain()
	}
}

// Fence ends the server of a tenure. When it returns nil nothing is in flight, and nothing will be acknowledged. Gone waits for the process.
func (v *volumes) Fence(ctx context.Context, why string) error {
	v.mu.Lock()
	srv := v.server
	v.ending = srv != nil || v.ending
	v.mu.Unlock()
	if srv == nil {
		return nil
	}
	err := srv.Fence(ctx, why)
	if err != nil {
		srv.Kill() // the kernel answers its callers then
		select {
		case <-srv.Done():
			return nil
		case <-ctx.Done():
		}
	}
	return err
}

// Gone waits until the process of a fenced server has ended and its mounts are gone.
func (v *volumes) Gone(ctx context.Context) error {
	v.mu.Lock()
	srv := v.server
	ending := v.ending
	v.mu.Unlock()
	if srv == nil || !ending {
		return nil
	}
	c, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	select {
	case <-srv.Done():
		return nil
	case <-c.Done():
		srv.Kill()
	}
	select {
	case <-srv.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the volume server of %s (pid %d) does not end: %w", v.s.name, srv.Pid(), ctx.Err())
	}
}

// poll reads the status, for people and metrics.
func (v *volumes) poll(ctx context.Context, srv *volserver.Server) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	st, err := srv.Status(ctx)
	if err != nil {
		return
	}
	v.mu.Lock()
	v.last, v.lastAt = st, time.Now()
	v.mu.Unlock()
	v.watchAlarms(&st)
}

// Status is the last one, and its age.
func (v *volumes) Status() (volserver.Status, time.Duration, string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.lastAt.IsZero() {
		return volserver.Status{}, 0, v.why
	}
	return v.last, time.Since(v.lastAt), v.why
}

// Order has an operator's order carried out by the volume server.
func (v *volumes) Order(ctx context.Context, o volserver.Order) (json.RawMessage, error) {
	v.mu.Lock()
	srv, why := v.server, v.why
	v.mu.Unlock()
	if srv == nil {
		return nil, fmt.Errorf("the volumes of %s are not served on this node: %s", v.s.name, why)
	}
	return srv.Order(ctx, o)
}

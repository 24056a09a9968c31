package model

import (
	"fmt"
	"hash/maphash"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/lock"
)

// config bounds one exploration.
type config struct {
	name_    string
	members  int
	names    [maxNo + 1]string
	nodes    cluster.MemberSet // eligible
	sets     []lock.VoterSet
	data     bool
	onFsync  bool // the volume's mode is sync-on-fsync: an operation is done at once, and a Sync waits
	ops      int
	epochs   uint8
	gens     uint8 // no Degrade or Sticky beyond this generation; 0: no bound
	crashes  int
	crashing cluster.MemberSet // who may crash; 0: everybody
	reboots  bool
	lag      int // how many entries a member may be behind
	grantTTLs,
	bumpTTLs []uint8
	bumps       bool
	sticks      uint8
	forces      bool
	voterChange bool
	timeless    bool // no clocks: a voter may promise at any time, and only the data are checked

	keepAcks                    bool // keep what correct code ignores, for a broken variant that does not
	keepPromises                bool
	lateRelease                 bool
	lowerBumps, bumpsOfAnyEpoch bool
	forceKeeps                  bool // an operator was not told of what a force loses

	prompt  cluster.MemberSet // members that apply every entry at once
	without []kind            // events that do not happen

	longest uint8 // ticks after which any voter may promise
	code    code
	never   [64]bool
	most    int // states; 0: no bound
	deepest int // events; 0: no bound
}

// visited is the set of the fingerprints of all states found, each with that of the state it was found from.
type visited struct {
	shards [64]shard
}

type shard struct {
	sync.Mutex
	key, from []uint64
	used      int
}

func (v *visited) add(k, from uint64) bool {
	if k == 0 {
		k = 1
	}
	s := &v.shards[k>>58]
	s.Lock()
	defer s.Unlock()
	if s.used*4 >= len(s.key)*3 {
		s.grow()
	}
	i := k & uint64(len(s.key)-1)
	for s.key[i] != 0 {
		if s.key[i] == k {
			return false
		}
		i = (i + 1) & uint64(len(s.key)-1)
	}
	s.key[i], s.from[i] = k, from
	s.used++
	return true
}

func (s *shard) grow() {
	key, from := s.key, s.from
	n := max(1024, len(key)*2)
	s.key, s.from = make([]uint64, n), make([]uint64, n)
	for j, k := range key {
		if k == 0 {
			continue
		}
		i := k & uint64(n-1)
		for s.key[i] != 0 {
			i = (i + 1) & uint64(n-1)
		}
		s.key[i], s.from[i] = k, from[j]
	}
}

func (v *visited) parent(k uint64) uint64 {
	s := &v.shards[k>>58]
	i := k & uint64(len(s.key)-1)
	for s.key[i] != k {
		i = (i + 1) & uint64(len(s.key)-1)
	}
	return s.from[i]
}

// result is what an exploration found.
type result struct {
	states   int
	depth    int
	complete bool
	broken   string   // the rule that does not hold
	trace    []string // how it came to that
	took     time.Duration
}

func (r result) String() string {
	how := "complete"
	if !r.complete {
		how = "bounded"
	}
	return fmt.Sprintf("%d states, depth %d, %s, %v", r.states, r.depth, how, r.took.Round(time.Millisecond))
}

var seed = maphash.MakeSeed()

func (w *world) sum() uint64 {
	if k := maphash.Bytes(seed, w.bytes()); k != 0 {
		return k
	}
	return 1
}

// explore searches breadth-first: the first counter-example is a shortest one.
func explore(c *config) result {
	c.prepare()
	start := time.Now()
	first := c.first()
	v := new(visited)
	v.add(first.sum(), 0)
	level := [][]world{{first}}
	r := result{states: 1}
	for ; ; r.depth++ {
		next, bad := c.level(v, level, &r)
		if bad != nil {
			r.broken = c.broken(bad)
			r.trace = c.trace(v, first, bad.sum())
			break
		}
		n := 0
		for _, l := range next {
			n += len(l)
		}
		if n == 0 {
			r.complete = true
			break
		}
		if c.most > 0 && r.states >= c.most || c.deepest > 0 && r.depth >= c.deepest {
			break
		}
		level = next
	}
	r.took = time.Since(start)
	return r
}

const chunk = 512

// level expands all worlds of one depth.
func (c *config) level(v *visited, level [][]world, r *result) (next [][]world, bad *world) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	type piece struct{ list, from int }
	at := piece{}
	take := func() []world {
		mu.Lock()
		defer mu.Unlock()
		for at.list < len(level) && at.from >= len(level[at.list]) {
			level[at.list] = nil
			at = piece{at.list + 1, 0}
		}
		if bad != nil || at.list >= len(level) {
			return nil
		}
		l := level[at.list]
		to := min(len(l), at.from+chunk)
		out := l[at.from:to]
		at.from = to
		return out
	}
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			b := c.bench()
			var out []world
			var found [][]world
			var from uint64
			states := 0
			b.emitted = func(w *world, _ action) {
				if !v.add(w.sum(), from) {
					return
				}
				states++
				if c.broken(w) != "" {
					mu.Lock()
					if bad == nil {
						x := *w
						bad = &x
					}
					mu.Unlock()
				}
				if len(out) == cap(out) {
					if len(out) > 0 {
						found = append(found, out)
					}
					out = make([]world, 0, 4*chunk)
				}
				out = append(out, *w)
			}
			for ws := take(); ws != nil; ws = take() {
				for i := range ws {
					from = ws[i].sum()
					b.expand(&ws[i])
				}
			}
			mu.Lock()
			next = append(append(next, found...), out)
			r.states += states
			mu.Unlock()
		}()
	}
	wg.Wait()
	return next, bad
}

func (c *config) bench() *bench {
	b := &bench{c: c, acks: make([]lease.Ack, 0, maxNo+1)}
	return b
}

// trace goes through the worlds that led to a broken one again, and says in words what happened.
func (c *config) trace(v *visited, w world, bad uint64) []string {
	var path []uint64
	for k := bad; k != w.sum(); k = v.parent(k) {
		path = append(path, k)
	}
	var out []string
	b := c.bench()
	for i := len(path) - 1; i >= 0; i-- {
		var then *world
		var by action
		b.emitted = func(n *world, a action) {
			if then == nil && n.sum() == path[i] {
				x := *n
				then, by = &x, a
			}
		}
		b.expand(&w)
		w = *then
		out = append(out, fmt.Sprintf("%-58s %s", c.text(by), c.describe(&w)))
	}
	return out
}

// describe is a world in one line.
func (c *config) describe(w *world) string {
	var s strings.Builder
	r := w.newest()
	fmt.Fprintf(&s, "log: e%d %s/%d g%d", r.epoch, c.name(r.holder), r.inc, r.gen)
	if r.sticky {
		s.WriteString(" sticky")
	}
	if r.hi > 0 {
		fmt.Fprintf(&s, " c%d-%d", r.lo+1, r.hi+1)
	}
	for m := 1; m <= c.members; m++ {
		x := &w.m[m]
		fmt.Fprintf(&s, " | %s", c.name(uint8(m)))
		switch {
		case !x.up:
			s.WriteString(" down")
		case x.at == noIndex:
			s.WriteString(" mute")
		default:
			fmt.Fprintf(&s, " at e%d %s e%d", w.sees(m).epoch, lease.Phase(x.phase), x.epoch)
		}
		if x.gate != 0 {
			fmt.Fprintf(&s, " OPEN %d-%d", x.gate.ttl(), x.gate.age())
		}
		if x.closed > 0 {
			fmt.Fprintf(&s, " closed %d", x.closed)
		}
	}
	s.WriteString(c.describeData(w))
	return s.String()
}

func (c *config) prepare() {
	if c.lag == 0 {
		c.lag = 2
	}
	if c.names == [maxNo + 1]string{} {
		c.names = [maxNo + 1]string{"nobody", "A", "B", "W", "X"}
	}
	for i := range c.sets {
		c.sets[i].C = uint64(i + 1)
	}
	for _, l := range [][]uint8{c.grantTTLs, c.bumpTTLs} {
		for _, ttl := range l {
			for time.Duration(c.longest)*fast < cluster.Wait(time.Duration(ttl)*tick) {
				c.longest++
			}
		}
	}
	for _, k := range c.without {
		c.never[k] = true
	}
	if c.code.renew == nil {
		c.code = product()
	}
	if c.timeless {
		p := c.code.promise
		c.code.promise = func(v *lease.Voter, at cluster.Instant, e cluster.Epoch, holder bool, k lease.Known) lease.Answer {
			return p(v, at.Add(time.Hour), e, holder, k)
		}
	}
}

// first is the world in which A was granted the first epoch and everybody knows.
func (c *config) first() world {
	w := world{n: 1}
	r := &w.log[0]
	*r = record{epoch: 1, holder: 1, inc: 1, gen: 1, ttl: c.grantTTLs[0], ttlMax: c.grantTTLs[0], confirmed: 1, inSync: uint8(cluster.SetOf(1))}
	for m := 1; m <= c.members; m++ {
		r.adm[m], r.admBoot[m] = 1, 1
		w.m[m] = member{up: true, inc: 1, boot: 1, joinAt: noIndex, quiet: c.longest}
	}
	if c.data {
		for _, n := range c.nodes.List() {
			r.inSync |= uint8(cluster.SetOf(n))
			r.boots[n] = 1
		}
	}
	a := &w.m[1]
	a.phase, a.epoch, a.ttl = uint8(lease.Granted), 1, r.ttl
	if c.timeless {
		a.phase = uint8(lease.Serving)
	}
	b := c.bench()
	b.promote(&w, 1)
	b.canon(&w)
	return w
}

// broken says which rule does not hold.
func (c *config) broken(w *world) string {
	if !c.timeless {
		open := 0
		for m := 1; m <= c.members; m++ {
			if w.m[m].gate != 0 {
				open++
			}
		}
		if open > 1 {
			return "two members' gates are open"
		}
	}
	for i := 1; i < int(w.n); i++ {
		p, r := &w.log[i-1], &w.log[i]
		switch {
		case r.epoch < p.epoch || r.gen < p.gen:
			return "an epoch or generation went back"
		case r.epoch == p.epoch && (r.holder != p.holder || r.inc != p.inc):
			return "one epoch was granted twice"
		case r.epoch != p.epoch && p.sticky && r.holder != p.holder && r.forced != r.epoch:
			return "granted away while sticky"
		case c.data && r.epoch != p.epoch && r.forced != r.epoch && (r.holder != p.holder || r.inc != p.inc) && p.inSync>>r.holder&1 == 0:
			return "granted to a member that is not in sync"
		}
	}
	return c.dataBroken(w)
}

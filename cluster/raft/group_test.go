package raft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"
	"go.uber.org/goleak"
)

func TestThreeMembersElectALeaderAndApplyInTheSameOrder(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a-1", "b-2", "w-3")
	a, b, w := c.three()
	l := c.leader()
	for i := uint64(1); i <= 20; i++ {
		got, index, err := l.Apply(short(t), add(i))
		if err != nil || got.(uint64) != i*(i+1)/2 || index == 0 {
			t.Fatalf("apply %d: %v %d %v", i, got, index, err)
		}
	}
	for _, m := range []*member{a, b, w} {
		within(t, 5*time.Second, m.id+" has the sum", func() bool { return m.fsm.value() == 210 })
		if _, _, err := m.Apply(short(t), add(0)); m != l && !errors.As(err, new(ErrNotLeader)) {
			t.Fatalf("%s took a command: %v", m.id, err)
		}
	}
	s := l.Stats()
	if s.Applied == 0 || s.Commit < s.Applied || s.Writes == 0 || s.FsyncP99 == 0 || len(s.Servers) != 3 || s.ConfigIndex != 1 {
		t.Fatalf("stats: %+v", s)
	}
}

func TestAKickedMemberLeadsLongBeforeTheElectionTimeout(t *testing.T) {
	c := newCluster(t, "a-1", "b-2", "w-3")
	_, b, w := c.three()
	var worst time.Duration
	for i := 0; i < 3; i++ {
		c.leads("a-1")
		within(t, 5*time.Second, "b knows", func() bool { l, _, _ := b.Leader(); return l == "a-1" })
		if b.lastKick = (time.Time{}); i == 0 {
			if err := c.members["a-1"].Kick(); err == nil {
				t.Fatal("a leader may be kicked")
			}
		}
		within(t, 5*time.Second, "b has the whole log", func() bool { return b.Stats().LastIndex >= w.Stats().LastIndex })
		c.net.isolate("a-1", "b-2", "w-3")
		time.Sleep(150 * time.Millisecond) // the detector's silence, not a hope
		start := time.Now()
		if err := b.Kick(); err != nil {
			t.Fatal(err)
		}
		if err := b.Kick(); err == nil {
			t.Fatal("two kicks in a row were allowed")
		}
		if l := c.leader("b-2", "w-3"); l != b {
			t.Fatalf("%s leads, not the kicked one", l.id)
		}
		took := time.Since(start)
		worst = max(worst, took)
		t.Logf("kick to first barrier: %v", took)
		if _, _, err := b.Apply(short(t), add(1)); err != nil {
			t.Fatal(err)
		}
		c.net.cut("a-1", "b-2", false)
		c.net.cut("a-1", "w-3", false)
		within(t, 5*time.Second, "a follows", func() bool { l, _, _ := c.members["a-1"].Leader(); return l == "b-2" })
	}
	if worst > 250*time.Millisecond {
		t.Fatalf("worst kick took %v", worst)
	}
}

func TestACommandReachesALeaderThatOnlyAThirdMemberCanReach(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a-1", "b-2", "w-3")
	a, b, _ := c.three()
	c.leads("a-1")
	within(t, 5*time.Second, "b knows the leader", func() bool { l, _, _ := b.Leader(); return l == "a-1" })
	got, index, err := b.prop.Propose(short(t), add(5))
	if err != nil || string(got) != string(add(5)) || index == 0 {
		t.Fatalf("direct: %v %d %v", got, index, err)
	}
	// Cut a from b. b cannot win an election while w hears a, and must go through w.
	c.net.cut("a-1", "b-2", true)
	time.Sleep(2 * trustFor) // else the outcome is unknown, rightly
	got, _, err = b.prop.Propose(short(t), add(2))
	if err != nil || string(got) != string(add(7)) {
		t.Fatalf("through w: %v %v", got, err)
	}
	if _, mine, _ := a.Leader(); !mine {
		t.Fatal("a does not lead any more")
	}
	if p, err := a.prop.Ask(short(t), "w-3"); err != nil || p.Leader != "a-1" || p.Applied == 0 {
		t.Fatalf("ask w: %+v %v", p, err)
	}
}

func TestWithoutAQuorumACommandIsNeverSaidToBeDone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a-1", "b-2", "w-3")
	a, b, _ := c.three()
	c.leads("a-1")
	c.net.isolate("a-1", "b-2", "w-3")
	_, _, err := a.Apply(short(t), add(1))
	if !errors.As(err, new(ErrUnknownOutcome)) {
		t.Fatalf("a leader that was cut off says %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	within(t, 5*time.Second, "a stepped down", func() bool { _, mine, _ := a.Leader(); return !mine })
	if _, _, err := a.prop.Propose(ctx, add(1)); err == nil || errors.As(err, new(ErrUnknownOutcome)) {
		t.Fatalf("with no leader to be found, Propose says %v; the command certainly was not taken", err)
	}
	c.leader("b-2", "w-3")
	if b.fsm.value() != 0 {
		t.Fatal("a lone leader's command was committed")
	}
}

func TestALeaderWhoseDiskHangsLosesTheLeadAndComesBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a-1", "b-2", "w-3")
	quick := func(cfg *Config) { cfg.StoreDeadline, cfg.StoreGiveUp = 300*time.Millisecond, 700*time.Millisecond }
	a, b, w := c.start("a-1", quick), c.start("b-2", quick), c.start("w-3", quick)
	c.leads("a-1")
	if _, _, err := a.Apply(short(t), add(40)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	a.slow.Store(int64(time.Hour))
	if _, _, err := a.Apply(short(t), add(1)); !errors.As(err, new(ErrUnknownOutcome)) {
		t.Fatalf("a command on a hung disk: %v", err)
	}
	l := c.leader("b-2", "w-3")
	took := time.Since(start)
	t.Logf("lead moved to %s after %v", l.id, took)
	if took > 300*time.Millisecond+290*time.Millisecond {
		t.Fatalf("the others had to wait for their election time-out: %v", took)
	}
	if al := <-a.alarms; al.Kind != AlarmStalled {
		t.Fatalf("alarm %+v", al)
	}
	if s := a.State(); s.Running || !s.Stalled || s.Mine {
		t.Fatalf("state of the stalled member: %+v", s)
	}
	if _, _, err := l.Apply(short(t), add(2)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.prop.Propose(short(t), add(0)); err != nil {
		t.Fatalf("a stalled member cannot reach the leader: %v", err)
	}
	if al := <-a.alarms; al.Kind != AlarmHopeless {
		t.Fatalf("alarm %+v", al)
	}
	a.slow.Store(0) // the disk answers again, the hung write too
	if al := <-a.alarms; al.Kind != AlarmRecovered {
		t.Fatalf("alarm %+v", al)
	}
	for _, m := range []*member{a, b, w} {
		within(t, 5*time.Second, m.id+" agrees", func() bool { v := m.fsm.value(); return v == 42 || v == 43 })
	}
	if a.fsm.value() != l.fsm.value() {
		t.Fatalf("a has %d, the leader %d", a.fsm.value(), l.fsm.value())
	}
}

func TestALeaderThatCannotCommitGivesTheLeadAway(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a-1", "b-2", "w-3")
	probe := func(cfg *Config) {
		cfg.Probe, cfg.ProbeEvery = func() []byte { return []byte("noop") }, 100*time.Millisecond
	}
	a, b, w := c.start("a-1", probe), c.start("b-2"), c.start("w-3")
	c.leads("a-1")
	for _, m := range []*member{b, w} {
		m.slow.Store(int64(400 * time.Millisecond)) // within their deadline, and they hear the leader all the time
	}
	if al := <-a.alarms; al.Kind != AlarmStalled || !strings.Contains(al.Text, "committed nothing") {
		t.Fatalf("%+v", al)
	}
	if _, mine, _ := a.Leader(); mine {
		t.Fatal("a leads on")
	}
	b.slow.Store(0)
	w.slow.Store(0)
	if al := <-a.alarms; al.Kind != AlarmRecovered {
		t.Fatalf("%+v", al)
	}
	c.leader()
}

func TestAFailedWriteIsFatalAtOnceAndNeverRetried(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a-1")
	a := c.start("a-1")
	c.leader()
	a.store.bolt.Close() // every further write is an error
	if _, _, err := a.Apply(short(t), add(1)); !errors.As(err, new(ErrUnknownOutcome)) {
		t.Fatalf("apply: %v", err)
	}
	select {
	case err := <-a.fatal:
		t.Log(err)
	case <-time.After(5 * time.Second):
		t.Fatal("OnFatal was not called")
	}
	if err := <-a.done; err == nil {
		t.Fatal("Run returned nil")
	}
	a.done <- nil
}

func TestARestartedMemberHasItsSnapshotAndItsLog(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a-1")
	small := func(cfg *Config) {
		cfg.SnapshotEvery, cfg.SnapshotThreshold, cfg.TrailingLogs = 10*time.Millisecond, 10, 2
	}
	a := c.start("a-1", small)
	c.leader()
	for i := 0; i < 50; i++ {
		if _, _, err := a.Apply(short(t), add(1)); err != nil {
			t.Fatal(err)
		}
	}
	within(t, 5*time.Second, "a snapshot", func() bool { return a.Stats().Snapshot > 10 })
	a.stop()
	a = c.start("a-1", small)
	c.leader()
	if a.fsm.value() != 50 || a.ConfigIndex() != 1 {
		t.Fatalf("after the restart: %d, configuration %d", a.fsm.value(), a.ConfigIndex())
	}
	// A member that joins later gets the snapshot.
	c.start("b-2", small)
	if _, err := a.AddNonvoter(short(t), "b-2", a.ConfigIndex()); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "b has it all", func() bool { return c.members["b-2"].fsm.value() == 50 })
}

func TestVotesGoFromOneToThreeOnlyWhenBothCandidatesAreCaughtUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a-1")
	a := c.start("a-1")
	c.leader()
	b, w := c.start("b-2"), c.start("w-3")
	for _, id := range []string{"b-2", "w-3"} {
		if _, err := a.AddNonvoter(short(t), id, a.ConfigIndex()); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Kick(); err == nil {
		t.Fatal("a member without a vote was kicked")
	}
	if _, err := a.Promote(short(t), "b-2", a.ConfigIndex()-1); err == nil {
		t.Fatal("a change based on an older configuration was made")
	}
	c.net.cut("a-1", "w-3", true)
	if _, err := a.PromoteTogether(short(t), "b-2", "w-3", a.prop.Ask); err == nil {
		t.Fatal("votes were given although w does not answer")
	}
	if len(a.fsm.voters) != 1 {
		t.Fatalf("voters %v", a.fsm.voters)
	}
	c.net.cut("a-1", "w-3", false)
	within(t, 5*time.Second, "votes", func() bool {
		_, err := a.PromoteTogether(short(t), "b-2", "w-3", a.prop.Ask)
		return err == nil
	})
	for _, m := range []*member{a, b, w} {
		within(t, 5*time.Second, m.id+" knows three voters", func() bool {
			m.fsm.mu.Lock()
			defer m.fsm.mu.Unlock()
			return slices.Equal(m.fsm.voters, []string{"a-1", "b-2", "w-3"})
		})
	}
	c.net.isolate("a-1", "b-2", "w-3")
	c.leader("b-2", "w-3")
}

func TestALeaderHandsOverBeforeItLeavesAndNothingIsLeftRunning(t *testing.T) {
	before := goleak.IgnoreCurrent()
	c := newCluster(t, "a-1", "b-2", "w-3")
	a, _, _ := c.three()
	c.leads("a-1")
	start := time.Now()
	a.stop()
	delete(c.members, "a-1")
	c.leader()
	if took := time.Since(start); took > 290*time.Millisecond {
		t.Fatalf("the next leader took %v, as long as an election time-out", took)
	}
	for _, m := range c.members {
		m.stop()
	}
	within(t, 3*time.Second, "all goroutines have ended", func() bool { return goleak.Find(before) == nil })
}

func TestADirectoryOfAnotherMemberClusterOrDaemonIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a-1")
	open := func(change func(*Config)) error {
		cfg := Config{Dir: c.dirs["a-1"], ClusterID: testCluster, ServerID: "a-1", FSM: &counter{}, Stream: c.net.listen(t, "x", "raft/"), Ballast: -1}
		change(&cfg)
		g, err := Open(cfg)
		if err == nil {
			g.Close()
		}
		return err
	}
	if err := open(func(*Config) {}); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Config){
		"another cluster": func(c *Config) { c.ClusterID = "feed" },
		"another member":  func(c *Config) { c.ServerID = "b-2" },
		"bad settings":    func(c *Config) { c.HeartbeatTimeout, c.ClusterID = 1, "" },
	} {
		err := open(change)
		if err == nil {
			t.Fatalf("%s was accepted", what)
		}
		t.Logf("%s: %v", what, err)
	}
	if err := Bootstrap(c.dirs["a-1"], testCluster, "a-1"); err == nil {
		t.Fatal("a used directory was bootstrapped again")
	}
	c.start("a-1")
	if err := open(func(*Config) {}); err == nil {
		t.Fatal("a directory in use was opened again")
	} else {
		t.Log(err)
	}
}

func TestADamagedStoreIsNamedAndNeverRunOn(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a-1")
	a := c.start("a-1")
	c.leader()
	for i := 0; i < 100; i++ {
		a.Apply(short(t), add(1))
	}
	a.stop()
	path := filepath.Join(c.dirs["a-1"], dbName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), dbName)
	damaged := func(b []byte) error {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return checkFile(file)
	}
	// content opens file as a daemon would and returns all that Raft can read from it.
	content := func() string {
		st, err := newStore(file, time.Second, nil, newBallast("", -1), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer st.closeFile()
		var out strings.Builder
		first, _ := st.FirstIndex()
		last, _ := st.LastIndex()
		for i := first; i <= last; i++ {
			var l hraft.Log
			if err := st.GetLog(i, &l); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&out, l.Index, l.Term, l.Type, l.Data, l.Extensions)
		}
		term, err1 := st.GetUint64([]byte(keyTerm))
		vote, err2 := st.GetUint64([]byte(keyVoteTerm))
		cand, err3 := st.Get([]byte(keyVoteCand))
		fmt.Fprintln(&out, term, vote, string(cand), err1, err2, err3)
		return out.String()
	}
	if err := damaged(whole); err != nil {
		t.Fatalf("the undamaged file: %v", err)
	}
	want := content()
	for _, n := range []int{1, 100, 4096, 8192, 12288, len(whole) / 2} {
		if err := damaged(whole[:n]); err == nil {
			t.Errorf("cut to %d of %d bytes: accepted", n, len(whole))
		} else if n == len(whole)/2 {
			t.Log(err)
		}
	}
	// Flip one bit: either the file is refused, or everything in it reads as before.
	var refused, unused int
	for at := 0; at < len(whole); at++ {
		if inPageHead := at%os.Getpagesize() < pageHead; !inPageHead && at%97 != 0 {
			continue
		}
		b := slices.Clone(whole)
		b[at] ^= 1 << (at % 8)
		if damaged(b) != nil {
			refused++
		} else if got := content(); got != want {
			t.Fatalf("bit %d of byte %d flipped: accepted, but it reads %d bytes instead of %d, or others", at%8, at, len(got), len(want))
		} else {
			unused++ // in a free page, in the older head page, or behind the end of a page
		}
	}
	t.Logf("%d single-bit flips refused, %d in places that nothing reads", refused, unused)
	if refused == 0 {
		t.Fatal("no flip was found")
	}
	for i := range whole {
		whole[i] ^= 0xff
	}
	if damaged(whole) == nil {
		t.Fatal("garbage was accepted")
	}
}

func TestOneServerGoesOnUnderANewClusterAfterARecovery(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a-1", "b-2", "w-3")
	a, _, _ := c.three()
	c.leads("a-1")
	if _, _, err := a.Apply(short(t), add(11)); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.members {
		m.stop()
	}
	clear(c.members)
	fork := Fork{Dir: c.dirs["a-1"], ServerID: "a-1", OldClusterID: testCluster, NewClusterID: "f00d", FSM: &counter{}, Command: add(100)}
	if err := Recover(fork); err != nil {
		t.Fatal(err)
	}
	fork.FSM = &counter{}
	if err := Recover(fork); err != nil { // repeated: does nothing
		t.Fatal(err)
	}
	a = c.start("a-1", func(cfg *Config) { cfg.ClusterID = "f00d" })
	c.leader()
	if a.fsm.value() != 111 {
		t.Fatalf("sum %d after the fork, want 111", a.fsm.value())
	}
	if s := a.Servers(); len(s) != 1 || s[0].ID != "a-1" {
		t.Fatalf("servers %v", s)
	}
	if _, err := Open(Config{Dir: c.dirs["a-1"], ClusterID: testCluster, ServerID: "a-1", FSM: &counter{}, Stream: c.net.listen(t, "x", "raft/")}); err == nil {
		t.Fatal("the old cluster still opens the directory")
	}
}

func TestManyProposersOnAllMembersAgreeOnOneSum(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a-1", "b-2", "w-3")
	a, b, w := c.three()
	c.leader()
	var wg sync.WaitGroup
	errs := make(chan error, 100)
	for i := 0; i < 12; i++ {
		m := []*member{a, b, w}[i%3]
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := 0; j < 8; j++ {
				if _, _, err := m.prop.Propose(short(t), add(1)); err != nil {
					errs <- fmt.Errorf("%s: %w", m.id, err)
				}
			}
		}()
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	for _, m := range []*member{a, b, w} {
		within(t, 5*time.Second, m.id+" agrees", func() bool { return m.fsm.value() == 96 })
	}
}

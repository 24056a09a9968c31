package raft

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

func TestAMemberWhoseDiskHangsNeitherVotesNorDies(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a-1", "b-2", "w-3")
	quick := func(cfg *Config) { cfg.StoreDeadline, cfg.StoreGiveUp = 200*time.Millisecond, time.Minute }
	a, b, w := c.start("a-1", quick), c.start("b-2", quick), c.start("w-3", quick)
	c.leads("a-1")
	within(t, 5*time.Second, "all have the log", func() bool {
		return b.Stats().LastIndex == a.Stats().LastIndex && w.Stats().LastIndex == a.Stats().LastIndex
	})
	w.slow.Store(int64(time.Hour))
	c.net.isolate("a-1", "b-2", "w-3")
	if err := b.Kick(); err != nil { // the new term alone makes w write
		t.Fatal(err)
	}
	if al := <-w.alarms; al.Kind != AlarmStalled {
		t.Fatalf("%+v", al)
	}
	select {
	case <-w.last.gate.closed:
	default:
		t.Fatal("a stalled member can still be heard by the group")
	}
	for end := time.Now().Add(700 * time.Millisecond); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, mine, _ := b.Leader(); mine {
			t.Fatal("b leads with the vote of a member that cannot write it down")
		}
	}
	if p, err := b.prop.Ask(short(t), "w-3"); err != nil || !p.Stalled {
		t.Fatalf("w says %+v %v", p, err)
	}
	w.slow.Store(0)
	c.leader("b-2", "w-3")
	select {
	case err := <-w.fatal:
		t.Fatalf("slowness was taken for a failure: %v", err)
	default:
	}
}

func TestAFollowerWhoseDiskFailsStopsInOrder(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a-1", "b-2", "w-3")
	_, b, w := c.three()
	c.leads("a-1")
	w.store.bolt.Close()
	if err := b.Kick(); err != nil { // w must write the new term, on which hashicorp/raft panics if it fails
		t.Fatal(err)
	}
	select {
	case err := <-w.fatal:
		t.Log(err)
	case <-time.After(5 * time.Second):
		t.Fatal("OnFatal was not called")
	}
	if err := <-w.done; err == nil {
		t.Fatal("Run returned nil")
	}
	w.done <- nil
	c.leader("a-1", "b-2")
}

func TestAFullDiskCostsTheBallastFirstAndTheMemberOnlyThen(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a small tmpfs is mounted")
	}
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip("needs root: mount a small tmpfs: " + err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	if err := Bootstrap(dir, testCluster, "a-1"); err != nil {
		t.Fatal(err)
	}
	c := newCluster(t)
	c.dirs["a-1"] = dir
	a := c.start("a-1", func(cfg *Config) { cfg.Ballast = 512 << 10 })
	c.leader()
	if st, err := os.Stat(filepath.Join(dir, "ballast")); err != nil || st.Size() != 512<<10 {
		t.Fatalf("ballast: %v %v", st, err)
	}
	write := func() error { _, _, err := a.Apply(short(t), make([]byte, 32<<10)); return err }
	for i := 0; len(a.alarms) == 0; i++ {
		if err := write(); err != nil || i > 100 {
			t.Fatalf("write %d: %v", i, err)
		}
	}
	if al := <-a.alarms; al.Kind != AlarmDiskFull {
		t.Fatalf("%+v", al)
	}
	if err := write(); err != nil {
		t.Fatalf("with the ballast gone there is room: %v", err)
	}
	for i := 0; write() == nil; i++ {
		if i > 100 {
			t.Fatal("the disk does not become full")
		}
	}
	select {
	case err := <-a.fatal:
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("OnFatal was not called")
	}
	a.stop()
	<-a.done
	a.done <- nil
}

func TestAVoteIsOneRecordAndAStaleTermNeverPairsWithAnOldCandidate(t *testing.T) {
	t.Parallel()
	st, err := newStore(filepath.Join(t.TempDir(), dbName), time.Second, nil, newBallast("", -1), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer st.closeFile()
	vote := func() (uint64, string) {
		term, err := st.GetUint64([]byte(keyVoteTerm))
		cand, err2 := st.Get([]byte(keyVoteCand))
		if err != nil && !isNotFound(err) || err2 != nil && !isNotFound(err2) {
			t.Fatal(err, err2)
		}
		return term, string(cand)
	}
	st.SetUint64([]byte(keyVoteTerm), 3)
	if term, cand := vote(); term != 0 || cand != "" {
		t.Fatalf("half a vote is visible: %d %q", term, cand)
	}
	st.Set([]byte(keyVoteCand), []byte("b"))
	st.SetUint64([]byte(keyVoteTerm), 4) // then the power fails
	if term, cand := vote(); term != 3 || cand != "b" {
		t.Fatalf("vote %d %q, want 3 b", term, cand)
	}
}

func TestALogEntryKeepsItsExtensionsAndLosesItsSeal(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), dbName)
	st, err := newStore(path, time.Second, nil, newBallast("", -1), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer st.closeFile()
	in := &hraft.Log{Index: 1, Term: 2, Type: hraft.LogCommand, Data: []byte("x"), Extensions: []byte("ext")}
	if err := st.StoreLog(in); err != nil || string(in.Extensions) != "ext" {
		t.Fatal(err, in)
	}
	var out hraft.Log
	if err := st.GetLog(1, &out); err != nil || string(out.Extensions) != "ext" || string(out.Data) != "x" {
		t.Fatalf("%+v %v", out, err)
	}
	if err := st.GetLog(2, &out); !errors.Is(err, hraft.ErrLogNotFound) {
		t.Fatalf("a missing entry: %v", err)
	}
	// An entry that somebody else wrote has no seal.
	if err := st.bolt.StoreLog(&hraft.Log{Index: 2, Term: 2, Data: []byte("forged")}); err != nil {
		t.Fatal(err)
	}
	if err := st.GetLog(2, &out); err == nil || st.failure() == nil {
		t.Fatalf("an entry without a checksum was read: %+v", out)
	}
	if err := st.StoreLog(in); err == nil {
		t.Fatal("a failed store takes writes")
	}
}

func TestAHealthyStoreIsNeverCalledDamaged(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), dbName)
	rng := rand.New(rand.NewPCG(1, 2))
	var first, last uint64 = 1, 0
	for round := 0; round < 8; round++ {
		st, err := newStore(path, time.Second, nil, newBallast("", -1), nil)
		if err != nil {
			t.Fatal(err)
		}
		for op := 0; op < 25; op++ {
			switch n := uint64(rng.IntN(60)); {
			case op%5 == 4 && first+n < last: // behind a snapshot
				err = st.DeleteRange(first, first+n)
				first += n + 1
			case op%7 == 6 && first+n/8 < last: // a tail that another leader replaces
				err = st.DeleteRange(last-n/8, last)
				last -= n/8 + 1
			default:
				var logs []*hraft.Log
				for ; n > 0; n-- {
					last++
					logs = append(logs, &hraft.Log{Index: last, Term: uint64(round), Data: make([]byte, rng.IntN(1<<rng.IntN(14)))})
				}
				err = st.StoreLogs(logs)
				st.SetUint64([]byte(keyVoteTerm), last)
				st.Set([]byte(keyVoteCand), []byte("b"))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		st.closeFile()
		if err := checkFile(path); err != nil {
			t.Fatalf("round %d, entries %d to %d: %v", round, first, last, err)
		}
	}
}

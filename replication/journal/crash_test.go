package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal/faultfs"
)

var small = Limits{Cluster: "c1", Service: "db", Segment: 3 * headSize, Size: 8 * 3 * headSize}

// record is one record at pos whose content depends on it and on salt.
func record(pos cluster.Position, size int, salt byte) []byte {
	data := bytes.Repeat([]byte{byte(pos.Seq), salt, byte(pos.Epoch)}, size/3+1)[:size]
	b, err := replication.AppendRecord(nil, pos, &replication.Op{Kind: replication.Write, Volume: 1, ID: 7, Off: int64(pos.Seq), Data: data})
	if err != nil {
		panic(err)
	}
	return b
}

// content is what a journal may hold: the records after base, at least up to floor.
type content struct {
	base    uint64
	recs    [][]byte
	floor   uint64
	applied []uint64
	gone    uint64 // records up to here may have been released
}

func (c content) last() uint64 { return c.base + uint64(len(c.recs)) }

func (c content) cut(after uint64) content {
	c.recs = slices.Clone(c.recs[:after-c.base])
	c.floor = after
	for i, a := range c.applied {
		c.applied = slices.Clone(c.applied)
		c.applied[i] = min(a, after)
	}
	return c
}

// scene drives a journal through what happens to one, and keeps what it may hold.
type scene struct {
	j     *Journal
	is    content  // if the last call succeeded
	maybe *content // or this
	epoch cluster.Epoch
	rnd   *rand.Rand
}

func (s *scene) pos(seq uint64) cluster.Position {
	return cluster.Position{Epoch: s.epoch, Gen: cluster.Generation(s.epoch), Seq: seq}
}

// append appends n records of about size bytes in one call.
func (s *scene) append(n, size int) error {
	var b []byte
	next := s.is
	next.recs = slices.Clone(next.recs)
	first := s.pos(s.is.last() + 1)
	for i := range n {
		r := record(s.pos(first.Seq+uint64(i)), 1+s.rnd.IntN(size), byte(s.rnd.IntN(256)))
		b, next.recs = append(b, r...), append(next.recs, r)
	}
	s.maybe = &next
	if err := s.j.Append(first, b); err != nil {
		return err
	}
	s.is, s.maybe = next, nil
	return nil
}

func (s *scene) sync() error {
	err := s.j.Sync()
	if err == nil {
		s.is.floor = s.is.last()
	}
	return err
}

func (s *scene) checkpoint(at uint64) error {
	old := s.is.applied
	s.is.applied = append(slices.Clone(old), at)
	err := s.j.Checkpoint(at)
	if err == nil {
		s.is.floor, s.is.applied = max(s.is.floor, at), []uint64{at}
	}
	return err
}

func (s *scene) cut(after uint64) error {
	next := s.is.cut(after)
	s.maybe = &next
	err := s.j.Cut(after)
	if err == nil {
		s.is, s.maybe = next, nil
	}
	return err
}

func (s *scene) reset(at uint64) error {
	next := content{base: at, floor: at, applied: []uint64{at}}
	s.maybe = &next
	err := s.j.Reset(s.pos(at))
	if err == nil {
		s.is, s.maybe = next, nil
	}
	return err
}

func (s *scene) release(upto uint64) error {
	s.is.gone = max(s.is.gone, upto)
	return s.j.Release(upto)
}

// live goes through the scene until something fails.
func (s *scene) live(fs FS) (err error) {
	if s.j, _, err = Open("j", fs, small); err != nil {
		return err
	}
	steps := []func() error{
		func() error { return s.append(1, 100) }, func() error { return s.append(3, 300) }, s.sync,
		func() error { return s.append(1, 3000) }, func() error { return s.append(2, 3000) }, func() error { return s.checkpoint(3) },
		func() error { return s.append(4, 900) }, func() error { return s.append(1, 2500) }, func() error { return s.append(1, 2500) }, s.sync,
		func() error { return s.append(3, 1500) }, func() error { s.epoch++; return s.append(1, 600) }, func() error { return s.cut(s.is.last() - 2) },
		func() error { return s.append(2, 600) }, func() error { return s.checkpoint(s.is.last()) }, func() error { return s.append(4, 900) },
		func() error { return s.append(5, 900) }, func() error { return s.append(5, 900) }, func() error { return s.checkpoint(s.is.last() - 1) }, func() error { return s.append(5, 900) },
		func() error { return s.append(5, 900) }, func() error { return s.append(5, 900) }, func() error { return s.append(5, 900) }, func() error { return s.append(5, 900) }, func() error { return s.checkpoint(s.is.last() - 2) },
		func() error { return s.checkpoint(s.is.last() - 1) }, func() error { return s.release(s.is.last()) },
		func() error { return s.append(5, 1500) }, func() error { return s.append(5, 1500) }, func() error { return s.append(5, 1500) }, func() error { return s.append(5, 1500) }, s.sync,
		func() error { return s.cut(s.is.applied[0] - 1) }, func() error { return s.append(1, 1000) },
		func() error { s.epoch++; return s.reset(40) }, func() error { return s.append(5, 900) }, s.sync, func() error { return s.append(5, 900) }, func() error { return s.j.Close() },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// holds says what a journal holds that had to hold one of the contents.
func holds(j *Journal, rec Recovered, cs ...content) error {
	var got [][]byte
	r, err := j.Read(j.First())
	if err != nil {
		return err
	}
	defer r.Close()
	buf := make([]byte, 4000)
	for {
		b, err := r.Next(buf)
		if err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		for len(b) > 0 {
			h, err := replication.Check(b)
			if err != nil {
				return err
			}
			got, b = append(got, bytes.Clone(b[:h.Len])), b[h.Len:]
		}
	}
	var why []error
	for _, c := range cs {
		switch skip := int(j.First() - 1 - c.base); {
		case j.First() <= c.base || j.First() > c.gone+1 && j.First() != c.base+1:
			why = append(why, fmt.Errorf("it begins at %d, the content at %d", j.First(), c.base+1))
		case j.Last().Seq < c.floor:
			why = append(why, fmt.Errorf("it ends at %d; %d was durable", j.Last().Seq, c.floor))
		case j.Last().Seq > c.last():
			why = append(why, fmt.Errorf("it ends at %d; nothing after %d was appended", j.Last().Seq, c.last()))
		case !slices.Contains(c.applied, j.Applied()):
			why = append(why, fmt.Errorf("applied %d, one of %v was written", j.Applied(), c.applied))
		case j.Durable() != j.Last().Seq || rec.Last != j.Last().Seq || j.First() > j.Applied()+1:
			return fmt.Errorf("durable %d, last %v, first %d, applied %d, recovered %+v", j.Durable(), j.Last(), j.First(), j.Applied(), rec)
		case !slices.EqualFunc(got, c.recs[skip:skip+len(got)], bytes.Equal):
			why = append(why, errors.New("the records differ"))
		default:
			return nil
		}
	}
	return errors.Join(why...)
}

// find opens the journal, checks what it holds, goes on with it and opens it again.
func (s *scene) find(fs *faultfs.FS) error {
	j, rec, err := Open("j", fs, small)
	if err != nil {
		return err
	}
	cs := []content{s.is}
	if s.maybe != nil {
		cs = append(cs, *s.maybe)
	}
	if err := holds(j, rec, cs...); err != nil {
		return fmt.Errorf("found %+v: %w", rec, err)
	}
	// What Open calls durable survives the power going at once.
	cut := fs.Clone().Reboot()
	if again, _, err := Open("j", cut, small); err != nil {
		return fmt.Errorf("a power cut right after Open: %w", err)
	} else if again.Last() != j.Last() || again.Applied() != j.Applied() {
		return fmt.Errorf("a power cut right after Open: ends at %v, applied %d; Open said %v, %d", again.Last(), again.Applied(), j.Last(), j.Applied())
	}
	// Go on: what is appended now follows what was found, whatever lies on the disk behind it.
	s.epoch++
	at := j.Last()
	next := content{base: at.Seq, floor: at.Seq, applied: []uint64{j.Applied()}, gone: at.Seq}
	for i := range 6 {
		r := record(s.pos(at.Seq+1+uint64(i)), 1700, 0xee)
		if err := j.Append(s.pos(at.Seq+1+uint64(i)), r); err != nil {
			return err
		}
		next.recs = append(next.recs, r)
	}
	if err := j.Close(); err != nil {
		return err
	}
	j, rec, err = Open("j", fs, small)
	if err != nil {
		return fmt.Errorf("again: %w", err)
	}
	defer j.Close()
	if j.Last().Seq != next.last() || rec.Torn != nil {
		return fmt.Errorf("again: ends at %v, %d was appended; %+v", j.Last(), next.last(), rec.Torn)
	}
	r, err := j.Read(at.Seq + 1)
	if err != nil {
		return err
	}
	defer r.Close()
	for _, want := range next.recs {
		if got, err := r.Next(nil); err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("again: a record differs: %v", err)
		}
	}
	return nil
}

func TestWhateverFailsThePromisesHold(t *testing.T) {
	seeds := uint64(4)
	if testing.Short() {
		seeds = 1
	}
	for _, how := range []string{"power cut", "EIO, then killed", "EIO, then a power cut", "ENOSPC, then a power cut", "killed"} {
		t.Run(how, func(t *testing.T) {
			points, refused := 0, 0
			for seed := range seeds {
				for n, fired := 1, true; fired; n++ {
					fs := faultfs.New(seed*1000 + uint64(n))
					switch how {
					case "power cut", "killed":
						fs.CutAt(n)
					case "ENOSPC, then a power cut":
						fs.FailAt(n, 2, syscall.ENOSPC)
					default:
						fs.FailAt(n, 0, syscall.EIO)
					}
					s := &scene{rnd: rand.New(rand.NewPCG(seed, 2)), epoch: 1, is: content{applied: []uint64{0}}}
					_ = s.live(fs)
					fired = fs.Fired()
					after := fs.Reboot
					if how == "EIO, then killed" || how == "killed" {
						after = fs.Kill
					}
					points++
					switch err := s.find(after()); {
					case errors.Is(err, ErrBroken) && how[0] == 'E':
						refused++
					case err != nil:
						t.Fatalf("seed %d, operation %d (%s): %v", seed, n, how, err)
					}
				}
			}
			t.Logf("%d points, %d of them refused as broken", points, refused)
		})
	}
}

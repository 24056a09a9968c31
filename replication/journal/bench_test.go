package journal

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal/disk"
)

// benchDir is where the benchmarks put their files: HANODE_BENCH_DIR names a directory of the disk to be measured.
func benchDir(b *testing.B) string {
	if d := os.Getenv("HANODE_BENCH_DIR"); d != "" {
		d, err := os.MkdirTemp(d, "journal")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { os.RemoveAll(d) })
		return d
	}
	return b.TempDir()
}

func benchJournal(b *testing.B) *Journal {
	j, _, err := Open(filepath.Join(benchDir(b), "j"), disk.OS{}, Limits{Cluster: "c1", Service: "db", Size: 512 << 20, Segment: 64 << 20})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { _ = j.Run(ctx) })
	b.Cleanup(func() { cancel(); run.Wait(); j.Close() })
	return j
}

// feed appends records of 4 KiB of data one by one and releases what is old.
type feed struct {
	j   *Journal
	buf []byte
	op  replication.Op
	seq uint64
}

func (f *feed) next(b *testing.B) {
	f.seq++
	pos := cluster.Position{Epoch: 1, Gen: 1, Seq: f.seq}
	f.buf, _ = replication.AppendRecord(f.buf[:0], pos, &f.op)
	if err := f.j.Append(pos, f.buf); err != nil {
		b.Fatal(err)
	}
	if f.seq%8192 == 0 {
		if err := f.j.Checkpoint(f.seq); err != nil {
			b.Fatal(err)
		}
		if err := f.j.Release(f.seq); err != nil {
			b.Fatal(err)
		}
	}
}

func newFeed(b *testing.B, size int) *feed {
	return &feed{j: benchJournal(b), op: replication.Op{Kind: replication.Write, Volume: 1, ID: 7, Data: make([]byte, size)}}
}

func quantiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	for _, q := range []struct {
		name string
		of   float64
	}{{"p50", .5}, {"p99", .99}, {"max", 1}} {
		b.ReportMetric(float64(took[min(int(float64(len(took))*q.of), len(took)-1)].Nanoseconds())/1e3, q.name+"-µs")
	}
}

// BenchmarkAppend is the cost of a record with 4 KiB (and 128 KiB) of data, its encoding and checksum included; the 8192nd ones make a checkpoint.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{64, 4096, 128 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			f := newFeed(b, size)
			took := make([]time.Duration, 0, b.N)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				at := time.Now()
				f.next(b)
				took = append(took, time.Since(at))
			}
			quantiles(b, took)
		})
	}
}

// BenchmarkSync is Append of 4 KiB and Sync, by one writer and by many that share.
func BenchmarkSync(b *testing.B) {
	for _, writers := range []int{1, 4, 16} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			f := newFeed(b, 4096)
			var mu sync.Mutex
			var wg sync.WaitGroup
			var n atomic.Int64
			all := make([][]time.Duration, writers)
			b.ResetTimer()
			for w := range writers {
				wg.Go(func() {
					for n.Add(1) <= int64(b.N) {
						at := time.Now()
						mu.Lock()
						f.next(b)
						mu.Unlock()
						if err := f.j.Sync(); err != nil {
							b.Error(err)
						}
						all[w] = append(all[w], time.Since(at))
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			quantiles(b, slices.Concat(all...))
		})
	}
}

// BenchmarkRoom compares what a sync of 4 KiB costs on files that were prepared in different ways: why segments are written with zeros.
func BenchmarkRoom(b *testing.B) {
	for _, how := range []string{"growing", "allocated", "zeroed", "used-before"} {
		b.Run(how, func(b *testing.B) {
			const size = 64 << 20
			f, err := disk.OS{}.Create(filepath.Join(benchDir(b), "f"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			switch how {
			case "allocated":
				err = f.Allocate(size)
			case "zeroed":
				err = (&Journal{}).zero(&segment{f: f, size: size})
			case "used-before":
				if err = f.Allocate(size); err == nil {
					ones := slices.Repeat([]byte{1}, 1<<20)
					for off := int64(0); off < size && err == nil; off += 1 << 20 {
						err = f.WriteVec([][]byte{ones}, off)
					}
				}
			}
			if err == nil {
				err = f.Sync()
			}
			if err != nil {
				b.Fatal(err)
			}
			rec := make([]byte, 4096+316)
			took := make([]time.Duration, 0, b.N)
			off := int64(0)
			for b.Loop() {
				at := time.Now()
				if err := f.WriteVec([][]byte{rec}, off); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(at))
				if off += int64(len(rec)); off+int64(len(rec)) > size {
					off = 0
				}
			}
			quantiles(b, took)
		})
	}
}

// BenchmarkOpen reads a journal of 256 MiB whose records are all to be applied.
func BenchmarkOpen(b *testing.B) {
	dir := filepath.Join(benchDir(b), "j")
	lim := Limits{Cluster: "c1", Service: "db", Size: 512 << 20, Segment: 64 << 20}
	j, _, err := Open(dir, disk.OS{}, lim)
	if err != nil {
		b.Fatal(err)
	}
	op := replication.Op{Kind: replication.Write, Volume: 1, ID: 7, Data: make([]byte, 4096)}
	for seq := uint64(1); seq <= 60000; seq++ {
		pos := cluster.Position{Epoch: 1, Gen: 1, Seq: seq}
		rec, _ := replication.AppendRecord(nil, pos, &op)
		if err := j.Append(pos, rec); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(60000 * 4400)
	for b.Loop() {
		if err := j.Close(); err != nil {
			b.Fatal(err)
		}
		if j, _, err = Open(dir, disk.OS{}, lim); err != nil {
			b.Fatal(err)
		}
	}
	j.Close()
}

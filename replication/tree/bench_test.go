package tree

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

var (
	benchFiles = flag.Int("files", 100_000, "benchmark of the scan: so many files, 100 in a directory")
	benchDir   = flag.String("dir", "", "benchmarks: a directory on the file system to be measured; default: an ext4 in memory")
)

func benchTree(b *testing.B) (*Tree, string) {
	b.Helper()
	disk := *benchDir
	if disk == "" {
		disk = mountExt4(b)
	} else {
		var err error
		disk, err = os.MkdirTemp(disk, "hanode-tree-")
		must(b, err)
		b.Cleanup(func() { os.RemoveAll(disk) })
	}
	dir := filepath.Join(disk, "v")
	must(b, Make(dir))
	tr, err := Open(dir, Options{})
	must(b, err)
	must(b, tr.Settle())
	return tr, dir
}

// BenchmarkApplyWrite4K is Apply of a write of 4 KiB to a file that is open, and the pwrite alone beside it.
func BenchmarkApplyWrite4K(b *testing.B) {
	tr, _ := benchTree(b)
	defer tr.Close()
	apply(b, tr, newFile(2, 1, "f"))
	op := replication.Op{Kind: replication.Write, ID: 2, Data: make([]byte, 4096), Time: 1}
	const blocks = 1024
	for i := range blocks {
		op.Off = int64(i) * 4096
		apply(b, tr, op)
	}
	b.Run("apply", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			op.Off, op.Time = int64(i%blocks)*4096, int64(i)
			if _, err := tr.Apply(&op); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("reserve", func(b *testing.B) {
		for b.Loop() {
			if err := tr.Reserve(&op); err != nil {
				b.Fatal(err)
			}
		}
	})
	n, err := tr.acquire(2)
	must(b, err)
	defer tr.release(n)
	fd := int(n.fds[writeFd].Load())
	b.Run("pwrite", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := unix.Pwrite(fd, op.Data, int64(i%blocks)*4096); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkNames is what operations and look-ups of names cost.
func BenchmarkNames(b *testing.B) {
	tr, _ := benchTree(b)
	defer tr.Close()
	apply(b, tr, newDir(2, 1, "d"))
	for i := range 1000 {
		apply(b, tr, newFile(FileID(10+i), 2, fmt.Sprint(i)))
	}
	b.Run("lookup", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, _, err := tr.Lookup(2, fmt.Sprint(i%1000)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("stat", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := tr.Stat(FileID(10 + i%1000)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("readdir-1000", func(b *testing.B) {
		for b.Loop() {
			if _, err := tr.ReadDir(2, 0, 2000); err != nil {
				b.Fatal(err)
			}
		}
	})
	tr.SetIDBase(1 << 32)
	b.Run("create-unlink", func(b *testing.B) {
		for b.Loop() {
			id := tr.NextID()
			op := newFile(id, 2, "new")
			if _, err := tr.Apply(&op); err != nil {
				b.Fatal(err)
			}
			op = unlinkOp(id, 2, "new")
			if _, err := tr.Apply(&op); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("create-unlink-native", func(b *testing.B) { // the same system calls without file ids
		n, err := tr.acquire(2)
		must(b, err)
		defer tr.release(n)
		dfd, err := tr.fd(n, pathFd)
		must(b, err)
		for b.Loop() {
			fd, err := unix.Openat(dfd, "new", unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
			if err == nil {
				unix.Close(fd)
				err = unix.Unlinkat(dfd, "new", 0)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("rename", func(b *testing.B) {
		names := [2]string{"5", "renamed"}
		for i := 0; b.Loop(); i++ {
			op := renameOp(15, 2, names[i%2], 2, names[1-i%2], 0)
			if _, err := tr.Apply(&op); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkScan is Open of a volume with -files files: seconds with the caches warm and cold, and the memory that the index holds. For a million:
//
//	go test ./replication/tree -run '^$' -bench Scan -benchtime 1x -files 1000000 -dir /var/tmp
func BenchmarkScan(b *testing.B) {
	tr, dir := benchTree(b)
	next := FileID(1)
	for i := 0; i < *benchFiles; i += 100 {
		next++
		d := next
		apply(b, tr, newDir(d, 1, fmt.Sprint(i)))
		for k := range 100 {
			next++
			apply(b, tr, newFile(next, d, fmt.Sprint(k)))
		}
	}
	must(b, tr.Sync())
	must(b, tr.Close())
	heap := func() uint64 {
		debug.FreeOSMemory()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse
	}
	for _, cold := range []bool{false, true} {
		b.Run(map[bool]string{false: "warm", true: "cold"}[cold], func(b *testing.B) {
			for b.Loop() {
				if cold {
					b.StopTimer()
					unix.Sync()
					must(b, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
					b.StartTimer()
				}
				before := heap()
				start := time.Now()
				again, err := Open(dir, Options{})
				must(b, err)
				b.ReportMetric(time.Since(start).Seconds(), "s/scan")
				b.ReportMetric(float64(heap()-before)/float64(again.Scanned().Inodes), "B/file")
				b.ReportMetric(float64(again.Scanned().Inodes), "files")
				must(b, again.Close())
			}
		})
	}
}

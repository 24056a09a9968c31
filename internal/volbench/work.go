package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// value is one figure of one run of a workload.
type value struct {
	Workload string  `json:"workload"`
	Unit     string  `json:"unit"`
	Value    float64 `json:"value"`
}

// job is a workload in a directory, for about as long as it says.
type job struct {
	dir  string
	time time.Duration
	out  []value
}

func (j *job) at(name string) string { return filepath.Join(j.dir, name) }

func (j *job) say(workload, unit string, v float64) {
	j.out = append(j.out, value{workload, unit, v})
}

// workloads are run each in a process of its own, in this order.
var workloads = []struct {
	name string
	run  func(*job) error
}{
	{"write_seq", writeSeq}, {"read_seq", readSeq}, {"write_rand_4k", writeRand}, {"fdatasync_4k", fdatasync}, {"fdatasync_4k_4jobs", fdatasync4},
	{"create_4k", create4k}, {"untar", untar}, {"sqlite_wal", func(j *job) error { return sqlite(j, "WAL") }},
	{"sqlite_delete", func(j *job) error { return sqlite(j, "DELETE") }}, {"pgbench", pgbench},
}

// work runs one workload and prints its values.
func work(args []string) error {
	fs := flag.NewFlagSet("work", flag.ContinueOnError)
	name := fs.String("name", "", "")
	j := &job{}
	fs.StringVar(&j.dir, "dir", "", "")
	fs.DurationVar(&j.time, "time", 2*time.Second, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	for _, w := range workloads {
		if w.name == *name {
			if err := w.run(j); err != nil {
				return fmt.Errorf("%s: %w", *name, err)
			}
			return json.NewEncoder(os.Stdout).Encode(j.out)
		}
	}
	return fmt.Errorf("no such workload: %s", *name)
}

const seqSize = 256 << 20

func writeSeq(j *job) error {
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(rand.Uint32())
	}
	f, err := os.OpenFile(j.at("seq"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	start := time.Now()
	for range seqSize / len(buf) {
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	j.say("write_seq", "MB/s", seqSize/1e6/time.Since(start).Seconds())
	return nil
}

// readSeq reads what writeSeq wrote: with nothing of it in memory, then from memory, then at random, by read-only opens and by one for reading and writing.
func readSeq(j *job) error {
	syscall.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for _, what := range []string{"read_seq_cold", "read_seq_warm"} {
		f, err := os.Open(j.at("seq"))
		if err != nil {
			return err
		}
		start, all := time.Now(), 0
		for {
			n, err := f.Read(buf)
			if all += n; err == io.EOF {
				break
			} else if err != nil {
				return err
			}
		}
		j.say(what, "MB/s", float64(all)/1e6/time.Since(start).Seconds())
		f.Close()
	}
	for _, c := range []struct {
		name  string
		flags int
	}{{"read_rand_4k", os.O_RDONLY}, {"read_rand_4k_rdwr", os.O_RDWR}} {
		f, err := os.OpenFile(j.at("seq"), c.flags, 0)
		if err != nil {
			return err
		}
		n, start := 0, time.Now()
		for ; n%64 != 0 || time.Since(start) < j.time/4; n++ {
			if _, err := f.ReadAt(buf[:4096], rand.Int64N(seqSize/4096)*4096); err != nil {
				return err
			}
		}
		j.say(c.name, "op/s", float64(n)/time.Since(start).Seconds())
		f.Close()
	}
	return nil
}

// random writes blocks of 4 KiB at random into a file of 64 MiB that exists.
func random(j *job, name string, jobs int, sync bool) error {
	const size = 64 << 20
	f, err := os.OpenFile(j.at("rand"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() < size {
		if _, err := f.Write(make([]byte, size)); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	took := make([][]time.Duration, jobs)
	errs := make([]error, jobs)
	start := time.Now()
	var wg waitGroup
	for i := range jobs {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), uint64(start.UnixNano())))
			buf := make([]byte, 4096)
			for time.Since(start) < j.time {
				at := time.Now()
				_, err := f.WriteAt(buf, r.Int64N(size/4096)*4096)
				if err == nil && sync {
					err = unix.Fdatasync(int(f.Fd()))
				}
				if err != nil {
					errs[i] = err
					return
				}
				took[i] = append(took[i], time.Since(at))
			}
		})
	}
	wg.Wait()
	all := slices.Concat(took...)
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	j.say(name, "op/s", float64(len(all))/time.Since(start).Seconds())
	slices.Sort(all)
	j.say(name+"_p50", "us", float64(all[len(all)/2].Nanoseconds())/1e3)
	return nil
}

type waitGroup = sync.WaitGroup

func writeRand(j *job) error  { return random(j, "write_rand_4k", 1, false) }
func fdatasync(j *job) error  { return random(j, "fdatasync_4k", 1, true) }
func fdatasync4(j *job) error { return random(j, "fdatasync_4k_4jobs", 4, true) }

func create4k(j *job) error {
	dir := j.at("create")
	os.RemoveAll(dir)
	buf := make([]byte, 4096)
	n, start := 0, time.Now()
	for ; n < 20000 && time.Since(start) < j.time; n++ {
		if n%500 == 0 {
			if err := os.MkdirAll(filepath.Join(dir, fmt.Sprint(n/500)), 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(n/500), fmt.Sprint("f", n)), buf, 0o644); err != nil {
			return err
		}
	}
	j.say("create_4k", "op/s", float64(n)/time.Since(start).Seconds())
	return os.RemoveAll(dir)
}

// untar unpacks 2,000 files in 200 directories with tar(1).
func untar(j *job) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	r := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 16<<10)
	entries := 0
	add := func(h *tar.Header, n int) {
		h.ModTime, h.Size = time.Unix(1.6e9, 0), int64(n)
		w.WriteHeader(h)
		w.Write(data[:n])
		entries++
	}
	for d := range 200 {
		add(&tar.Header{Name: fmt.Sprintf("t/d%d/", d), Mode: 0o755, Typeflag: tar.TypeDir}, 0)
		for f := range 10 {
			add(&tar.Header{Name: fmt.Sprintf("t/d%d/f%d", d, f), Mode: 0o644, Typeflag: tar.TypeReg}, r.IntN(len(data)))
		}
	}
	w.Close()
	os.RemoveAll(j.at("t"))
	cmd := exec.Command("tar", "xf", "-", "-C", j.dir)
	cmd.Stdin = &b
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("tar: %w: %s", err, out)
	}
	j.say("untar", "op/s", float64(entries)/time.Since(start).Seconds())
	return os.RemoveAll(j.at("t"))
}

// sqlite inserts rows, one transaction each, with synchronous FULL, by sqlite3(1).
func sqlite(j *job, mode string) error {
	db := j.at("db-" + mode)
	for _, s := range []string{"", "-wal", "-shm", "-journal"} {
		os.Remove(db + s)
	}
	run := func(n int) (time.Duration, error) {
		var sql strings.Builder
		fmt.Fprintf(&sql, "PRAGMA journal_mode=%s; PRAGMA synchronous=FULL; CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b TEXT);\n", mode)
		for i := range n {
			fmt.Fprintf(&sql, "INSERT INTO t(b) VALUES('row %d %s');\n", i, strings.Repeat("x", 100))
		}
		cmd := exec.Command("sqlite3", "-batch", db)
		cmd.Stdin = strings.NewReader(sql.String())
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("sqlite3: %w: %s", err, out)
		}
		return time.Since(start), nil
	}
	few, err := run(100)
	if err != nil {
		return err
	}
	n := max(200, min(10000, int(100*j.time.Seconds()/few.Seconds())))
	took, err := run(n)
	if err != nil {
		return err
	}
	j.say("sqlite_"+strings.ToLower(mode), "tx/s", float64(n)/took.Seconds())
	return nil
}

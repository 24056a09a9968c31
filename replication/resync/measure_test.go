package resync

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

var (
	measure  = flag.String("measure", "", "measure against rsync and write the figures to this file")
	rounds   = flag.Int("rounds", 5, "how often each is measured")
	mega     = flag.Int("mib", 1024, "content of the tree")
	manySize = flag.Int("many", 1000000, "files of the tree of many files; 0: not measured")
)

// row is one line of the figures, as of every benchmark here.
type row2 struct {
	System   string  `json:"system"`
	Workload string  `json:"workload"`
	Unit     string  `json:"unit"`
	Median   float64 `json:"median"`
	Min      float64 `json:"min"`
	Max      float64 `json:"max"`
}

type figures struct {
	t    *testing.T
	of   map[string][]float64
	keys []string
}

func (f *figures) add(system, workload, unit string, v float64) {
	k := system + "|" + workload + "|" + unit
	if f.of[k] == nil {
		f.keys = append(f.keys, k)
	}
	f.of[k] = append(f.of[k], v)
}

func (f *figures) write(name string) {
	var out []row2
	for _, k := range f.keys {
		p, v := strings.Split(k, "|"), f.of[k]
		slices.Sort(v)
		r := row2{p[0], p[1], p[2], v[len(v)/2], v[0], v[len(v)-1]}
		out = append(out, r)
		f.t.Logf("%-16s %-28s %12.3f %-6s (%.3f to %.3f)", r.System, r.Workload, r.Median, r.Unit, r.Min, r.Max)
	}
	b, err := json.MarshalIndent(out, "", " ")
	must(f.t, err, os.WriteFile(name, append(b, '\n'), 0o644))
}

// tcp is a connection over the loopback interface.
func tcp(t testing.TB) (net.Conn, net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	b, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func (f *figures) ours(workload string, from, to *Tree, full bool) Result {
	a, b := tcp(f.t)
	src := make(chan error, 1)
	start := time.Now()
	go func() { src <- Source(context.Background(), Conn(a), from, SourceOptions{Volume: 1}) }()
	r, err := Run(context.Background(), Conn(b), to, TargetOptions{Volume: 1, Full: full})
	must(f.t, err, <-src)
	f.add("hanode", workload, "s", time.Since(start).Seconds())
	f.add("hanode", workload, "MB", float64(r.Received+r.Sent)/1e6)
	must(f.t, to.Settle())
	a.Close()
	b.Close()
	return r
}

var transferred = regexp.MustCompile(`Total bytes (?:sent|received): ([\d,]+)`)

// rsync copies by a daemon, as users do.
func (f *figures) rsync(workload, url, dst string, args ...string) {
	start := time.Now()
	out, err := exec.Command("rsync", append(append([]string{"-aHAX", "--inplace", "--delete", "--stats"}, args...), url, dst)...).CombinedOutput()
	if err != nil {
		f.t.Fatalf("rsync: %v: %s", err, out)
	}
	f.add("rsync", workload, "s", time.Since(start).Seconds())
	sum := 0
	for _, m := range transferred.FindAllStringSubmatch(string(out), -1) {
		n, _ := strconv.Atoi(strings.ReplaceAll(m[1], ",", ""))
		sum += n
	}
	f.add("rsync", workload, "MB", float64(sum)/1e6)
}

// daemon serves a directory by rsync and returns its address.
func daemon(t *testing.T, dir, path string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	conf := filepath.Join(dir, "rsyncd.conf")
	must(t, os.WriteFile(conf, []byte(fmt.Sprintf("use chroot = no\nuid = 0\ngid = 0\n[m]\npath = %s\nread only = yes\n", path)), 0o600))
	cmd := exec.Command("rsync", "--daemon", "--no-detach", "--address=127.0.0.1", fmt.Sprint("--port=", port), "--config="+conf)
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for deadline := time.Now().Add(10 * time.Second); ; {
		if c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port)); err == nil {
			c.Close()
			return fmt.Sprintf("rsync://127.0.0.1:%d/m/", port)
		}
		if time.Now().After(deadline) {
			t.Fatal("the rsync daemon does not listen")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestMeasure is `make bench-resync`.
func TestMeasure(t *testing.T) {
	if *measure == "" {
		t.Skip("make bench-resync")
	}
	disk := scratch(t)
	f := &figures{t: t, of: map[string][]float64{}}
	from := newTree(t, disk+"/a")
	must(t, from.Settle())
	rnd := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, 1<<20)
	random := func(b []byte) []byte {
		for i := 0; i < len(b); i += 8 {
			v := rnd.Uint64()
			for k := range min(8, len(b)-i) {
				b[i+k] = byte(v >> (8 * k))
			}
		}
		return b
	}
	const files = 64
	clock := int64(1e18)
	for i := range files {
		id := FileID(2 + i)
		do(t, from, replication.Op{Kind: replication.Create, ID: id, Parent: 1, Name: fmt.Sprint("f", i), Mode: fileMode})
		for off := 0; off < *mega/files; off++ {
			do(t, from, replication.Op{Kind: replication.Write, ID: id, Off: int64(off) << 20, Data: random(b), Time: clock})
		}
	}
	_, err := exec.LookPath("rsync")
	withRsync := err == nil
	url := ""
	if withRsync {
		url = daemon(t, disk, disk+"/a/tree")
	} else {
		t.Log("no rsync here: not compared")
	}
	to := newTree(t, disk+"/b")
	f.ours("first copy", from, to, true)
	if withRsync {
		f.rsync("first copy", url, disk+"/r/")
	}
	for range *rounds {
		must(t, from.FlushTimes())
		f.ours("nothing changed", from, to, false)
		f.ours("nothing changed, all content", from, to, true)
		if withRsync {
			f.rsync("nothing changed", url, disk+"/r/")
			f.rsync("nothing changed, all content", url, disk+"/r/", "--checksum")
		}
		clock += 1e9
		for range *mega * 256 / 100 {
			do(t, from, replication.Op{Kind: replication.Write, ID: FileID(2 + rnd.IntN(files)), Off: int64(rnd.IntN(*mega/files*256)) * blockSize, Data: random(b[:blockSize]), Time: clock})
		}
		must(t, from.FlushTimes())
		r := f.ours("1 % of blocks changed", from, to, false)
		f.add("(changed)", "1 % of blocks changed", "MB", float64(r.Written)/1e6)
		if withRsync {
			f.rsync("1 % of blocks changed", url, disk+"/r/")
		}
	}
	equal(t, from, to)
	if *manySize > 0 {
		f.many(disk)
	}
	f.write(*measure)
}

// heap is the memory in use after a collection, in MB.
func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / 1e6
}

// many is a tree of many small files: each side's memory is bounded.
func (f *figures) many(disk string) {
	t := f.t
	from, to := newTree(t, disk+"/ma"), newTree(t, disk+"/mb")
	must(t, from.Settle())
	n := *manySize
	what := fmt.Sprintf("%d files", n)
	before := heap()
	start := time.Now()
	op := replication.Op{Volume: 1, Kind: replication.Create, ID: 2, Mode: unix.S_IFREG | 0o644, Time: 1e18}
	for i := range n {
		if i%1000 == 0 {
			op.Parent, op.Name, op.Mode = 1, fmt.Sprint("d", i/1000), dirMode
			_, err := from.Apply(&op)
			must(t, err)
			op.Parent, op.Mode = op.ID, fileMode
			op.ID++
		}
		op.Name = fmt.Sprint("file-", i)
		_, err := from.Apply(&op)
		must(t, err)
		op.ID++
	}
	must(t, from.FlushTimes())
	f.add("hanode", "create "+what, "s", time.Since(start).Seconds())
	f.add("hanode", "index of "+what, "MB", heap()-before)
	peak := make(chan float64, 1)
	stop := make(chan struct{})
	base := heap()
	go func() {
		most := 0.0
		for {
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(200 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, float64(m.HeapAlloc)/1e6)
			}
		}
	}()
	f.ours("first copy of "+what, from, to, true)
	f.ours("nothing changed in "+what, from, to, false)
	a, b := tcp(t)
	src := make(chan error, 1)
	start = time.Now()
	go func() { src <- Source(context.Background(), Conn(a), from, SourceOptions{Volume: 1}) }()
	r, err := Verify(context.Background(), Conn(b), to, VerifyOptions{Volume: 1})
	must(t, err, <-src)
	f.add("hanode", "verify of "+what, "s", time.Since(start).Seconds())
	if len(r.Differences) > 0 {
		t.Errorf("%+v", r.Differences[0])
	}
	close(stop)
	f.add("hanode", "both sides' heap at most, beside the source's index, "+what, "MB", <-peak-base)
	f.add("hanode", "of that the follower's index, "+what, "MB", heap()-base)
	_ = tree.Options{}
}

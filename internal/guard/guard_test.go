package guard

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/internal/cgroup"
	"github.com/hanode/hanode/internal/page"
	"github.com/hanode/hanode/internal/rt"
)

// The test binary is its own guard and its own daemon.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case Subcommand:
			if err := Main(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		case "be-daemon":
			if err := beDaemon(os.Args[2]); err != nil {
				fmt.Println("daemon:", err)
				os.Exit(1)
			}
			return
		}
	}
	os.Exit(m.Run())
}

const (
	testTTL   = 250 * time.Millisecond
	testRenew = 50 * time.Millisecond
)

// beDaemon is a daemon in a network namespace of its own that renews its lease until somebody kills or stops it.
func beDaemon(root string) error {
	runtime.LockOSThread()
	rt.Enter(rt.Priority)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	vip := netip.MustParsePrefix("10.77.0.1/32")
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: vip.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.AddrAdd(lo, addr)); err != nil {
		return err
	}
	r, err := cgroup.OpenPath(root)
	if err != nil {
		return err
	}
	svc, err := r.Group("svc")
	if err != nil {
		return err
	}
	p, err := page.Create("svc")
	if err != nil {
		return err
	}
	p.SetTTL(testTTL)
	g, err := Start(Config{})
	if err != nil {
		return err
	}
	if err := g.Add(context.Background(), Service{No: 1, Page: p.File(), Group: svc, Addresses: [][]byte{DeleteAddress(1, vip)}}); err != nil {
		return err
	}
	for n := range 2 {
		sub, err := svc.Sub(fmt.Sprint("p", n))
		if err != nil {
			return err
		}
		join, err := sub.Joining()
		if err != nil {
			return err
		}
		cmd := exec.Command("/bin/sh", "-c", "echo 0 >&3; setsid sleep 1000 & while :; do sleep 0.005; done")
		cmd.ExtraFiles = []*os.File{join}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		sub.Attr(cmd.SysProcAttr)
		if err := cmd.Start(); err != nil {
			return err
		}
	}
	fmt.Println("up", os.Getpid(), g.Pid(), p.File().Fd(), g.Refused())
	for {
		p.Set(1, rt.Now().Add(testTTL), page.Active)
		time.Sleep(testRenew)
	}
}

// daemon is a running beDaemon seen from outside.
type daemon struct {
	cmd    *exec.Cmd
	guard  int
	pidfd  int // of the guard
	group  *cgroup.Group
	page   *page.Reader
	stderr *os.File
}

func startDaemon(t *testing.T) *daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups and a network namespace")
	}
	root, err := cgroup.Open(cgroup.Options{Name: fmt.Sprintf("guard-%d-%d", os.Getpid(), rt.Now()%1e9)})
	if err != nil {
		t.Fatal(err)
	}
	if root.Report().Mode == "processes" {
		t.Skip("no cgroups here: " + root.Report().NotCovered)
	}
	d := &daemon{}
	t.Cleanup(func() {
		self, err := root.Self()
		if err != nil {
			t.Fatal(err)
		}
		self.Kill()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := errors.Join(self.WaitEmpty(ctx), self.Remove()); err != nil {
			t.Error(err)
		}
		root.Close()
	})
	if d.group, err = root.Group("svc"); err != nil {
		t.Fatal(err)
	}
	d.cmd = exec.Command("/proc/self/exe", "be-daemon", root.Path())
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	d.stderr, d.cmd.Stderr = errR, errW
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	errW.Close()
	t.Cleanup(func() {
		d.cmd.Process.Kill()
		d.cmd.Wait()
		unix.PidfdSendSignal(d.pidfd, unix.SIGKILL, nil, 0)
		unix.Close(d.pidfd)
		errR.Close()
	})
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "up ") {
		t.Fatalf("the daemon says %q", lines.Text())
	}
	t.Log(lines.Text())
	d.guard, _ = strconv.Atoi(strings.Fields(lines.Text())[2])
	if d.pidfd, err = unix.PidfdOpen(d.guard, 0); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/fd/%s", d.cmd.Process.Pid, strings.Fields(lines.Text())[3]))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if d.page, err = page.OpenFD(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.page.Close() })
	begun := rt.Now()
	until(t, "some renewals", func() bool { return d.page.Load().Deadline > begun.Add(2*testTTL) }) // a guard that kills a healthy service shows here
	if populated, frozen, err := d.group.State(); !populated || frozen || err != nil {
		t.Fatalf("a healthy service: populated %v, frozen %v, %v", populated, frozen, err)
	}
	return d
}

// until polls without sleeping long and says when the condition was first seen.
func until(t *testing.T, what string, f func() bool) int64 {
	t.Helper()
	give := time.Now().Add(5 * time.Second)
	for !f() {
		if time.Now().After(give) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(100 * time.Microsecond)
	}
	return int64(rt.Now())
}

func (d *daemon) vipIsThere() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/fib_trie", d.guard))
	return err == nil && strings.Contains(string(b), "10.77.0.1")
}

func (d *daemon) guardIsGone(within time.Duration) bool {
	for give := time.Now().Add(within); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(d.pidfd), Events: unix.POLLIN}}, int(time.Until(give).Milliseconds())+1)
		if n == 1 || err != unix.EINTR && time.Now().After(give) {
			return n == 1
		}
	}
}

func TestTheProcessesOfADeadOrHungDaemonAreFrozenAt84PercentAndKilledAtTheDeadline(t *testing.T) {
	for _, c := range []struct {
		name string
		sig  syscall.Signal
	}{{"SIGKILL", syscall.SIGKILL}, {"SIGSTOP", syscall.SIGSTOP}} {
		t.Run(c.name, func(t *testing.T) {
			d := startDaemon(t)
			if !d.vipIsThere() {
				t.Fatal("the address is not there to begin with")
			}
			if err := d.cmd.Process.Signal(c.sig); err != nil {
				t.Fatal(err)
			}
			frozen := until(t, "frozen", func() bool { p, f, _ := d.group.State(); return f || !p })
			killed := until(t, "killed", func() bool { p, _, _ := d.group.State(); return !p })
			deadline := int64(d.page.Load().Deadline)
			late := func(at, want int64) time.Duration { return time.Duration(at - want) }
			freezeLate, killLate := late(frozen, deadline-int64(testTTL)*16/100), late(killed, deadline)
			t.Logf("frozen %v after 84 %%, empty %v after the deadline, as seen from outside", freezeLate, killLate)
			if freezeLate < -time.Millisecond || killLate < 0 {
				t.Error("too early")
			}
			if freezeLate > 39*time.Millisecond || killLate > 60*time.Millisecond { // for a busy machine; some on an idle one
				t.Error("too late")
			}
			until(t, "the address to go", func() bool { return !d.vipIsThere() })
			if c.sig == syscall.SIGSTOP {
				if d.guardIsGone(50 * time.Millisecond) {
					t.Fatal("the guard left a daemon that only hangs")
				}
				d.cmd.Process.Kill()
			}
			if !d.guardIsGone(3 * time.Second) {
				t.Fatal("the guard of a dead daemon stays for ever")
			}
			if c.sig == syscall.SIGKILL {
				said, _ := io.ReadAll(d.stderr)
				t.Logf("%s", said)
				if !strings.Contains(string(said), "killed service 1 epoch 1") {
					t.Error("the guard did not say what it did")
				}
			}
		})
	}
}

func TestTheGuardIsRealtimeAndCannotBeAskedToLeave(t *testing.T) {
	d := startDaemon(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		unix.PidfdSendSignal(d.pidfd, sig, nil, 0)
	}
	if d.guardIsGone(50 * time.Millisecond) {
		t.Fatal("it left")
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", d.guard))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		if policy, prio, err := rt.Policy(tid); err == nil && (policy != unix.SCHED_RR || prio != rt.Priority+1) {
			t.Errorf("thread %d has policy %d, priority %d", tid, policy, prio)
		}
	}
	if sid, err := unix.Getsid(d.guard); err != nil || sid != d.guard {
		t.Errorf("its session is %d: %v", sid, err)
	}
}

// local is a guard of this process, with a page and a group.
type local struct {
	*Guard
	page  *page.Writer
	group *cgroup.Group
	empty *cgroup.Group
	said  chan Event
}

func startLocal(t *testing.T) *local {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups")
	}
	root, err := cgroup.Open(cgroup.Options{Name: fmt.Sprintf("guard-%d-%d", os.Getpid(), rt.Now()%1e9)})
	if err != nil {
		t.Fatal(err)
	}
	if root.Report().Mode == "processes" {
		t.Skip("no cgroups here: " + root.Report().NotCovered)
	}
	l := &local{said: make(chan Event, 100)}
	own, err := root.Group("guard")
	if err != nil {
		t.Fatal(err)
	}
	if l.group, err = root.Group("svc"); err != nil {
		t.Fatal(err)
	}
	if l.empty, err = root.Group("empty"); err != nil {
		t.Fatal(err)
	}
	if l.page, err = page.Create("svc"); err != nil {
		t.Fatal(err)
	}
	l.page.SetTTL(testTTL)
	l.Guard, err = Start(Config{Group: own, Events: func(e Event) {
		select {
		case l.said <- e:
		default:
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.page.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			t.Error(err)
		}
		self, err := root.Self()
		if err != nil {
			t.Fatal(err)
		}
		self.Kill()
		if err := errors.Join(self.WaitEmpty(ctx), self.Remove()); err != nil {
			t.Error(err)
		}
		root.Close()
	})
	if has := own.Has(l.Pid()); !has {
		t.Error("the guard is not in its own group")
	}
	return l
}

func (l *local) add(t *testing.T) {
	t.Helper()
	if err := l.Add(t.Context(), Service{No: 7, Page: l.page.File(), Group: l.group}); err != nil {
		t.Fatal(err)
	}
}

func (l *local) run(t *testing.T) {
	t.Helper()
	sub, err := l.group.Sub("p")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	if err := sub.Renew(); err != nil {
		t.Fatal(err)
	}
	join, err := sub.Joining()
	if err != nil {
		t.Fatal(err)
	}
	defer join.Close()
	cmd := exec.Command("sh", "-c", "echo 0 >&3; echo; exec sleep 1000")
	cmd.ExtraFiles = []*os.File{join}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	sub.Attr(cmd.SysProcAttr)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-done })
}

func (l *local) next(t *testing.T, what Done) Event {
	t.Helper()
	give := time.After(5 * time.Second)
	for {
		select {
		case e := <-l.said:
			if e.What == what {
				return e
			}
		case <-give:
			t.Fatalf("the guard never %v it", what)
		}
	}
}

func TestTheKillComesWithinAMillisecondOfTheDeadline(t *testing.T) {
	l := startLocal(t)
	l.add(t)
	best := time.Hour
	for n := 1; n <= 4; n++ {
		l.run(t)
		l.page.Set(1, rt.Now().Add(60*time.Millisecond), page.Active)
		l.Look()
		e := l.next(t, Killed)
		if e.Service != 7 || e.Epoch != 1 || e.Errno != 0 || e.Late < 0 {
			t.Errorf("%+v", e)
		}
		best = min(best, e.Late)
		until(t, "empty", func() bool { p, _, _ := l.group.State(); return !p })
		l.page.Set(1, 0, page.Standby)
		until(t, "thawed", func() bool {
			b, _ := os.ReadFile(l.group.Path() + "/run/cgroup.freeze")
			return strings.HasPrefix(string(b), "0")
		})
	}
	t.Logf("late by %v, the best of 4", best)
	if best > time.Millisecond && !strings.Contains(l.Refused(), "real-time") {
		t.Errorf("late by %v", best)
	}
}

// The guard sleeps for long while nothing is due; it is told what cannot wait.
func TestAGuardThatIsToldLooksAtOnce(t *testing.T) {
	l := startLocal(t)
	l.add(t)
	best := time.Hour
	for range 4 {
		l.run(t)
		l.page.Set(1, rt.Now().Add(time.Hour), page.Active)
		l.Look()
		asked := rt.Now()
		l.page.Set(1, 0, page.Fenced)
		l.Look()
		best = min(best, l.next(t, Killed).At.Sub(asked))
		l.page.Set(1, 0, page.Standby)
		l.Look()
		until(t, "empty", func() bool { p, _, _ := l.group.State(); return !p })
	}
	if best > look/4 {
		t.Errorf("killed %v after it was told, the best of 4", best)
	}
}

func TestALateRenewalThawsAndNothingIsKilled(t *testing.T) {
	l := startLocal(t)
	l.add(t)
	l.run(t)
	l.page.Set(1, rt.Now().Add(testTTL), page.Active)
	l.next(t, Froze)
	l.page.Set(1, rt.Now().Add(testTTL), page.Active)
	l.next(t, Thawed)
	if p, _, _ := l.group.State(); !p {
		t.Error("it was killed")
	}
	l.page.Set(1, 0, page.Standby)
}

func TestQuiesceReportsFrozenAndResumeThaws(t *testing.T) {
	l := startLocal(t)
	l.add(t)
	l.run(t)
	l.page.Set(1, rt.Now().Add(time.Minute), page.Active)
	for range 5 {
		began := time.Now()
		if err := l.Quiesce(t.Context(), 7); err != nil {
			t.Fatal(err)
		}
		t.Logf("quiesce took %v", time.Since(began))
		if _, frozen, _ := l.group.State(); !frozen {
			t.Error("reported before it was frozen")
		}
		if err := l.Resume(t.Context(), 7); err != nil {
			t.Fatal(err)
		}
		until(t, "thawed", func() bool { _, f, _ := l.group.State(); return !f })
	}
	if err := l.Quiesce(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	l.page.Set(1, 0, page.Standby) // released: the hot process goes on as standby
	until(t, "thawed", func() bool { _, f, _ := l.group.State(); return !f })
	if err := l.Quiesce(t.Context(), 8); !errors.Is(err, unix.ENOENT) {
		t.Errorf("an unknown service: %v", err)
	}
	if err := l.Add(t.Context(), Service{No: 7, Page: l.page.File(), Group: l.group}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("added twice: %v", err)
	}
	if err := l.Remove(t.Context(), 7); err != nil {
		t.Error(err)
	}
	if err := l.Add(t.Context(), Service{No: 9, Page: l.page.File(), Group: l.empty}); err != nil {
		t.Fatal(err)
	}
	l.page.Set(2, rt.Now().Add(time.Minute), page.Active)
	if err := l.Quiesce(t.Context(), 9); err != nil {
		t.Errorf("nobody left is as good as frozen: %v", err)
	}
	l.page.Set(2, 0, page.Standby)
}

func TestTheGuardOfAServiceThatIsStillActiveOutlivesItsSocket(t *testing.T) {
	l := startLocal(t)
	l.add(t)
	l.run(t)
	l.page.Set(1, rt.Now().Add(200*time.Millisecond), page.Active)
	l.conn.Close()
	select {
	case <-l.Done():
		t.Fatal("it left before the deadline")
	case <-time.After(100 * time.Millisecond):
	}
	<-l.Done()
	until(t, "empty", func() bool { p, _, _ := l.group.State(); return !p })
}

func TestTheMemoryOfTheGuardStaysFlat(t *testing.T) {
	l := startLocal(t)
	l.add(t)
	rss := func() int {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", l.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.Atoi(strings.Fields(string(b))[1])
		return n * os.Getpagesize()
	}
	work := func(n int) {
		for range n {
			l.page.Set(1, rt.Now().Add(time.Minute), page.Active)
			if err := l.Quiesce(t.Context(), 7); err != nil {
				t.Fatal(err)
			}
			if err := l.Resume(t.Context(), 7); err != nil {
				t.Fatal(err)
			}
		}
	}
	work(50)
	before := rss()
	work(1000)
	after := rss()
	t.Logf("%d KiB before, %d KiB after 2000 requests", before>>10, after>>10)
	if after > before+64<<10 {
		t.Error("it grows")
	}
	l.page.Set(1, 0, page.Standby)
}

func TestARoundOfTheGuardAllocatesNothing(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	k, err := newKeeper(pair[1])
	if err != nil {
		t.Fatal(err)
	}
	p, err := page.Create("x")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r, err := page.OpenFD(int(p.File().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	s := &k.services[3]
	*s = service{used: true, no: 1, page: r, freeze: fd, kill: fd, life: fd, ice: fd, abort: fd}
	s.lens[0] = copy(s.netlink[0][:], DeleteAddress(4242, netip.MustParsePrefix("10.77.0.2/32")))
	quiesce, _ := encodeRequest(kindQuiesce, 5, 1, nil)
	buf := make([]byte, maxMessage)
	p.SetTTL(testTTL)
	n := testing.AllocsPerRun(200, func() {
		now := rt.Now()
		for _, left := range []time.Duration{testTTL, testTTL / 10, testTTL, -1, -time.Second} { // renewed, frozen, thawed, killed, killed again
			p.Set(1, now.Add(left), page.Active)
			k.act(now)
		}
		p.Set(1, 0, page.Standby)
		k.act(now)
		unix.Write(pair[0], quiesce)
		k.receive()
		k.act(now)
		k.sleep(1)
		for {
			if n, _ := unix.Read(pair[0], buf); n <= 0 {
				break
			}
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestBrokenMessagesAreRefused(t *testing.T) {
	good, err := encodeRequest(kindUpdate, 1, 2, [][]byte{DeleteAddress(1, netip.MustParsePrefix("fd00::1/64"))})
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		r, ok := decodeRequest(good[:n])
		if !ok {
			continue
		}
		var s service
		if e := s.setNetlink(r); e == 0 {
			t.Errorf("cut to %d of %d bytes: accepted", n, len(good))
		}
	}
	if _, err := encodeRequest(kindAdd, 1, 1, make([][]byte, maxNetlink+1)); err == nil {
		t.Error("too many addresses were accepted")
	}
	if _, err := encodeRequest(kindAdd, 1, 1, [][]byte{make([]byte, maxNetlinkN+1)}); err == nil {
		t.Error("too long a message was accepted")
	}
}

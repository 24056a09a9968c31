// Package nstest gives tests throw-away network namespaces: hosts with interfaces of their own, cables between them and
// switches. It exists so that addresses, gates, sockets and faults can be tested for real on any machine, without
// touching the machine's own network.
//
// A namespace lives as long as its test: it is held by one file descriptor, which the test's clean-up closes; the kernel
// then removes every interface in it. Nothing is mounted and no name appears under /run/netns.
//
// A network namespace belongs to a thread, not to a goroutine. NS.Do therefore runs its function on a goroutine that is
// locked to a thread of its own, and lets the thread die afterwards. What the function opens (sockets, netlink handles)
// stays in the namespace wherever it is used later; goroutines that the function starts do not.
package nstest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NS is one network namespace: a host, or a switch, of a test.
type NS struct {
	t    testing.TB
	file *os.File // holds the namespace
	nl   *netlink.Handle
}

// New makes an empty network namespace with its loopback interface up and IPv6's duplicate address detection off for
// interfaces to come (write accept_dad to have it back). The test is skipped when the process may not make namespaces.
func New(t testing.TB) *NS {
	t.Helper()
	NeedRoot(t)
	ns := &NS{t: t}
	if err := onOwnThread(func() error { return ns.unshare() }); err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() {
		ns.nl.Close()
		ns.file.Close()
	})
	return ns
}

// NeedRoot skips the test when the process may not make network namespaces.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces (run as root, or under `unshare -r -n` with root's capabilities)")
	}
	probe := func() error { return unix.Unshare(unix.CLONE_NEWNET) }
	if err := onOwnThread(probe); errors.Is(err, unix.EPERM) {
		t.Skip("needs root: unshare(CLONE_NEWNET) is refused although the user is root (no CAP_SYS_ADMIN, or seccomp)")
	}
}

func (ns *NS) unshare() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		f.Close()
		return err
	}
	ns.file, ns.nl = f, h
	for _, conf := range []string{"all", "default"} {
		// Absent when IPv6 is off on this machine; the tests that need it will say so.
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+conf+"/accept_dad", []byte("0"), 0)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}

// Do runs fn on a thread in the namespace and returns its error. Calls may run side by side. fn must not call t.Fatal.
// Processes that fn starts are in the namespace; do not give them a Pdeathsig, since the thread ends with fn.
func (ns *NS) Do(fn func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace of the test: %w", err)
		}
		return fn()
	})
}

// onOwnThread runs fn on a new thread that ends with it.
func onOwnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("the function left its goroutine (runtime.Goexit)")
		defer func() { done <- err }()
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err = fn()
	}()
	return <-done
}

// MustDo is Do that fails the test on an error.
func (ns *NS) MustDo(fn func() error) {
	ns.t.Helper()
	if err := ns.Do(fn); err != nil {
		ns.t.Fatal(err)
	}
}

// Command is exec.Command whose process runs in the namespace, whoever starts it. Its pid is the program's own.
func (ns *NS) Command(name string, args ...string) *exec.Cmd {
	argv := append([]string{"--net=" + ns.Path(), "--", name}, args...)
	return exec.Command("nsenter", argv...)
}

// Path is a path to the namespace that other processes of this machine can open while the test runs.
func (ns *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd()) }

// Netlink is a route netlink handle in the namespace. Lists through it can return netlink.ErrDumpInterrupted: see Retry.
func (ns *NS) Netlink() *netlink.Handle { return ns.nl }

// Retry repeats a netlink list as long as the kernel interrupts it because the list was changing.
func Retry[T any](list func() (T, error)) (T, error) {
	for n := 0; ; n++ {
		v, err := list()
		if n == 100 || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return v, err
		}
	}
}

// Sysctl writes value to /proc/sys/net/<key> of the namespace, for example key "ipv4/conf/eth0/arp_ignore".
func (ns *NS) Sysctl(key, value string) {
	ns.t.Helper()
	ns.MustDo(func() error { return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0) })
}

// ReadSysctl reads /proc/sys/net/<key> of the namespace, without the line's end.
func (ns *NS) ReadSysctl(key string) string {
	ns.t.Helper()
	var out []byte
	ns.MustDo(func() (err error) {
		out, err = os.ReadFile("/proc/sys/net/" + key)
		return err
	})
	for len(out) > 0 && out[len(out)-1] == '\n' {
		out = out[:len(out)-1]
	}
	return string(out)
}

// LinkByName returns an interface of the namespace; the test fails when it is not there.
func (ns *NS) LinkByName(name string) netlink.Link {
	ns.t.Helper()
	l, err := ns.nl.LinkByName(name)
	if err != nil {
		ns.t.Fatalf("interface %s: %v", name, err)
	}
	return l
}

// Up sets an interface up.
func (ns *NS) Up(name string) {
	ns.t.Helper()
	if err := ns.nl.LinkSetUp(ns.LinkByName(name)); err != nil {
		ns.t.Fatalf("set %s up: %v", name, err)
	}
}

// Down sets an interface down.
func (ns *NS) Down(name string) {
	ns.t.Helper()
	if err := ns.nl.LinkSetDown(ns.LinkByName(name)); err != nil {
		ns.t.Fatalf("set %s down: %v", name, err)
	}
}

// Addr gives an interface an address, such as "10.0.0.1/24" or "fd00::1/64".
func (ns *NS) Addr(name, prefix string) {
	ns.t.Helper()
	if err := ns.nl.AddrAdd(ns.LinkByName(name), address(ns.t, prefix)); err != nil {
		ns.t.Fatalf("add %s to %s: %v", prefix, name, err)
	}
	ns.usable(prefix)
}

// usable waits until an IPv6 address can be bound: the kernel makes its local route only after it has acknowledged the address.
func (ns *NS) usable(prefix string) {
	ns.t.Helper()
	p, err := netip.ParsePrefix(prefix)
	if err != nil || p.Addr().Is4() {
		return
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := ns.Do(func() error {
			c, err := net.ListenPacket("udp", netip.AddrPortFrom(p.Addr(), 0).String())
			if err == nil {
				c.Close()
			}
			return err
		})
		if err == nil || p.Addr().IsLinkLocalUnicast() {
			return
		}
		if time.Now().After(deadline) {
			ns.t.Fatalf("%s was added and cannot be bound: %v", prefix, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// DelAddr takes an address from an interface.
func (ns *NS) DelAddr(name, prefix string) {
	ns.t.Helper()
	if err := ns.nl.AddrDel(ns.LinkByName(name), address(ns.t, prefix)); err != nil {
		ns.t.Fatalf("remove %s from %s: %v", prefix, name, err)
	}
}

func address(t testing.TB, prefix string) *netlink.Addr {
	t.Helper()
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		t.Fatal(err)
	}
	bits := p.Addr().BitLen()
	return &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), bits)}}
}

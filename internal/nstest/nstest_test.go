package nstest

import (
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestHostsOnASwitchReachEachOther(t *testing.T) {
	a, b := New(t), New(t)
	Switch(t, a, b)
	a.Addr("eth0", "10.0.0.1/24")
	b.Addr("eth0", "10.0.0.2/24")
	a.Addr("eth0", "fd00::1/64")
	b.Addr("eth0", "fd00::2/64")
	for _, addr := range []string{"10.0.0.2:0", "[fd00::2]:0"} {
		var l net.Listener
		b.MustDo(func() (err error) { l, err = net.Listen("tcp", addr); return err })
		t.Cleanup(func() { l.Close() })
		a.MustDo(func() error {
			c, err := net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs {
		if s := addr.String(); s == "10.0.0.1/24" || s == "fd00::1/64" {
			t.Fatalf("the machine itself has the test's address %s", s)
		}
	}
}

func TestACommandRunsInItsNamespace(t *testing.T) {
	ns := New(t)
	var want string
	ns.MustDo(func() (err error) { want, err = os.Readlink("/proc/thread-self/ns/net"); return err })
	out, err := ns.Command("readlink", "/proc/self/ns/net").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != want {
		t.Fatalf("the command ran in %s, want %s", got, want)
	}
	if here, _ := os.Readlink("/proc/thread-self/ns/net"); here == want {
		t.Fatal("the test itself is in the namespace")
	}
}

func TestDoReturnsWhenItsFunctionLeavesTheGoroutine(t *testing.T) {
	if err := New(t).Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Fatal("want an error")
	}
}

package vip

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is the network namespace in which a Keeper was made. Sockets stay in theirs by themselves; what is opened or
// written later (packet sockets of a new interface, sysctls) must be done on a thread that is in it. In a daemon every
// thread is; where several nodes share a process, as in tests, in enters it for the time of a call.
type namespace struct {
	file     *os.File
	dev, ino uint64
}

const threadNamespace = "/proc/thread-self/ns/net"

func currentNamespace() (*namespace, error) {
	f, err := os.Open(threadNamespace)
	if err != nil {
		return nil, fmt.Errorf("open this thread's network namespace: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("look at this thread's network namespace: %w", err)
	}
	return &namespace{file: f, dev: st.Dev, ino: st.Ino}, nil
}

func (n *namespace) close() { n.file.Close() }

// in runs fn in the namespace.
func (n *namespace) in(fn func() error) error {
	runtime.LockOSThread()
	var st unix.Stat_t
	if err := unix.Stat(threadNamespace, &st); err == nil && st.Dev == n.dev && st.Ino == n.ino {
		defer runtime.UnlockOSThread()
		return fn()
	}
	back, err := os.Open(threadNamespace)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open this thread's network namespace: %w", err)
	}
	defer back.Close()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network namespace of the VIPs: %w", err)
	}
	defer func() {
		// A thread that cannot go back stays locked, and so ends with its goroutine instead of serving others.
		if unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return fn()
}

package gate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// device is an interface of this network namespace.
type device struct {
	index   int
	name    string
	framing framing
}

// listDevices asks the kernel for every interface (rtnetlink(7), RTM_GETLINK) and asks again when the list changed
// meanwhile.
func listDevices() ([]device, error) {
	const dumpInterrupted = 0x10 // NLM_F_DUMP_INTR
	const tries = 10
again:
	for range tries {
		rib, err := syscall.NetlinkRIB(syscall.RTM_GETLINK, syscall.AF_UNSPEC)
		if err != nil {
			return nil, fmt.Errorf("list the interfaces: %w", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(rib)
		if err != nil {
			return nil, fmt.Errorf("list the interfaces: %w", err)
		}
		var devs []device
		for i := range msgs {
			if msgs[i].Header.Flags&dumpInterrupted != 0 {
				continue again
			}
			if d, ok := parseLink(&msgs[i]); ok {
				devs = append(devs, d)
			}
		}
		return devs, nil
	}
	return nil, fmt.Errorf("list the interfaces: the list changed during each of %d tries: stop what creates interfaces, then start again", tries)
}

// parseLink reads an RTM_NEWLINK message: struct ifinfomsg, then attributes.
func parseLink(m *syscall.NetlinkMessage) (device, bool) {
	if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
		return device{}, false
	}
	d := device{index: int(int32(binary.NativeEndian.Uint32(m.Data[4:]))), framing: bare}
	switch binary.NativeEndian.Uint16(m.Data[2:]) {
	case unix.ARPHRD_ETHER, unix.ARPHRD_LOOPBACK:
		d.framing = ethernet
	}
	attrs, err := syscall.ParseNetlinkRouteAttr(m)
	if err != nil {
		return d, true // the name is only for messages
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_IFNAME {
			d.name = unix.ByteSliceToString(a.Value)
		}
	}
	return d, true
}

// linkEvents is a socket on which the kernel tells of every new or changed interface.
type linkEvents struct {
	sock *os.File
	buf  [1 << 16]byte
}

func openLinkEvents() (*linkEvents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a socket for events of interfaces: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to events of interfaces: %w", err)
	}
	return &linkEvents{sock: os.NewFile(uintptr(fd), "link events")}, nil
}

// next waits for interfaces to appear or change, until the given time. ok is false when it is unknown what happened:
// time is up, or events were lost. Then everything has to be looked at.
func (e *linkEvents) next(until time.Time) (devs []device, ok bool, err error) {
	if err := e.sock.SetReadDeadline(until); err != nil {
		return nil, false, fmt.Errorf("wait for events of interfaces: %w", err)
	}
	n, err := e.sock.Read(e.buf[:])
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ENOBUFS):
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("read events of interfaces: %w", err)
	}
	msgs, err := syscall.ParseNetlinkMessage(e.buf[:n])
	if err != nil {
		return nil, false, nil
	}
	for i := range msgs {
		if d, ok := parseLink(&msgs[i]); ok {
			devs = append(devs, d)
		}
	}
	return devs, true, nil
}

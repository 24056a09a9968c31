package gate

import (
	"bytes"
	"net/netip"
	"os"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tagged builds a frame of 64 bytes with VLAN tags in front of an IPv4 header.
func tagged(dst, src []byte, from, to netip.Addr, tags ...uint16) []byte {
	f := append(append([]byte{}, dst...), src...)
	for i, t := range tags {
		f = append(f, byte(t>>8), byte(t), 0, byte(10+i))
	}
	f = append(f, 8, 0, 0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0)
	f = append(append(f, from.AsSlice()...), to.AsSlice()...)
	return append(f, 0xca, 0xfe, 0xf0, 0x0d, 0, 0, 0, 0)
}

func TestVLANFramesOfTheVIPAreDroppedInAndOut(t *testing.T) {
	t.Parallel()
	for _, form := range []Form{TCX, Clsact} {
		t.Run(string(form), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			c := startChild(t, w.node)
			c.open(form)
			c.vips(1, vip4)
			nodeMAC, _ := w.node.mac(t, "n0")
			clientMAC, _ := w.client.mac(t, "c0")
			other := netip.MustParseAddr("10.9.0.2")
			in, out := w.client.packets(t, "c0", unix.ETH_P_ALL), w.node.packets(t, "n0", unix.ETH_P_ALL)
			defer unix.Close(in)
			defer unix.Close(out)
			dropped := func() uint64 { return c.do(order{Do: "stats"}).Stats["dropped_ipv4"] }
			number := byte(0)
			for name, tags := range map[string][]uint16{
				"802.1Q": {0x8100}, "802.1ad and 802.1Q": {0x88a8, 0x8100}, "two 802.1Q": {0x8100, 0x8100}, "three tags": {0x88a8, 0x8100, 0x8100},
			} {
				before := dropped()
				if _, err := unix.Write(in, tagged(nodeMAC, clientMAC, other, vip4, tags...)); err != nil {
					t.Fatal(err)
				}
				eventually(t, time.Second, name+": a frame that comes in is counted as dropped", func() bool { return dropped() > before })
				leaves := func() bool {
					number++
					f := tagged(clientMAC, nodeMAC, vip4, other, tags...)
					f[len(f)-1] = number
					_, _ = unix.Write(out, f)
					return receives(in, answerWait, func(b []byte) bool { return bytes.HasSuffix(b, f[len(f)-8:]) })
				}
				if leaves() {
					t.Errorf("%s: a frame left while shut", name)
				}
				c.lease(1, time.Minute)
				if !retry(leaves) {
					t.Errorf("%s: no frame leaves while open", name)
				}
				c.do(order{Do: "refresh", Service: 1})
			}
		})
	}
}

// openTun makes a layer 3 tunnel device (no Ethernet header) whose other end is the returned file.
func (s space) openTun(t *testing.T, name string) *os.File {
	t.Helper()
	var f *os.File
	s.must(t, "make a tun device", func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		var req struct {
			name  [16]byte
			flags uint16
			_     [22]byte
		}
		copy(req.name[:], name)
		req.flags = unix.IFF_TUN | unix.IFF_NO_PI
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&req))); errno != 0 {
			unix.Close(fd)
			return errno
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), name)
		return nil
	})
	t.Cleanup(func() { f.Close() })
	return f
}

func TestTheGateCoversADeviceWithoutEthernetHeader(t *testing.T) {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("needs /dev/net/tun: %v", err)
	}
	eachForm(t, func(t *testing.T, form Form) {
		w := newWorld(t)
		tun := w.node.openTun(t, "t0")
		w.node.up(t, "t0", "10.9.8.1/24")
		c := startChild(t, w.node)
		c.open(form)
		c.vips(1, vip4)
		answers := func() bool {
			p := make([]byte, 20, 28)
			p[0], p[3], p[8], p[9] = 0x45, 28, 64, 1
			copy(p[12:], []byte{10, 9, 8, 2})
			copy(p[16:], vip4.AsSlice())
			var sum uint32
			for i := 0; i < 20; i += 2 {
				sum += uint32(p[i])<<8 | uint32(p[i+1])
			}
			sum = sum&0xffff + sum>>16
			p[10], p[11] = byte(^sum>>8), byte(^sum)
			p = append(p, echoRequest(vip4, 77, 1)...)
			if _, err := tun.Write(p); err != nil {
				t.Fatal(err)
			}
			_ = tun.SetReadDeadline(time.Now().Add(answerWait))
			buf := make([]byte, 2048)
			for {
				n, err := tun.Read(buf)
				if err != nil {
					return false
				}
				if n >= 28 && buf[9] == 1 && buf[20] == 0 && netip.AddrFrom4([4]byte(buf[12:])) == vip4 {
					return true
				}
			}
		}
		if answers() {
			t.Error("the VIP answers through the tunnel while shut")
		}
		c.lease(1, time.Minute)
		if !retry(answers) {
			t.Error("the VIP does not answer through the tunnel while open")
		}
		c.do(order{Do: "refresh", Service: 1})
		// What leaves by the tunnel as the VIP, sent by the host itself.
		h := w.node.handle(t)
		defer h.Close()
		l, err := h.LinkByName("t0")
		if err != nil {
			t.Fatal(err)
		}
		_ = h.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: netlink.NewIPNet([]byte{10, 9, 7, 7}), Src: vip4.AsSlice()})
		before := c.do(order{Do: "stats"}).Stats["dropped_ipv4"]
		w.node.ping(t, netip.MustParseAddr("10.9.7.7"))
		if after := c.do(order{Do: "stats"}).Stats["dropped_ipv4"]; after <= before {
			t.Error("a packet that the host sends as the VIP left through the tunnel")
		}
	})
}

package main

import (
	"flag"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// echo runs in the standby's namespace: for each block of 4 KiB and a byte it answers a byte; 'd': after it has appended the block to a file and
// fdatasync has returned.
func echo(args []string) error {
	fs := flag.NewFlagSet("echo", flag.ContinueOnError)
	ifname := fs.String("if", "", "")
	cidr := fs.String("addr", "", "")
	path := fs.String("file", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if err := addressed(*ifname, *cidr); err != nil {
		return err
	}
	f, err := journalLike(*path)
	if err != nil {
		return err
	}
	ip, _, err := net.ParseCIDR(*cidr)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", net.JoinHostPort(ip.String(), port))
	if err != nil {
		return err
	}
	os.Stdout.WriteString("ready\n")
	c, err := l.Accept()
	if err != nil {
		return err
	}
	buf := make([]byte, 4097)
	for off := int64(0); ; {
		if _, err := io.ReadFull(c, buf); err != nil {
			return nil
		}
		if buf[0] == 'd' {
			if _, err := f.WriteAt(buf[1:], off); err != nil {
				return err
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				return err
			}
			off = (off + 4096) % (32 << 20)
		}
		if _, err := c.Write(buf[:1]); err != nil {
			return nil
		}
	}
}

// journalLike is a file that is written already, as a journal's segment is.
func journalLike(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(make([]byte, 32<<20))
	if err == nil {
		err = f.Sync()
	}
	return f, err
}

// ask runs in the active's namespace and prints the medians of: a round trip of 4 KiB with acknowledgement, and the same with fdatasync on both sides at once.
func ask(args []string) error {
	fs := flag.NewFlagSet("ask", flag.ContinueOnError)
	ifname := fs.String("if", "", "")
	cidr := fs.String("addr", "", "")
	peer := fs.String("peer", "", "")
	path := fs.String("file", "", "")
	j := &job{}
	fs.DurationVar(&j.time, "time", time.Second, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if err := addressed(*ifname, *cidr); err != nil {
		return err
	}
	f, err := journalLike(*path)
	if err != nil {
		return err
	}
	os.Stdout.WriteString("ready\n")
	var c net.Conn
	for range 200 {
		if c, err = net.Dial("tcp", net.JoinHostPort(*peer, port)); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	buf, one := make([]byte, 4097), make([]byte, 1)
	for _, w := range []struct {
		kind byte
		name string
	}{{'a', "tcp_round_trip"}, {'d', "both_disks"}} {
		buf[0] = w.kind
		var took []time.Duration
		for start, off := time.Now(), int64(0); time.Since(start) < j.time; off = (off + 4096) % (32 << 20) {
			at := time.Now()
			if _, err := c.Write(buf); err != nil {
				return err
			}
			if w.kind == 'd' {
				if _, err := f.WriteAt(buf[1:], off); err != nil {
					return err
				}
				if err := unix.Fdatasync(int(f.Fd())); err != nil {
					return err
				}
			}
			if _, err := io.ReadFull(c, one); err != nil {
				return err
			}
			took = append(took, time.Since(at))
		}
		slices.Sort(took)
		j.say(w.name+"_p50", "us", float64(took[len(took)/2].Nanoseconds())/1e3)
	}
	return printValues(j.out)
}

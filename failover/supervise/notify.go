package supervise

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/internal/rt"
)

// notifySocket is the receiving end of sd_notify(3): a datagram socket in the abstract name space with a random name, so
// that it needs no directory that the program's user may write to.
type notifySocket struct {
	name string // as in NOTIFY_SOCKET: "@..."
	conn *net.UnixConn
}

func listenNotify() (*notifySocket, error) {
	var b [16]byte
	rand.Read(b[:])
	name := "@hanode-notify-" + hex.EncodeToString(b[:])
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
	if err != nil {
		return nil, fmt.Errorf("make the notify socket: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		ctlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
		err = errors.Join(err, ctlErr)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("make the notify socket: %w", err)
	}
	return &notifySocket{name: name, conn: conn}, nil
}

// maxNotify bounds one message; longer ones are cut by the kernel and their last line is ignored.
const maxNotify = 4096

// readNotify reads messages until the socket is closed. Only members of the process's group are heard: anybody on the
// host can send to an abstract socket.
func (p *proc) readNotify(r *run) {
	buf, oob := make([]byte, maxNotify), make([]byte, 128)
	for {
		n, oobn, _, _, err := r.notify.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return // closed
		}
		pid := senderOf(oob[:oobn])
		if pid != r.Pid && !p.group.Has(pid) {
			p.s.log.Warn("a notify message of a foreign process was ignored", "process", p.spec.Name, "pid", pid)
			continue
		}
		msg := parseNotify(string(buf[:n]))
		at := rt.Now()
		p.post(func() {
			if p.run != r {
				return
			}
			if msg.asks {
				r.asked = true
				p.tell(r, signalWait)
			}
			if msg.status != "" {
				p.show(func(v *ProcessState) { v.Status = msg.status })
			}
			if msg.ready && p.spec.Ready == "notify" {
				p.ready(r, at)
			}
		})
	}
}

func senderOf(oob []byte) int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1
	}
	for i := range msgs {
		if cred, err := unix.ParseUnixCredentials(&msgs[i]); err == nil {
			return int(cred.Pid)
		}
	}
	return -1
}

type notifyMessage struct {
	ready, asks bool
	status      string
}

// parseNotify reads the lines of a message; unknown ones are ignored, as sd_notify(3) demands.
func parseNotify(s string) notifyMessage {
	var m notifyMessage
	for line := range strings.Lines(s) {
		switch key, value, _ := strings.Cut(strings.TrimRight(line, "\n"), "="); key {
		case "READY":
			m.ready = m.ready || value == "1"
		case signalsEnv:
			m.asks = value == "1"
		case "STATUS":
			m.status = strings.ToValidUTF8(value[:min(len(value), 256)], "")
		}
	}
	return m
}

// maxLine bounds a line of output; longer ones are handed on in pieces.
const maxLine = 8192

// readLines hands on each line without its end, and what is left at the end of the input.
func readLines(f *os.File, emit func([]byte)) {
	defer f.Close()
	buf := make([]byte, 0, maxLine)
	for {
		n, err := f.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		rest := buf
		for {
			i := bytes.IndexByte(rest, '\n')
			if i < 0 {
				break
			}
			emit(rest[:i])
			rest = rest[i+1:]
		}
		if len(rest) == cap(buf) || err != nil && len(rest) > 0 {
			emit(rest)
			rest = nil
		}
		buf = buf[:copy(buf[:cap(buf)], rest)]
		if err != nil {
			return
		}
	}
}

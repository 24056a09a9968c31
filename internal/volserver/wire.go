package volserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

const (
	maxPacket  = 64 << 10
	maxMessage = 8 << 20
	maxFDs     = 4
)

// message is what travels. What counts depends on Kind.
type message struct {
	Kind string `json:"kind"`
	Seq  uint64 `json:"seq,omitempty"` // of a request, and of its answer; 0: an event
	Err  string `json:"err,omitempty"` // of an answer

	Start   *Start            `json:"start,omitempty"`
	Ready   *Ready            `json:"ready,omitempty"`
	Facts   *Facts            `json:"facts,omitempty"`
	Epoch   cluster.Epoch     `json:"epoch,omitempty"`
	Led     *Led              `json:"led,omitempty"`
	Conn    *Conn             `json:"conn,omitempty"`
	Status  *Status           `json:"status,omitempty"`
	Order   *Order            `json:"order,omitempty"`
	Result  json.RawMessage   `json:"result,omitempty"`
	Replica *Replica          `json:"replica,omitempty"`
	Caught  *CaughtUp         `json:"caught,omitempty"`
	Member  cluster.MemberNo  `json:"member,omitempty"`
	Pos     *cluster.Position `json:"pos,omitempty"`
	Text    string            `json:"text,omitempty"`
	Big     bool              `json:"big,omitempty"` // the message itself is in the memory file that comes along

	files []*os.File
}

// Requests to the server.
const (
	kindStart   = "start"
	kindFacts   = "facts" // no answer
	kindLead    = "lead"
	kindDrain   = "drain"
	kindUndrain = "undrain" // no answer
	kindFence   = "fence"
	kindAlone   = "alone" // no answer
	kindConn    = "conn"  // no answer
	kindDown    = "down"  // no answer: give a connection up
	kindStatus  = "status"
	kindOrder   = "order"
	kindStop    = "stop"
)

// Answers and events.
const (
	kindAnswer   = "answer"
	kindReplica  = "replica"
	kindCaughtUp = "caught-up"
	kindDial     = "dial"
	kindHigher   = "higher-epoch"
	kindFailed   = "disk-failed"
	kindDeposed  = "deposed"
	kindClosed   = "closed" // a dialled connection is over
	kindAlarm    = "alarm"
	kindProgress = "progress"
)

// wire is one end of the socket pair.
type wire struct {
	conn *net.UnixConn
	mu   sync.Mutex // of sending
	buf  []byte
}

// pair makes the two ends; theirs is for the child.
func pair() (ours *wire, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "control")
	own := os.NewFile(uintptr(fds[0]), "control")
	defer own.Close()
	if ours, err = wireOf(own); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

func wireOf(f *os.File) (*wire, error) {
	for _, opt := range []int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
		unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, opt, 4*maxPacket) // a smaller one is an error of send, and told there
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("the control descriptor is no Unix socket")
	}
	return &wire{conn: u, buf: make([]byte, maxPacket)}, nil
}

// send writes one message; it waits while the other side does not read.
func (w *wire) send(m message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	files := m.files
	if len(b) > maxPacket {
		f, err := memFile(b)
		if err != nil {
			return err
		}
		defer f.Close()
		files = append([]*os.File{f}, files...)
		b = []byte(`{"kind":"` + m.Kind + `","big":true}`)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _, err = w.conn.WriteMsgUnix(b, rights, nil)
	return err
}

func memFile(b []byte) (*os.File, error) {
	if len(b) > maxMessage {
		return nil, fmt.Errorf("a message of %d bytes: at most %d are sent", len(b), maxMessage)
	}
	fd, err := unix.MemfdCreate("message", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "message")
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// receive reads one message; io.EOF when the other side is gone. It is called by one goroutine. The files belong to the caller.
func (w *wire) receive() (message, error) {
	oob := make([]byte, unix.CmsgSpace(4*(maxFDs+1)))
	n, oobn, flags, _, err := w.conn.ReadMsgUnix(w.buf, oob)
	if err != nil {
		return message{}, err
	}
	var m message
	files, err := rightsOf(oob[:oobn])
	switch {
	case err == nil && n == 0:
		err = io.EOF
	case err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("a message that is too long")
	case err == nil:
		err = json.Unmarshal(w.buf[:n], &m)
	}
	if err == nil && m.Big {
		m, files, err = bigMessage(files)
	}
	if err != nil {
		closeAll(files)
		return message{}, err
	}
	m.files = files
	return m, nil
}

func bigMessage(files []*os.File) (m message, rest []*os.File, err error) {
	if len(files) == 0 {
		return m, nil, errors.New("a long message without its file")
	}
	defer files[0].Close()
	st, err := files[0].Stat()
	if err != nil || st.Size() > maxMessage {
		return m, files[1:], fmt.Errorf("a message that is too long: %w", errors.Join(err, errors.New("refused")))
	}
	b := make([]byte, st.Size())
	if _, err := files[0].ReadAt(b, 0); err != nil {
		return m, files[1:], err
	}
	return m, files[1:], json.Unmarshal(b, &m)
}

func rightsOf(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var out []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			closeAll(out)
			return nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			out = append(out, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return out, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func (w *wire) close() { w.conn.Close() }

package world

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// HostCommand and SwitchCommand are the words after Config.Self that start the first process of a host and of the
// switch. The program that embeds the lab passes them to RunChild before it does anything else.
const (
	HostCommand   = "lab-host"
	SwitchCommand = "lab-switch"
)

// RunChild is the whole life of such a first process. It returns the exit status.
func RunChild(command string) int {
	if command == NothingCommand {
		return 0
	}
	conn, err := childConn()
	if err != nil {
		fmt.Fprintln(os.Stderr, command+":", err)
		return 1
	}
	ops := map[string]handler{
		"net":      do(netUp),
		"addr-add": do(addrAdd),
		"addr-del": do(addrDel),
		"announce": do(announce),
		"arp":      do(pinNeighbour),
	}
	switch command {
	case HostCommand:
		p := newProcs()
		go p.reap()
		ops["setup"] = op(setupHost)
		ops["exec"] = op(p.exec)
		ops["start"] = op(p.start)
		ops["wait"] = op(p.wait)
		ops["signal"] = do(p.signal)
		ops["signal-all"] = do(signalAll)
	case SwitchCommand:
		ops["bridge"] = do(bridgeUp)
		ops["port-add"] = do(portAdd)
		ops["port-del"] = do(portDel)
		ops["port-set"] = do(portSet)
		ops["rules"] = do(setRules)
	default:
		fmt.Fprintln(os.Stderr, "unknown lab command", command)
		return 2
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if err := serve(conn, ops); err != nil {
		return 1
	}
	return 0
}

// childConn is the socket that the lab left at descriptor 3.
func childConn() (net.Conn, error) {
	syscall.CloseOnExec(3)
	f := os.NewFile(3, "lab")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor 3 is not the lab's socket (this command is started by the lab only): %w", err)
	}
	return conn, nil
}

// hostSetup says what the host's own mounts look like.
type hostSetup struct {
	Hostname string `json:"hostname"`
	Run      string `json:"run"` // becomes /run; "" leaves it
	Srv      string `json:"srv"` // becomes /srv: where a host keeps what it serves; "" leaves it
}

// setupHost gives the host its name, its own /proc, /run and bpf file system. What the kernel refuses (in a user
// namespace, or within a container) comes back as notes, because a host is of use without it.
func setupHost(s hostSetup) ([]string, error) {
	var notes []string
	note := func(what string, err error) {
		if err != nil {
			notes = append(notes, fmt.Sprintf("%s: %v", what, err))
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make the host's mounts private: %w", err)
	}
	note("host name", unix.Sethostname([]byte(s.Hostname)))
	note("own /proc", unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
	if s.Run != "" {
		note("own /run", unix.Mount(s.Run, "/run", "", unix.MS_BIND, ""))
	}
	if s.Srv != "" {
		note("own /srv", unix.Mount(s.Srv, "/srv", "", unix.MS_BIND, ""))
	}
	if fi, err := os.Stat("/sys/fs/bpf"); err == nil && fi.IsDir() {
		note("own /sys/fs/bpf", unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=0700"))
	}
	return notes, nil
}

// signalAll sends a signal to every process of the host but its first one.
func signalAll(sig int) error {
	err := syscall.Kill(-1, syscall.Signal(sig))
	if err == syscall.ESRCH {
		return nil
	}
	return err
}

func sysctl(path, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0)
}

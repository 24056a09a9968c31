package volume

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// preparePoint makes sure that the mount point is an empty directory that nothing is mounted on, and makes it immutable, so that nothing can be
// written there while the volume is not mounted.
func preparePoint(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("mount point %s: %w", path, err)
	}
	mounted, err := mountOf(path)
	if err != nil {
		return err
	}
	if mounted != nil {
		return fmt.Errorf("mount point %s is in use: %s is mounted there; unmount it first", path, mounted.source)
	}
	names, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("mount point %s: %w", path, err)
	}
	if len(names) > 0 {
		return fmt.Errorf("mount point %s is not empty (%s, …): a volume would hide what is there; move it away, or make it the volume with `hanode volume adopt`", path, names[0].Name())
	}
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("mount point %s: %w", path, err)
	}
	defer d.Close()
	const immutable = 0x10
	flags, err := unix.IoctlGetUint32(int(d.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutable != 0 {
		return nil // the file system has no such flag: nothing but the permissions protects the mount point
	}
	unix.IoctlSetPointerInt(int(d.Fd()), unix.FS_IOC_SETFLAGS, int(flags|immutable))
	return nil
}

// mountInfo is one line of /proc/self/mountinfo.
type mountInfo struct {
	id     int
	dev    string // major:minor
	source string
}

// devHex is the device as it stands in /proc/PID/maps.
func (m *mountInfo) devHex() []byte {
	major, minor, _ := strings.Cut(m.dev, ":")
	maj, _ := strconv.Atoi(major)
	mnr, _ := strconv.Atoi(minor)
	return fmt.Appendf(nil, " %02x:%02x ", maj, mnr)
}

// mountOf returns what is mounted exactly on path, nil if nothing is.
func mountOf(path string) (*mountInfo, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list of mounts: %w", err)
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var last *mountInfo
	for sc := bufio.NewScanner(f); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) < 10 || unescape.Replace(f[4]) != filepath.Clean(path) {
			continue
		}
		id, err := strconv.Atoi(f[0])
		if err != nil {
			continue
		}
		last = &mountInfo{id: id, dev: f[2], source: f[len(f)-2]}
	}
	return last, nil
}

// Holder is a process that still has files, mappings or its working directory below an aborted mount.
type Holder struct {
	PID  int
	Name string
	What string
	Gone bool // it was killed
}

// Abort is deposition (D11): from now on every request gets EIO, the connection is aborted, so that requests that wait end too, and the mount
// goes. It returns the processes that hold something below it; with kill they are killed, because a mapping or a passthrough descriptor goes
// on reading the backing file. Operations in flight are ended by the Log, which must have been told first. It may be called more than once.
func (v *FS) Abort(kill bool) ([]Holder, error) {
	v.roleMu.Lock()
	first := v.role.Load().Role != fenced
	if first {
		v.role.Store(&role{Role: fenced, epoch: v.role.Load().epoch, since: ^cluster.Epoch(0)})
		close(v.aborted)
	}
	v.roleMu.Unlock()
	m, err := mountOf(v.cfg.Mount)
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, nil
	}
	// MNT_FORCE aborts the connection (what writing to its `abort` file under /sys/fs/fuse would do) before it unmounts.
	var errs []error
	if err := unix.Unmount(v.cfg.Mount, unix.MNT_FORCE); err != nil && !errors.Is(err, unix.EBUSY) {
		errs = append(errs, fmt.Errorf("abort %s: %w", v.cfg.Mount, err))
	}
	holders := findHolders(m)
	if kill {
		for i := range holders {
			holders[i].Gone = killAndWait(holders[i].PID)
		}
	}
	if left, err := mountOf(v.cfg.Mount); err == nil && left != nil && left.id == m.id {
		if err := unix.Unmount(v.cfg.Mount, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", v.cfg.Mount, err))
		}
	}
	for _, h := range holders {
		v.logger.Warn("a process holds something below an aborted mount", "pid", h.PID, "name", h.Name, "what", h.What, "killed", h.Gone)
	}
	return holders, errors.Join(errs...)
}

// findHolders looks through /proc. It stats nothing below the mount.
func findHolders(m *mountInfo) (out []Holder) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	id := fmt.Appendf(nil, "\nmnt_id:\t%d\n", m.id)
	dev := m.devHex()
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		dir := filepath.Join("/proc", p.Name())
		what := holds(dir, id, dev)
		if what == "" {
			continue
		}
		name, _ := os.ReadFile(filepath.Join(dir, "comm"))
		out = append(out, Holder{PID: pid, Name: strings.TrimSpace(string(name)), What: what})
	}
	return out
}

func holds(proc string, mntID, dev []byte) string {
	fds, _ := os.ReadDir(filepath.Join(proc, "fdinfo"))
	for _, fd := range fds {
		if b, err := os.ReadFile(filepath.Join(proc, "fdinfo", fd.Name())); err == nil && bytes.Contains(b, mntID) {
			return "file descriptor " + fd.Name()
		}
	}
	if maps, err := os.ReadFile(filepath.Join(proc, "maps")); err == nil && bytes.Contains(maps, dev) {
		return "mapping"
	}
	for _, link := range []string{"cwd", "root"} {
		// An O_PATH descriptor says in which mount the directory is, and asks nobody below it.
		fd, err := unix.Open(filepath.Join(proc, link), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
		unix.Close(fd)
		if err == nil && bytes.Contains(b, mntID) {
			return link
		}
	}
	return ""
}

// killAndWait sends SIGKILL and says whether the process has ended within two seconds.
func killAndWait(pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errors.Is(err, unix.ESRCH)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, syscall.SIGKILL, nil, 0); err != nil {
		return errors.Is(err, unix.ESRCH)
	}
	for deadline := time.Now().Add(2 * time.Second); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(time.Until(deadline).Milliseconds(), 0)))
		if err != unix.EINTR {
			return n > 0
		}
	}
}

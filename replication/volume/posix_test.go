package volume_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication/volume"
)

// The same program is run on ext4 and on a volume whose backing is ext4, and must print the same.
func TestAVolumeBehavesAsExt4Does(t *testing.T) {
	m := mount(t, accept(), volume.Active)
	plain := t.TempDir()
	os.Chmod(plain, 0o755)
	for name := range clients {
		what, ok := strings.CutPrefix(name, "posix-")
		if !ok {
			continue
		}
		t.Run(what, func(t *testing.T) {
			a, b := filepath.Join(plain, what), filepath.Join(m.dir, what)
			for _, d := range []string{a, b} {
				run(t, "mkdir", d)
			}
			want, got := run(t, name, a), run(t, name, b)
			if got == want {
				return
			}
			w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
			for i := range max(len(w), len(g)) {
				var x, y string
				if i < len(w) {
					x = w[i]
				}
				if i < len(g) {
					y = g[i]
				}
				if x != y {
					t.Errorf("line %d: ext4 %q, volume %q", i+1, x, y)
				}
			}
		})
	}
	if n := m.Stats().Failed.Load(); n > 0 {
		t.Errorf("%d accepted operations could not be applied", n)
	}
	eventually(t, "nothing is open any more and limbo is empty", func() bool { return m.Handles() == 0 && len(m.tree.InLimbo()) == 0 })
}

// posix is one program: it works in a directory and says what happened.
type posix struct{ dir string }

func (p posix) at(name string) string { return filepath.Join(p.dir, name) }

// say prints a step and how it ended.
func (p posix) say(what string, err error) {
	var e syscall.Errno
	switch {
	case err == nil:
		fmt.Println(what, "ok")
	case errors.As(err, &e):
		fmt.Println(what, unix.ErrnoName(e))
	default:
		fmt.Println(what, err)
	}
}

// stat prints what does not depend on the time or on the file system's numbers.
func (p posix) stat(name string) {
	var st unix.Stat_t
	if err := unix.Lstat(p.at(name), &st); err != nil {
		p.say("stat "+name, err)
		return
	}
	size := st.Size
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		size, st.Blocks = 0, 0 // the file id and an access list may need a block of their own
	}
	fmt.Printf("stat %s mode %o owner %d:%d links %d size %d blocks %d rdev %d\n", name, st.Mode, st.Uid, st.Gid, st.Nlink, size, st.Blocks, st.Rdev)
}

func (p posix) file(name string, flags int, mode uint32) int {
	fd, err := unix.Open(p.at(name), flags, mode)
	p.say(fmt.Sprintf("open %s %#x", name, flags), err)
	return fd
}

func (p posix) write(name, text string) {
	p.say("write "+name, os.WriteFile(p.at(name), []byte(text), 0o644))
}

func (p posix) cat(name string) {
	b, err := os.ReadFile(p.at(name))
	p.say(fmt.Sprintf("cat %s %q", name, clip(b)), err)
}

// as runs fn with the file system rights of a user, on this thread only.
func (p posix) as(uid, gid int, fn func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
	unix.SetfsgidRetGid(gid)
	unix.SetfsuidRetUid(uid)
	fn()
	unix.SetfsuidRetUid(0)
	unix.SetfsgidRetGid(0)
}

// later says whether the time that get reads moves when fn is done.
func (p posix) later(what, name string, get func(*unix.Stat_t) unix.Timespec, fn func()) {
	var a, b unix.Stat_t
	unix.Lstat(p.at(name), &a)
	time.Sleep(12 * time.Millisecond) // ext4's clock has ticks of 4 ms
	fn()
	unix.Lstat(p.at(name), &b)
	x, y := get(&a), get(&b)
	fmt.Printf("%s of %s moves: %v\n", what, name, y.Nano() > x.Nano())
}

func mtime(s *unix.Stat_t) unix.Timespec { return s.Mtim }
func ctime(s *unix.Stat_t) unix.Timespec { return s.Ctim }

func init() {
	clients["mkdir"] = func(dir string, _ []string) error { return os.Mkdir(dir, 0o777) }
	for name, fn := range map[string]func(p posix){
		"names": posixNames, "rename": posixRename, "rights": posixRights, "modes": posixModes, "times": posixTimes, "sparse": posixSparse,
		"orphans": posixOrphans, "xattr": posixXattr, "acl": posixACL, "io": posixIO, "special": posixSpecial, "dirs": posixDirs, "open": posixOpen,
	} {
		clients["posix-"+name] = func(dir string, _ []string) error {
			unix.Chmod(dir, 0o777)
			fn(posix{dir})
			return nil
		}
	}
}

func posixNames(p posix) {
	long := strings.Repeat("n", 255)
	p.write(long, "x")
	p.say("a name of 256", os.WriteFile(p.at(long+"n"), nil, 0o644))
	_, err := os.Lstat(p.at(long + "n"))
	p.say("look at a name of 256", errors.Unwrap(err))
	p.say("mkdir of 256", unix.Mkdir(p.at(long+"n"), 0o755))
	p.write("a", "1")
	p.say("link", unix.Link(p.at("a"), p.at("b")))
	p.say("link over", unix.Link(p.at("a"), p.at("b")))
	p.say("link of nothing", unix.Link(p.at("no"), p.at("c")))
	p.say("mkdir", unix.Mkdir(p.at("d"), 0o755))
	p.say("link of a directory", unix.Link(p.at("d"), p.at("e")))
	p.say("link through a file", unix.Link(p.at("a"), p.at("a/x")))
	p.say("unlink of a directory", unix.Unlink(p.at("d")))
	p.say("rmdir of a file", unix.Rmdir(p.at("a")))
	p.write("d/x", "")
	p.say("rmdir of a full directory", unix.Rmdir(p.at("d")))
	p.say("rmdir of .", unix.Rmdir(p.at("d")+"/."))
	p.say("mkdir over", unix.Mkdir(p.at("d"), 0o755))
	p.say("symlink", unix.Symlink("a", p.at("s")))
	p.say("symlink over", unix.Symlink("a", p.at("s")))
	p.say("a long symlink", unix.Symlink(strings.Repeat("x/", 2000), p.at("ls")))
	p.say("a symlink that is too long", unix.Symlink(strings.Repeat("x/", 2048), p.at("lls")))
	p.say("an empty symlink", unix.Symlink("", p.at("es")))
	p.cat("s")
	p.say("loop", unix.Symlink("loop", p.at("loop")))
	p.file("loop", unix.O_RDONLY, 0)
	p.file("s", unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	for _, n := range []string{"a", "b", "d", "s", "ls", long} {
		p.stat(n)
	}
	p.say("unlink b", unix.Unlink(p.at("b")))
	p.stat("a")
	p.say("unlink nothing", unix.Unlink(p.at("b")))
	p.write("new\nline\xff", "")
	var names []string
	ents, err := os.ReadDir(p.dir)
	p.say("readdir", err)
	for _, e := range ents {
		names = append(names, fmt.Sprintf("%q %v", clip([]byte(e.Name())), e.Type()))
	}
	fmt.Println(names)
}

func posixRename(p posix) {
	reset := func() {
		os.RemoveAll(p.at("w"))
		for _, d := range []string{"w", "w/d", "w/e", "w/full"} {
			unix.Mkdir(p.at(d), 0o755)
		}
		for _, f := range []string{"w/a", "w/b", "w/full/x", "w/d/in"} {
			os.WriteFile(p.at(f), []byte(f), 0o644)
		}
		unix.Link(p.at("w/a"), p.at("w/a2"))
		unix.Symlink("a", p.at("w/s"))
	}
	for _, flags := range []uint{0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_EXCHANGE | unix.RENAME_NOREPLACE} {
		for _, c := range [][2]string{{"w/a", "w/b"}, {"w/a", "w/new"}, {"w/a", "w/d"}, {"w/d", "w/a"}, {"w/d", "w/e"}, {"w/d", "w/full"}, {"w/a", "w/a2"}, {"w/a", "w/a"},
			{"w/d", "w/d/sub"}, {"w/s", "w/b"}, {"w/no", "w/b"}, {"w/a", "w/d/a"}, {"w/full", "w/e/full"}, {"w/d/in", "w/full/x"}, {"w/full", "w/full/x"}} {
			reset()
			p.say(fmt.Sprintf("rename %v flags %d", c, flags), unix.Renameat2(unix.AT_FDCWD, p.at(c[0]), unix.AT_FDCWD, p.at(c[1]), flags))
			var all []string
			filepath.Walk(p.at("w"), func(path string, i os.FileInfo, err error) error {
				if err == nil {
					b, _ := os.ReadFile(path)
					all = append(all, fmt.Sprintf("%s=%d/%s", path[len(p.dir):], i.Sys().(*syscall.Stat_t).Nlink, b))
				}
				return err
			})
			fmt.Println(all)
		}
	}
	reset()
	p.later("ctime", "w/a2", ctime, func() { unix.Rename(p.at("w/b"), p.at("w/a")) })
	p.stat("w/a2")
	p.later("mtime", "w", mtime, func() { unix.Rename(p.at("w/a"), p.at("w/b")) })
	p.say("../.. of a moved directory", unix.Rename(p.at("w/d"), p.at("w/e/d")))
	fd := p.file("w/e/d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	up, err := unix.Openat(fd, "../full/x", unix.O_RDONLY, 0)
	p.say("openat by ..", err)
	unix.Close(up)
	unix.Close(fd)
}

func posixRights(p posix) {
	p.write("root", "x")
	p.say("chmod", unix.Chmod(p.at("root"), 0o600))
	unix.Mkdir(p.at("sticky"), 0o777)
	unix.Chmod(p.at("sticky"), 0o1777)
	unix.Mkdir(p.at("mine"), 0o700)
	p.as(65534, 65534, func() {
		p.file("root", unix.O_RDONLY, 0)
		p.file("root", unix.O_WRONLY, 0)
		p.say("chmod of a foreign file", unix.Chmod(p.at("root"), 0o777))
		p.say("chown", unix.Chown(p.at("root"), 65534, 65534))
		p.say("utimes", unix.Utimes(p.at("root"), []unix.Timeval{{Sec: 1}, {Sec: 1}}))
		p.say("truncate", unix.Truncate(p.at("root"), 0))
		p.write("sticky/theirs", "y")
		p.say("mkdir where there is no right", unix.Mkdir(p.at("mine/x"), 0o755))
		p.say("unlink", unix.Unlink(p.at("root")))
		p.say("link of a foreign file", unix.Link(p.at("root"), p.at("sticky/l")))
		p.say("setxattr", unix.Setxattr(p.at("root"), "user.x", []byte("1"), 0))
		p.say("trusted", unix.Setxattr(p.at("sticky/theirs"), "trusted.x", []byte("1"), 0))
		p.say("mknod", unix.Mknod(p.at("sticky/dev"), unix.S_IFCHR|0o600, 259))
		p.say("give away", unix.Chown(p.at("sticky/theirs"), 1, -1))
	})
	p.as(1000, 1000, func() {
		p.say("unlink in a sticky directory", unix.Unlink(p.at("sticky/theirs")))
		p.say("rename in a sticky directory", unix.Rename(p.at("sticky/theirs"), p.at("sticky/x")))
	})
	for _, n := range []string{"root", "sticky", "sticky/theirs"} {
		p.stat(n)
	}
}

func posixModes(p posix) {
	unix.Mkdir(p.at("sg"), 0o777)
	p.say("chown", unix.Chown(p.at("sg"), 0, 1000))
	p.say("chmod g+s", unix.Chmod(p.at("sg"), 0o2777))
	p.write("sg/f", "x")
	unix.Mkdir(p.at("sg/d"), 0o750)
	unix.Symlink("f", p.at("sg/s"))
	unix.Mknod(p.at("sg/p"), unix.S_IFIFO|0o640, 0)
	for _, n := range []string{"f", "d", "s", "p"} {
		p.stat("sg/" + n)
	}
	for _, mode := range []uint32{0o6755, 0o6711, 0o6644, 0o2755, 0o2745, 0o4755} {
		p.write("m", "text")
		p.say("chown", unix.Chown(p.at("m"), 65534, 65534))
		p.say(fmt.Sprintf("chmod %o", mode), unix.Chmod(p.at("m"), mode))
		p.as(65534, 65534, func() {
			fd := p.file("m", unix.O_WRONLY, 0)
			_, err := unix.Pwrite(fd, []byte("T"), 0)
			p.say("write by the owner", err)
			unix.Close(fd)
		})
		p.stat("m")
		unix.Chmod(p.at("m"), mode)
		p.as(65534, 65534, func() { p.say("truncate by the owner", unix.Truncate(p.at("m"), 1)) })
		p.stat("m")
		unix.Chmod(p.at("m"), mode)
		p.say("write by root", os.WriteFile(p.at("m"), []byte("root"), 0))
		p.stat("m")
		unix.Chmod(p.at("m"), mode)
		p.say("chown by root", unix.Chown(p.at("m"), 1, -1))
		p.stat("m")
		unix.Chmod(p.at("m"), mode)
		p.say("chown to nobody new", unix.Chown(p.at("m"), -1, -1))
		p.stat("m")
		unix.Unlink(p.at("m"))
	}
	unix.Mkdir(p.at("d"), 0o755)
	unix.Chmod(p.at("d"), 0o6755)
	unix.Chown(p.at("d"), 1, 1)
	p.stat("d")
	old := unix.Umask(0o027)
	p.write("u", "")
	p.say("mkdir", unix.Mkdir(p.at("ud"), 0o777))
	unix.Umask(old)
	p.stat("u")
	p.stat("ud")
}

func posixTimes(p posix) {
	p.write("f", "x")
	p.write("g", "x")
	unix.Mkdir(p.at("d"), 0o755)
	ns := func(sec, nsec int64) unix.Timespec { return unix.Timespec{Sec: sec, Nsec: nsec} }
	show := func(name string) {
		var st unix.Stat_t
		unix.Lstat(p.at(name), &st)
		fmt.Println(name, "atime", st.Atim, "mtime", st.Mtim)
	}
	set := func(name string, a, m unix.Timespec) {
		p.say("utimensat "+name, unix.UtimesNanoAt(unix.AT_FDCWD, p.at(name), []unix.Timespec{a, m}, unix.AT_SYMLINK_NOFOLLOW))
	}
	unix.Symlink("f", p.at("s"))
	for _, name := range []string{"f", "d", "s"} {
		set(name, ns(1e9, 123456789), ns(1e9+5, 987654321))
		show(name)
		set(name, ns(0, unix.UTIME_OMIT), ns(77, 7))
		show(name)
		set(name, ns(-5, 500), ns(0, unix.UTIME_OMIT))
		show(name)
	}
	p.later("ctime", "f", ctime, func() { set("f", ns(1, 0), ns(1, 0)) })
	p.later("ctime", "f", ctime, func() { unix.Chmod(p.at("f"), 0o644) })
	p.later("ctime", "f", ctime, func() { unix.Chown(p.at("f"), -1, -1) })
	p.later("ctime", "f", ctime, func() { unix.Link(p.at("f"), p.at("l")) })
	p.later("ctime", "f", ctime, func() { unix.Unlink(p.at("l")) })
	p.later("ctime", "f", ctime, func() { unix.Rename(p.at("f"), p.at("f2")); unix.Rename(p.at("f2"), p.at("f")) })
	p.later("ctime", "f", ctime, func() { unix.Setxattr(p.at("f"), "user.a", []byte("1"), 0) })
	p.later("mtime", "f", mtime, func() { unix.Truncate(p.at("f"), 1) })
	p.later("mtime", "f", mtime, func() { unix.Truncate(p.at("f"), 10) })
	p.later("mtime", "g", mtime, func() { os.WriteFile(p.at("g"), []byte("yy"), 0) })
	p.later("ctime", "g", ctime, func() { os.WriteFile(p.at("g"), []byte("yy"), 0) })
	p.later("mtime", "d", mtime, func() { os.WriteFile(p.at("d/x"), nil, 0o644) })
	p.later("mtime", "d", mtime, func() { unix.Unlink(p.at("d/x")) })
	p.later("mtime", "d", mtime, func() { unix.Mkdir(p.at("d/y"), 0o755) })
	p.later("mtime", "d", mtime, func() { unix.Rmdir(p.at("d/y")) })
	p.later("mtime", "g", mtime, func() {
		fd, _ := unix.Open(p.at("g"), unix.O_WRONLY, 0)
		unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1)
		unix.Close(fd)
	})
	p.later("mtime", "g", mtime, func() {
		fd, _ := unix.Open(p.at("g"), unix.O_RDWR, 0)
		m, err := unix.Mmap(fd, 0, 2, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err == nil {
			m[0] = 'z'
			unix.Msync(m, unix.MS_SYNC)
			unix.Munmap(m)
		}
		unix.Close(fd)
	})
}

func posixSparse(p posix) {
	fd := p.file("f", unix.O_RDWR|unix.O_CREAT, 0o644)
	block := []byte(strings.Repeat("d", 4096))
	unix.Pwrite(fd, block, 0)
	unix.Pwrite(fd, block, 1<<20)
	seek := func(off int64, whence int, what string) {
		at, err := unix.Seek(fd, off, whence)
		p.say(fmt.Sprintf("%s from %d: %d", what, off, at), err)
	}
	scan := func() {
		p.stat("f")
		for _, off := range []int64{0, 1, 4096, 1 << 19, 1 << 20, 1<<20 + 4096, 1 << 30, -1} {
			seek(off, unix.SEEK_DATA, "data")
			seek(off, unix.SEEK_HOLE, "hole")
		}
	}
	scan()
	falloc := func(mode uint32, off, n int64) {
		p.say(fmt.Sprintf("fallocate %d %d %d", mode, off, n), unix.Fallocate(fd, mode, off, n))
	}
	falloc(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
	scan()
	falloc(0, 2<<20, 4096)
	scan()
	falloc(unix.FALLOC_FL_KEEP_SIZE, 4<<20, 4096)
	falloc(unix.FALLOC_FL_ZERO_RANGE, 1<<20, 100)
	b := make([]byte, 200)
	unix.Pread(fd, b, 1<<20)
	fmt.Printf("%q\n", b)
	falloc(unix.FALLOC_FL_PUNCH_HOLE, 0, 10)
	falloc(0, 0, 0)
	falloc(0, -1, 10)
	p.say("truncate up", unix.Ftruncate(fd, 3<<20))
	p.say("truncate down", unix.Ftruncate(fd, 100))
	p.say("truncate up", unix.Ftruncate(fd, 8192))
	p.say("truncate to nothing sensible", unix.Ftruncate(fd, -1))
	scan()
	_, err := unix.Pwrite(fd, []byte("x"), 1<<60)
	p.say("write far out", err)
	p.say("truncate far out", unix.Ftruncate(fd, 1<<60))
	p.stat("f")
	unix.Close(fd)
	p.say("truncate a directory", unix.Truncate(p.dir, 0))
}

func posixOrphans(p posix) {
	fd := p.file("f", unix.O_RDWR|unix.O_CREAT, 0o644)
	unix.Write(fd, []byte("content"))
	p.say("unlink", unix.Unlink(p.at("f")))
	show := func(fd int) {
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		b := make([]byte, 32)
		n, _ := unix.Pread(fd, b, 0)
		p.say(fmt.Sprintf("fstat links %d size %d mode %o content %q", st.Nlink, st.Size, st.Mode, b[:max(n, 0)]), err)
	}
	show(fd)
	unix.Pwrite(fd, []byte("CON"), 0)
	p.say("fchmod", unix.Fchmod(fd, 0o600))
	p.say("ftruncate", unix.Ftruncate(fd, 5))
	p.say("fsetxattr", unix.Fsetxattr(fd, "user.x", []byte("1"), 0))
	p.say("fsync", unix.Fsync(fd))
	show(fd)
	again, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR, 0)
	p.say("open again by /proc", err)
	show(again)
	unix.Close(again)
	p.write("f", "another")
	show(fd)
	unix.Close(fd)
	p.write("over", "old")
	fd = p.file("over", unix.O_RDONLY, 0)
	p.write("new", "new")
	p.say("rename over an open file", unix.Rename(p.at("new"), p.at("over")))
	show(fd)
	unix.Close(fd)
	p.cat("over")

	fd, err = unix.Open(p.dir, unix.O_RDWR|unix.O_TMPFILE, 0o640)
	p.say("O_TMPFILE", err)
	unix.Write(fd, []byte("tmp"))
	show(fd)
	p.say("linkat", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, p.at("named"), unix.AT_SYMLINK_FOLLOW))
	show(fd)
	unix.Close(fd)
	p.stat("named")
	p.cat("named")
	fd, err = unix.Open(p.dir, unix.O_RDWR|unix.O_TMPFILE|unix.O_EXCL, 0o640)
	p.say("O_TMPFILE|O_EXCL", err)
	p.say("linkat of O_EXCL", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, p.at("never"), unix.AT_SYMLINK_FOLLOW))
	unix.Close(fd)

	p.write("one", "1")
	unix.Link(p.at("one"), p.at("two"))
	fd = p.file("one", unix.O_RDONLY, 0)
	unix.Unlink(p.at("one"))
	show(fd)
	unix.Unlink(p.at("two"))
	show(fd)
	unix.Close(fd)

	unix.Mkdir(p.at("d"), 0o755)
	fd = p.file("d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	p.say("rmdir", unix.Rmdir(p.at("d")))
	_, err = unix.Openat(fd, "x", unix.O_CREAT|unix.O_RDWR, 0o644)
	p.say("create in a removed directory", err)
	ents := make([]byte, 1024)
	n, err := unix.Getdents(fd, ents)
	p.say(fmt.Sprintf("read a removed directory: %v", n > 0), err)
	unix.Close(fd)
}

func posixXattr(p posix) {
	p.write("f", "x")
	unix.Symlink("f", p.at("s"))
	unix.Mkdir(p.at("d"), 0o755)
	unix.Mknod(p.at("p"), unix.S_IFIFO|0o644, 0)
	for _, n := range []string{"f", "d", "s", "p"} {
		for _, a := range []string{"user.a", "trusted.a", "security.a", "system.a", "nothing.a", "user.", "user." + strings.Repeat("n", 250), "user." + strings.Repeat("n", 251)} {
			what := n + " " + clip([]byte(a))
			p.say("set "+what, unix.Lsetxattr(p.at(n), a, []byte("value"), 0))
			p.say("create "+what, unix.Lsetxattr(p.at(n), a, []byte("other"), unix.XATTR_CREATE))
			p.say("replace "+what, unix.Lsetxattr(p.at(n), a, []byte("third"), unix.XATTR_REPLACE))
			b := make([]byte, 64)
			k, err := unix.Lgetxattr(p.at(n), a, b)
			p.say(fmt.Sprintf("get %s %q", what, b[:max(k, 0)]), err)
			_, err = unix.Lgetxattr(p.at(n), a, b[:2])
			p.say("get too short "+what, err)
		}
		b := make([]byte, 4096)
		k, err := unix.Llistxattr(p.at(n), b)
		var names []string
		for _, s := range strings.Split(string(b[:max(k, 0)]), "\x00") {
			names = append(names, clip([]byte(s)))
		}
		sort.Strings(names)
		p.say(fmt.Sprintf("list %s %q", n, names), err)
		p.say("remove", unix.Lremovexattr(p.at(n), "trusted.a"))
		p.say("remove", unix.Lremovexattr(p.at(n), "trusted.a"))
		p.say("replace what is not there", unix.Lsetxattr(p.at(n), "trusted.b", nil, unix.XATTR_REPLACE))
		p.say("empty", unix.Lsetxattr(p.at(n), "trusted.c", nil, 0))
		k, err = unix.Lgetxattr(p.at(n), "trusted.c", b)
		p.say(fmt.Sprint("empty has ", k), err)
	}
	p.say("a value of 64 KiB and one", unix.Setxattr(p.at("f"), "user.big", make([]byte, 65537), 0))
	p.say("a value that does not fit", unix.Setxattr(p.at("f"), "user.big", make([]byte, 60000), 0))
	p.say("a value that fits", unix.Setxattr(p.at("f"), "user.big", make([]byte, 3000), 0))
	p.stat("f")
}

// acl is an access list as the kernel wants it: (tag, permissions, id) each.
func acl(entries ...[3]uint32) []byte {
	b := []byte{2, 0, 0, 0}
	for _, e := range entries {
		b = append(b, byte(e[0]), 0, byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
	}
	return b
}

func posixACL(p posix) {
	const none = 0xffffffff
	list := acl([3]uint32{1, 7, none}, [3]uint32{2, 7, 1000}, [3]uint32{4, 5, none}, [3]uint32{16, 7, none}, [3]uint32{32, 1, none})
	small := acl([3]uint32{1, 6, none}, [3]uint32{4, 4, none}, [3]uint32{32, 0, none})
	show := func(n string) {
		p.stat(n)
		for _, a := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
			b := make([]byte, 256)
			k, err := unix.Getxattr(p.at(n), a, b)
			p.say(fmt.Sprintf("%s of %s %x", a, n, b[:max(k, 0)]), err)
		}
	}
	for i, def := range [][]byte{list, small} {
		d := fmt.Sprint("d", i)
		unix.Mkdir(p.at(d), 0o755)
		p.say("default", unix.Setxattr(p.at(d), "system.posix_acl_default", def, 0))
		show(d)
		old := unix.Umask(0o077)
		p.write(d+"/f", "x")
		p.say("mkdir", unix.Mkdir(p.at(d+"/sub"), 0o770))
		p.say("mknod", unix.Mknod(p.at(d+"/p"), unix.S_IFIFO|0o666, 0))
		p.say("symlink", unix.Symlink("x", p.at(d+"/s")))
		fd, err := unix.Open(p.at(d), unix.O_RDWR|unix.O_TMPFILE, 0o666)
		p.say("tmpfile", err)
		p.say("linkat", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, p.at(d+"/t"), unix.AT_SYMLINK_FOLLOW))
		unix.Close(fd)
		p.write(d+"/sub/deep", "x")
		unix.Umask(old)
		for _, n := range []string{"f", "sub", "p", "t", "sub/deep"} {
			show(d + "/" + n)
		}
		p.stat(d + "/s")
		p.say("remove", unix.Removexattr(p.at(d), "system.posix_acl_default"))
		p.write(d+"/plain", "x")
		show(d + "/plain")
	}
	p.write("f", "secret")
	p.say("access", unix.Setxattr(p.at("f"), "system.posix_acl_access", list, 0))
	show("f")
	p.as(1000, 1000, func() { p.cat("f") })
	p.say("chmod", unix.Chmod(p.at("f"), 0o640))
	show("f")
	p.as(1000, 1000, func() { p.cat("f"); p.file("f", unix.O_WRONLY, 0) })
	p.as(1001, 1001, func() { p.cat("f") })
	p.say("a list that is none", unix.Setxattr(p.at("f"), "system.posix_acl_access", []byte("rubbish"), 0))
	p.say("default of a file", unix.Setxattr(p.at("f"), "system.posix_acl_default", list, 0))
	p.say("remove", unix.Removexattr(p.at("f"), "system.posix_acl_access"))
	show("f")
}

func posixIO(p posix) {
	fd := p.file("f", unix.O_RDWR|unix.O_CREAT|unix.O_APPEND, 0o644)
	unix.Write(fd, []byte("one"))
	unix.Write(fd, []byte("two"))
	other := p.file("f", unix.O_WRONLY|unix.O_APPEND, 0)
	unix.Write(other, []byte("three"))
	unix.Write(fd, []byte("four"))
	unix.Close(other)
	unix.Close(fd)
	p.cat("f")
	for _, flags := range []int{unix.O_SYNC, unix.O_DSYNC, unix.O_DIRECT} {
		fd = p.file("d", unix.O_RDWR|unix.O_CREAT|flags, 0o644)
		raw := make([]byte, 8192+4096)
		off := 4096 - int(uintptr(unsafe.Pointer(&raw[0]))%4096)
		buf := raw[off : off+4096]
		copy(buf, "direct")
		n, err := unix.Pwrite(fd, buf, 4096)
		p.say(fmt.Sprint("pwrite ", n), err)
		clear(buf)
		n, err = unix.Pread(fd, buf, 4096)
		p.say(fmt.Sprintf("pread %d %q", n, buf[:6]), err)
		n, err = unix.Pread(fd, buf, 1<<20)
		p.say(fmt.Sprint("pread behind the end ", n), err)
		p.say("fdatasync", unix.Fdatasync(fd))
		unix.Close(fd)
	}
	dir := p.file(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	p.say("fsync of a directory", unix.Fsync(dir))
	unix.Close(dir)

	in, out := p.file("f", unix.O_RDONLY, 0), p.file("copy", unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o644)
	n, err := unix.CopyFileRange(in, nil, out, nil, 100, 0)
	p.say(fmt.Sprint("copy_file_range ", n), err)
	unix.Seek(in, 0, 0)
	n, err = unix.Sendfile(out, in, nil, 5)
	p.say(fmt.Sprint("sendfile ", n), err)
	unix.Close(in)
	unix.Close(out)
	p.cat("copy")

	fd = p.file("m", unix.O_RDWR|unix.O_CREAT, 0o644)
	unix.Ftruncate(fd, 10000)
	m, err := unix.Mmap(fd, 0, 10000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	p.say("mmap", err)
	copy(m[5000:], "stored")
	b := make([]byte, 6)
	unix.Pread(fd, b, 5000)
	fmt.Printf("read of what was stored %q\n", b)
	unix.Pwrite(fd, []byte("WRITTEN"), 100)
	fmt.Printf("mapping of what was written %q\n", m[100:107])
	p.say("msync", unix.Msync(m, unix.MS_SYNC))
	unix.Close(fd)
	copy(m[9000:], "after close")
	unix.Munmap(m)
	c, _ := os.ReadFile(p.at("m"))
	fmt.Printf("%d %q %q %q\n", len(c), c[5000:5006], c[100:107], c[9000:9011])

	fd = p.file("priv", unix.O_RDONLY|unix.O_CREAT, 0o644)
	_, err = unix.Write(fd, []byte("x"))
	p.say("write by a read-only descriptor", err)
	unix.Close(fd)
	var v [2]unix.Statfs_t
	p.say("statfs", unix.Statfs(p.dir, &v[0]))
	fmt.Println("names may have", v[0].Namelen)
	big := make([]byte, 3<<20+123)
	for i := range big {
		big[i] = byte(i * 7 >> 3)
	}
	p.say("a big file", os.WriteFile(p.at("big"), big, 0o644))
	c, err = os.ReadFile(p.at("big"))
	p.say(fmt.Sprint("reads back ", string(c) == string(big)), err)
	p.stat("big")
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	fd = p.file("f", unix.O_RDWR, 0)
	p.say("fcntl lock", unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock))
	fd2 := p.file("f", unix.O_RDWR, 0)
	p.say("second fcntl lock", unix.FcntlFlock(uintptr(fd2), unix.F_OFD_SETLK, &lock))
	p.say("flock", unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB))
	p.say("second flock", unix.Flock(fd2, unix.LOCK_EX|unix.LOCK_NB))
	unix.Close(fd)
	p.say("second flock when the first is gone", unix.Flock(fd2, unix.LOCK_EX|unix.LOCK_NB))
	unix.Close(fd2)
}

func posixSpecial(p posix) {
	for i, mode := range []uint32{unix.S_IFIFO | 0o644, unix.S_IFSOCK | 0o600, unix.S_IFCHR | 0o666, unix.S_IFBLK | 0o660, unix.S_IFREG | 0o640} {
		n := fmt.Sprint("n", i)
		p.say("mknod", unix.Mknod(p.at(n), mode, int(unix.Mkdev(7, 300))))
		p.stat(n)
		p.say("mknod over", unix.Mknod(p.at(n), mode, 0))
		p.say("chmod", unix.Chmod(p.at(n), 0o611))
		p.say("link", unix.Link(p.at(n), p.at(n+"l")))
		p.say("rename", unix.Rename(p.at(n), p.at(n+"r")))
		p.stat(n + "r")
		p.say("unlink", unix.Unlink(p.at(n+"r")))
	}
	p.say("mknod of a directory", unix.Mknod(p.at("dir"), unix.S_IFDIR|0o755, 0))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	p.say("socket", err)
	os.Chdir(p.dir)
	p.say("bind", unix.Bind(fd, &unix.SockaddrUnix{Name: "sock"}))
	p.say("listen", unix.Listen(fd, 1))
	c, _ := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	p.say("connect", unix.Connect(c, &unix.SockaddrUnix{Name: "sock"}))
	p.stat("sock")
	p.say("mkfifo", unix.Mkfifo(p.at("fifo"), 0o600))
	r, err := unix.Open(p.at("fifo"), unix.O_RDWR|unix.O_NONBLOCK, 0)
	p.say("open a fifo", err)
	unix.Write(r, []byte("through"))
	b := make([]byte, 10)
	n, err := unix.Read(r, b)
	p.say(fmt.Sprintf("read %q", b[:max(n, 0)]), err)
}

func posixDirs(p posix) {
	const many = 3000
	for i := range many {
		os.WriteFile(p.at(fmt.Sprintf("file-%05d", i)), nil, 0o644)
	}
	d, err := os.Open(p.dir)
	p.say("open", err)
	seen := map[string]int{}
	for round := 0; ; round++ {
		names, err := d.Readdirnames(100)
		if err != nil {
			break
		}
		for _, n := range names {
			seen[n]++
			os.Remove(p.at(n)) // what rm -r does
		}
		os.WriteFile(p.at(fmt.Sprintf("new-%05d", round)), nil, 0o644)
	}
	once := 0
	for i := range many {
		if seen[fmt.Sprintf("file-%05d", i)] == 1 {
			once++
		}
	}
	fmt.Println("seen once:", once)
	names, _ := os.ReadDir(p.dir)
	left := 0
	for _, n := range names {
		if strings.HasPrefix(n.Name(), "file-") {
			left++
		}
	}
	fmt.Println("left:", left)
	var dot, dotdot, self, up unix.Stat_t
	unix.Stat(p.at("."), &dot)
	unix.Stat(p.dir, &self)
	unix.Stat(p.at(".."), &dotdot)
	unix.Stat(filepath.Dir(p.dir), &up)
	fmt.Println(". and ..:", dot.Ino == self.Ino, dotdot.Ino == up.Ino)
	unix.Mkdir(p.at("a"), 0o755)
	unix.Mkdir(p.at("a/b"), 0o755)
	p.stat("a")
	unix.Rmdir(p.at("a/b"))
	p.stat("a")
}

func posixOpen(p posix) {
	p.file("f", unix.O_RDWR, 0)
	p.file("f", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o444)
	p.file("f", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o644)
	p.file("f", unix.O_RDWR|unix.O_CREAT, 0o644)
	p.file("f/x", unix.O_RDWR|unix.O_CREAT, 0o644)
	p.file(".", unix.O_RDWR, 0)
	p.file("f", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	p.file("dir/x", unix.O_CREAT|unix.O_RDWR, 0o644)
	p.file("t/", unix.O_CREAT|unix.O_RDWR, 0o644)
	p.write("t", "some text")
	p.stat("t")
	fd := p.file("t", unix.O_WRONLY|unix.O_TRUNC, 0)
	p.stat("t")
	unix.Close(fd)
	// Readers and writers of all kinds on one file, in every order of two, with a mapping by each that can.
	kinds := []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDONLY | unix.O_DIRECT}
	for _, a := range kinds {
		for _, b := range kinds {
			os.WriteFile(p.at("mix"), []byte(strings.Repeat("m", 4096)), 0o644)
			x, y := p.file("mix", a, 0), p.file("mix", b, 0)
			for _, fd := range []int{x, y} {
				if _, err := unix.Pwrite(fd, []byte("W"), 7); err == nil {
					fmt.Println("written")
				}
				if m, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED); err == nil {
					fmt.Printf("mapped %q\n", m[5:9])
					unix.Munmap(m)
				} else {
					p.say("mmap", err)
				}
			}
			if a&3 == unix.O_WRONLY {
				unix.Pwrite(x, []byte("X"), 9)
			}
			buf := make([]byte, 16)
			if n, err := unix.Pread(y, buf, 0); err == nil && b&unix.O_DIRECT == 0 {
				fmt.Printf("second reads %q\n", buf[:n])
			}
			unix.Close(x)
			unix.Close(y)
			p.cat("mix")
		}
	}
}

package tree

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// plain makes a directory as somebody has it.
func plain(t *testing.T, dir string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(dir, "sub/deep"), 0o750))
	must(t, os.WriteFile(filepath.Join(dir, "sub/f"), []byte("content"), 0o640))
	must(t, os.Link(filepath.Join(dir, "sub/f"), filepath.Join(dir, "g")))
	must(t, os.Symlink("sub/f", filepath.Join(dir, "inside")))
	must(t, os.Symlink(filepath.Dir(dir)+"/elsewhere", filepath.Join(dir, "out")))
	must(t, os.MkdirAll(filepath.Dir(dir)+"/elsewhere", 0o755))
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	must(t, unix.Setxattr(filepath.Join(dir, "g"), "user.k", []byte("v"), 0))
	must(t, unix.Setxattr(filepath.Join(dir, "g"), idXattr, idBytes(7), 0)) // of an earlier life
	old := time.Unix(1e9, 5)
	for _, f := range []string{"g", "sub", "."} {
		must(t, os.Chtimes(filepath.Join(dir, f), old, old))
	}
}

// listing is what must not change.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	top, err := os.Open(dir)
	must(t, err)
	defer top.Close()
	must(t, eachBelow(int(top.Fd()), "", func(fd int, name, path string, x *unix.Statx_t) error {
		content, _ := os.ReadFile(filepath.Join(dir, path))
		if x.Mode&unix.S_IFMT == unix.S_IFLNK || x.Mode&unix.S_IFMT == unix.S_IFIFO {
			content, _ = nil, os.ErrInvalid
		}
		target, _ := os.Readlink(filepath.Join(dir, path))
		fmt.Fprintf(&b, "%s %o %d %d:%d %d.%09d %q %q\n", path, x.Mode, x.Nlink, x.Uid, x.Gid, x.Mtime.Sec, x.Mtime.Nsec, content, target)
		return nil
	}))
	lines := strings.Split(b.String(), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestADirectoryBecomesAVolumeAndAPlainDirectoryAgain(t *testing.T) {
	onEach(t, func(t *testing.T, disk string) {
		from, backing := filepath.Join(disk, "data"), filepath.Join(disk, ".hanode-data")
		listing := func(dir string) string { return listing(t, dir) }
		plain(t, from)
		must(t, os.Remove(filepath.Join(from, "pipe"))) // a listing would wait for its writer
		before := listing(from)
		a := Adoption{From: from, Backing: backing, Plan: true}
		r, err := Adopt(a)
		if err != nil || r.Dirs != 3 || r.Files != 4 || r.Links != 2 || len(r.Leaving) != 1 || r.Leaving[0].Path != from+"/out" || !strings.Contains(r.Leaving[0].Block, `path = "`+disk+`/elsewhere"`) {
			t.Fatalf("plan: %+v, %v", r, err)
		}
		if _, err := os.Lstat(backing); err == nil {
			t.Error("a plan made the backing directory")
		}
		if got := listing(from); got != before {
			t.Errorf("a plan changed something:\n%s", got)
		}
		headed := ""
		a.Plan, a.Header = false, func(dir string) error { headed = dir; return nil }
		if _, err := Adopt(a); err != nil || headed != backing {
			t.Fatalf("adopt: %v, header in %q", err, headed)
		}
		if es, err := os.ReadDir(from); err != nil || len(es) != 0 {
			t.Errorf("the mount point: %v, %v", es, err)
		}
		tr := openTree(t, backing, Options{Mount: from})
		must(t, tr.Settle())
		id, s, err := tr.Lookup(1, "g")
		if err != nil || id == 7 && tr.MaxID() > 100 || s.Nlink != 2 || s.Size != 7 || s.Mtime != 1e18+5 {
			t.Errorf("g: %d %+v %v", id, s, err)
		}
		if got := tr.Scanned().Inodes; got != 6 {
			t.Errorf("%d inodes", got)
		}
		must(t, tr.Close())
		if got := listing(backing + "/tree"); got != before {
			t.Errorf("the adopted tree:\n%s\nnot\n%s", got, before)
		}
		must(t, Release(backing, from))
		if got := listing(from); got != before {
			t.Errorf("after the release:\n%s\nnot\n%s", got, before)
		}
		if n, err := unix.Lgetxattr(filepath.Join(from, "g"), idXattr, nil); err != unix.ENODATA {
			t.Errorf("a released file has an id: %d, %v", n, err)
		}
		if v := make([]byte, 1); true {
			if _, err := unix.Lgetxattr(filepath.Join(from, "g"), "user.k", v); err != nil || !bytes.Equal(v, []byte("v")) {
				t.Errorf("a user's attribute: %q, %v", v, err)
			}
		}
	})
}

func TestAnAdoptionThatWasCutShortGoesOn(t *testing.T) {
	onEach(t, func(t *testing.T, disk string) {
		for step, cut := range []func(a *Adoption, tree string){
			func(a *Adoption, tree string) { // before the rename
				must(t, os.MkdirAll(filepath.Join(a.Backing, limboName), 0o700))
				must(t, os.WriteFile(filepath.Join(a.Backing, adoptingName), []byte(a.From), 0o600))
			},
			func(a *Adoption, tree string) { must(t, a.move(tree)) },
			func(a *Adoption, tree string) {
				must(t, a.move(tree))
				must(t, mountPointFor(a.From, tree))
				must(t, unix.Setxattr(filepath.Join(tree, "sub"), idXattr, idBytes(2), 0))
			},
			func(a *Adoption, tree string) {
				must(t, a.move(tree))
				must(t, number(tree))
			},
		} {
			dir := filepath.Join(disk, fmt.Sprint("step", step))
			a := Adoption{From: dir + "/data", Backing: dir + "/back"}
			plain(t, a.From)
			cut(&a, a.Backing+"/tree")
			if _, err := Open(a.Backing, Options{}); err == nil || !strings.Contains(err.Error(), "was cut short") && !strings.Contains(err.Error(), "no such file") {
				t.Errorf("step %d: opened: %v", step, err)
			}
			r, err := Adopt(a)
			if err != nil || !r.Resumed {
				t.Fatalf("step %d: %+v %v", step, r, err)
			}
			tr := openTree(t, a.Backing, Options{})
			if tr.Scanned().Inodes != 7 {
				t.Errorf("step %d: %+v", step, tr.Scanned())
			}
			must(t, tr.Settle())
			must(t, tr.Close())
		}
	})
}

func TestAdoptionsThatAreRefused(t *testing.T) {
	onEach(t, func(t *testing.T, disk string) {
		n := 0
		refuse := func(what string, wants string, prepare func(dir string, a *Adoption) func()) {
			t.Helper()
			n++
			dir := filepath.Join(disk, fmt.Sprint("case", n))
			a := Adoption{From: dir + "/data", Backing: dir + "/back"}
			plain(t, a.From)
			undo := prepare(dir, &a)
			_, err := Adopt(a)
			if undo != nil {
				undo()
			}
			if err == nil || !strings.Contains(err.Error(), wants) {
				t.Errorf("%s: %v", what, err)
			}
			if _, err := os.Lstat(filepath.Join(dir, "data/sub/f")); err != nil {
				t.Errorf("%s: the directory is not as before: %v", what, err)
			}
		}
		process := func(dir, script string) func() {
			cmd := exec.Command("sh", "-c", script+"; echo ready; exec sleep 60")
			cmd.Dir = dir
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			if _, err := out.Read(make([]byte, 8)); err != nil {
				t.Fatal(err)
			}
			return func() { cmd.Process.Kill(); cmd.Wait() }
		}
		refuse("a file is open", "has "+disk, func(dir string, a *Adoption) func() { return process("/", "exec 5<"+a.From+"/sub/f") })
		refuse("a working directory", "working directory", func(dir string, a *Adoption) func() { return process(a.From+"/sub/deep", ":") })
		refuse("a program runs from it", "(sleep) has "+disk, func(dir string, a *Adoption) func() {
			sleep, err := exec.LookPath("sleep")
			must(t, err)
			b, err := os.ReadFile(sleep)
			must(t, err)
			must(t, os.WriteFile(a.From+"/sleep", b, 0o755))
			cmd := exec.Command(a.From+"/sleep", "60")
			cmd.Dir = "/"
			must(t, cmd.Start())
			return func() { cmd.Process.Kill(); cmd.Wait() }
		})
		refuse("a hard link leads out", "another name outside", func(dir string, a *Adoption) func() {
			must(t, os.Link(a.From+"/sub/f", dir+"/outside"))
			return nil
		})
		refuse("something is mounted in it", "is mounted in it", func(dir string, a *Adoption) func() {
			must(t, unix.Mount("hanode-test", a.From+"/sub/deep", "tmpfs", 0, ""))
			return func() { unix.Unmount(a.From+"/sub/deep", 0) }
		})
		refuse("it is a mount point", "file system is mounted there", func(dir string, a *Adoption) func() {
			must(t, os.Rename(a.From, dir+"/x"))
			must(t, os.Mkdir(a.From, 0o755))
			must(t, unix.Mount("hanode-test", a.From, "tmpfs", 0, ""))
			return func() {
				unix.Unmount(a.From, 0)
				os.Remove(a.From)
				os.Rename(dir+"/x", a.From)
			}
		})
		refuse("a link instead of a directory", "no directory", func(dir string, a *Adoption) func() {
			must(t, os.Symlink(a.From, dir+"/link"))
			a.From = dir + "/link"
			return nil
		})
		refuse("the backing directory is taken", "not empty", func(dir string, a *Adoption) func() {
			must(t, os.MkdirAll(a.Backing+"/something", 0o700))
			return nil
		})
		refuse("the backing directory is inside", "inside", func(dir string, a *Adoption) func() {
			a.Backing = a.From + "/back"
			return nil
		})
		refuse("another file system", "another file system", func(dir string, a *Adoption) func() {
			must(t, os.Mkdir(dir+"/m", 0o755))
			must(t, unix.Mount("hanode-test", dir+"/m", "tmpfs", 0, ""))
			a.Backing = dir + "/m/back"
			return func() { unix.Unmount(dir+"/m", 0) }
		})
		refuse("a file that may not be changed", "chattr -ia", func(dir string, a *Adoption) func() {
			f, err := os.Open(a.From + "/sub/f")
			must(t, err)
			defer f.Close()
			if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0x10); err != nil {
				t.Skipf("no immutable flag here: %v", err)
			}
			return func() {
				f, err := os.Open(a.From + "/sub/f")
				must(t, err)
				defer f.Close()
				must(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0))
			}
		})
	})
}

func TestBackingDirectoriesThatAreRefused(t *testing.T) {
	onEach(t, func(t *testing.T, disk string) {
		n := 0
		refuse := func(what, wants string, prepare func(dir string, opt *Options) func()) {
			t.Helper()
			n++
			dir := filepath.Join(disk, fmt.Sprint("case", n))
			must(t, Make(dir))
			var opt Options
			undo := prepare(dir, &opt)
			tr, err := Open(dir, opt)
			if err == nil {
				err = tr.Settle()
				tr.Close()
			}
			if undo != nil {
				undo()
			}
			if err == nil || !strings.Contains(err.Error(), wants) {
				t.Errorf("%s: %v", what, err)
			}
		}
		refuse("others may come in", "chmod 700", func(dir string, _ *Options) func() { must(t, os.Chmod(dir, 0o755)); return nil })
		refuse("another owner", "chown root", func(dir string, _ *Options) func() { must(t, os.Chown(dir, 5, 5)); return nil })
		refuse("a foreign header", "of another cluster", func(dir string, o *Options) func() {
			o.Header = func(string) error { return errors.New("of another cluster") }
			return nil
		})
		refuse("the mount point is inside", "lies inside the backing directory", func(dir string, o *Options) func() { o.Mount = dir + "/m"; return nil })
		refuse("inside the mount point", "lies inside the mount point", func(dir string, o *Options) func() { o.Mount = filepath.Dir(dir); return nil })
		refuse("no tree", "has tree and limbo", func(dir string, _ *Options) func() { must(t, os.Remove(dir+"/tree")); return nil })
		refuse("attributes lost in a copy", "no file id 1", func(dir string, _ *Options) func() { must(t, unix.Removexattr(dir+"/tree", idXattr)); return nil })
		refuse("a tree that is a link", "not a directory", func(dir string, _ *Options) func() {
			must(t, os.Rename(dir+"/tree", dir+"/real"))
			must(t, os.Symlink("real", dir+"/tree"))
			return nil
		})
		refuse("something is mounted in the tree", "is mounted on", func(dir string, _ *Options) func() {
			must(t, os.Mkdir(dir+"/tree/m", 0o755))
			must(t, unix.Setxattr(dir+"/tree/m", idXattr, idBytes(2), 0))
			must(t, unix.Mount("hanode-test", dir+"/tree/m", "tmpfs", 0, ""))
			return func() { unix.Unmount(dir+"/tree/m", 0) }
		})
		refuse("the same file system is mounted in the tree again", "is mounted on", func(dir string, _ *Options) func() {
			must(t, os.Mkdir(dir+"/tree/m", 0o755))
			must(t, unix.Setxattr(dir+"/tree/m", idXattr, idBytes(2), 0))
			must(t, unix.Mount(dir+"/limbo", dir+"/tree/m", "", unix.MS_BIND, ""))
			return func() { unix.Unmount(dir+"/tree/m", 0) }
		})
		refuse("two files with one id", "another file of the volume has too", func(dir string, _ *Options) func() {
			for _, f := range []string{"a", "b"} {
				must(t, os.WriteFile(dir+"/tree/"+f, nil, 0o600))
				must(t, unix.Setxattr(dir+"/tree/"+f, idXattr, idBytes(2), 0))
			}
			return nil
		})
		refuse("a file laid there by hand", "was not made through the volume", func(dir string, _ *Options) func() {
			must(t, os.WriteFile(dir+"/tree/byhand", nil, 0o600))
			return nil
		})
		refuse("inside another volume", "inside another volume", func(dir string, _ *Options) func() {
			must(t, unix.Setxattr(filepath.Dir(dir), idXattr, idBytes(1), 0))
			return func() { unix.Removexattr(filepath.Dir(dir), idXattr) }
		})
		refuse("a read-only file system", "read-only", func(dir string, _ *Options) func() {
			must(t, unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			return func() { must(t, unix.Mount("", disk, "", unix.MS_REMOUNT, "")) }
		})
	})
	t.Run("ramfs", func(t *testing.T) {
		disk := mounted(t, "ramfs", func(dir string) error { return unix.Mount("hanode-test", dir, "ramfs", 0, "mode=0700") })
		if err := Make(disk + "/v"); err == nil || !strings.Contains(err.Error(), "without it no file has an identity") && !strings.Contains(err.Error(), "free") {
			t.Errorf("a file system without attributes: %v", err)
		}
	})
	t.Run("overlay", func(t *testing.T) {
		base := mountTmpfs(t)
		for _, d := range []string{"l", "u", "w"} {
			must(t, os.Mkdir(filepath.Join(base, d), 0o700))
		}
		disk := mounted(t, "overlay", func(dir string) error {
			return unix.Mount("overlay", dir, "overlay", 0, fmt.Sprintf("lowerdir=%s/l,upperdir=%s/u,workdir=%s/w", base, base, base))
		})
		err := Make(disk + "/v")
		if err == nil {
			_, err = Open(disk+"/v", Options{})
		}
		if err == nil || !strings.Contains(err.Error(), "file handles") && !strings.Contains(err.Error(), "identity") {
			t.Errorf("a file system without handles: %v", err)
		}
	})
	t.Run("small", func(t *testing.T) {
		disk := mounted(t, "tmpfs", func(dir string) error { return unix.Mount("hanode-test", dir, "tmpfs", 0, "size=8m,mode=0700") })
		if err := Make(disk + "/v"); err == nil || !strings.Contains(err.Error(), "MiB free") {
			t.Errorf("a disk that is nearly full: %v", err)
		}
	})
}

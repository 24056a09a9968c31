package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

// Adoption turns a directory with files into a volume, in place: by one rename and an attribute on each file. Nothing is copied.
type Adoption struct {
	From    string                 // the directory, which will be the volume's mount point
	Backing string                 // the backing directory to be made, on the same file system
	Plan    bool                   // look only
	Header  func(dir string) error // writes the identity of the backing directory, when all else is done
}

// AdoptReport is what an adoption found.
type AdoptReport struct {
	Dirs, Files, Links int64 // symbolic links among Files
	Bytes              int64 // allocated
	Leaving            []Leaving
	LeavingMore        int // beyond those listed
	Resumed            bool
}

// Leaving is a symbolic link that leads out of the volume: what it names is not replicated with it.
type Leaving struct {
	Path, Target string
	Block        string // what to paste into the spec to protect that too; empty if it is nothing that can be a volume
}

const (
	adoptingName  = "adopting"
	releasingName = "releasing"
	mostLeaving   = 100
)

// Adopt adopts. It refuses while a process has a file of the directory open, when something is mounted in it, when a file has a name outside it or may not be changed, and
// when the file system lacks what a volume needs. Cut short by a crash, it is repeated with the same arguments and goes on.
func Adopt(a Adoption) (r AdoptReport, err error) {
	if a.From, err = filepath.Abs(a.From); err != nil {
		return r, err
	}
	if a.Backing, err = filepath.Abs(a.Backing); err != nil {
		return r, err
	}
	tree := filepath.Join(a.Backing, treeName)
	if from, err := os.ReadFile(filepath.Join(a.Backing, adoptingName)); err == nil {
		if string(from) != a.From {
			return r, fmt.Errorf("%s has an adoption of %s that was cut short: finish that one first", a.Backing, from)
		}
		r.Resumed = true
		if _, err := os.Lstat(tree); err == nil {
			if a.Plan {
				return r, nil
			}
			return r, a.finish(&r, tree)
		}
	}
	if err := a.refusals(&r); err != nil || a.Plan {
		return r, err
	}
	if err := a.move(tree); err != nil {
		return r, err
	}
	return r, a.finish(&r, tree)
}

func (a *Adoption) refusals(r *AdoptReport) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("adopt %s: only root can", a.From)
	}
	var st, up unix.Stat_t
	if err := unix.Lstat(a.From, &st); err != nil {
		return fmt.Errorf("adopt %s: %w", a.From, err)
	}
	parent := filepath.Dir(a.Backing)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("adopt %s: it is no directory: name the directory itself, not a link to it", a.From)
	}
	if err := unix.Stat(parent, &up); err != nil {
		return fmt.Errorf("adopt %s: where its bytes would live, %s: %w", a.From, parent, err)
	}
	var above unix.Stat_t
	if err := unix.Stat(filepath.Dir(a.From), &above); err == nil && above.Dev != st.Dev {
		return fmt.Errorf("adopt %s: a file system is mounted there, so that it cannot be renamed: unmount it, mount it on a directory beside it, move its files into a subdirectory of that, and adopt the subdirectory with `backing =` beside it",
			a.From)
	}
	if up.Dev != st.Dev {
		return fmt.Errorf("adopt %s: it lies on another file system than %s, and an adoption renames: name a backing directory on the same file system, or copy the files into a new volume", a.From, a.Backing)
	}
	if es, err := os.ReadDir(a.Backing); err == nil && len(es) > 0 && !r.Resumed {
		return fmt.Errorf("adopt %s: %s is there already and not empty: it may be the data of a volume; name another with `backing =`", a.From, a.Backing)
	}
	for _, dir := range []string{a.From, a.Backing} {
		if err := notInside(dir); err != nil {
			return fmt.Errorf("adopt %s: %w", a.From, err)
		}
	}
	if within(a.Backing, a.From) || within(a.From, a.Backing) {
		return fmt.Errorf("adopt %s: the backing directory %s cannot be inside it or round it: name one beside it", a.From, a.Backing)
	}
	if err := checkSpace(parent); err != nil {
		return fmt.Errorf("adopt %s: %w", a.From, err)
	}
	if err := tryOut(parent); err != nil {
		return fmt.Errorf("adopt %s: %w", a.From, err)
	}
	if mounts := mountsBelow(a.From); len(mounts) > 0 {
		return fmt.Errorf("adopt %s: %s is mounted in it: unmount it, or protect it as a volume of its own", a.From, mounts[0])
	}
	held, err := holders(uint64(st.Dev))
	if err != nil {
		return err
	}
	return a.survey(r, held, a.From)
}

func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// tryOut tries attributes and handles on a file without a name.
func tryOut(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
	if err == unix.EROFS {
		return fmt.Errorf("the file system of %s is read-only", dir)
	}
	if err != nil {
		return fmt.Errorf("make a file without a name in %s: %w: use ext4, xfs, btrfs or tmpfs", dir, err)
	}
	defer unix.Close(fd)
	if err := unix.Fsetxattr(fd, idXattr, idBytes(noID), 0); err != nil {
		return xattrRefusal(dir, err)
	}
	if _, _, err := handleAt(fd, ""); err != nil {
		return handleRefusal(dir, err)
	}
	return nil
}

// survey looks at every file.
func (a *Adoption) survey(r *AdoptReport, held map[uint64]holder, root string) error {
	links := map[uint64]int{} // names still to be found of files with several
	example := map[uint64]string{}
	check := func(path string, stx *unix.Statx_t) error {
		if h, ok := held[stx.Ino]; ok {
			return fmt.Errorf("adopt %s: process %d (%s) has %s open (%s): stop it first", a.From, h.pid, h.name, path, h.how)
		}
		if stx.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0 {
			return fmt.Errorf("adopt %s: %s may not be changed (chattr +i or +a): chattr -ia %q", a.From, path, path)
		}
		return nil
	}
	top, err := os.Open(root)
	if err != nil {
		return err
	}
	defer top.Close()
	var stx unix.Statx_t
	if err := statx(int(top.Fd()), "", &stx); err != nil {
		return err
	}
	if err := check(root, &stx); err != nil {
		return err
	}
	dev := [2]uint32{stx.Dev_major, stx.Dev_minor}
	r.Dirs = 1
	err = eachBelow(int(top.Fd()), root, func(fd int, name, path string, stx *unix.Statx_t) error {
		if [2]uint32{stx.Dev_major, stx.Dev_minor} != dev {
			return fmt.Errorf("adopt %s: something is mounted on %s: unmount it", a.From, path)
		}
		if err := check(path, stx); err != nil {
			return err
		}
		r.Bytes += int64(stx.Blocks) * 512
		switch uint32(stx.Mode) & unix.S_IFMT {
		case unix.S_IFDIR:
			r.Dirs++
			return nil
		case unix.S_IFLNK:
			r.Links++
			a.follow(r, path)
		}
		r.Files++
		if stx.Nlink > 1 {
			if _, seen := example[stx.Ino]; !seen {
				links[stx.Ino], example[stx.Ino] = int(stx.Nlink), path
			}
			if links[stx.Ino]--; links[stx.Ino] == 0 {
				delete(links, stx.Ino)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for ino := range links {
		return fmt.Errorf("adopt %s: %s has another name outside the directory (a hard link), by which it could be changed past the volume, and there are %d such files: make it a file of its own, cp -p F F.new && mv F.new F",
			a.From, example[ino], len(links))
	}
	return nil
}

// follow notes a symbolic link that leads out.
func (a *Adoption) follow(r *AdoptReport, path string) {
	target, err := os.Readlink(path)
	if err != nil {
		return
	}
	to := target
	if !filepath.IsAbs(to) {
		to = filepath.Join(filepath.Dir(path), to)
	}
	if to = filepath.Clean(to); within(to, a.From) {
		return
	}
	if len(r.Leaving) == mostLeaving {
		r.LeavingMore++
		return
	}
	l := Leaving{Path: path, Target: target}
	if real, err := filepath.EvalSymlinks(to); err == nil {
		if st, err := os.Stat(real); err == nil && st.IsDir() && real != "/" {
			l.Block = fmt.Sprintf("volume %q {\n  path = %q\n}\n", filepath.Base(path), real)
		}
	}
	r.Leaving = append(r.Leaving, l)
}

// move makes the backing directory and renames.
func (a *Adoption) move(tree string) error {
	if err := os.MkdirAll(filepath.Join(a.Backing, limboName), 0o700); err != nil {
		return err
	}
	if err := os.Chmod(a.Backing, 0o700); err != nil {
		return err
	}
	mark := filepath.Join(a.Backing, adoptingName)
	if err := os.WriteFile(mark, []byte(a.From), 0o600); err != nil {
		return err
	}
	if err := syncAll(mark, a.Backing, filepath.Dir(a.Backing)); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, a.From, unix.AT_FDCWD, tree, unix.RENAME_NOREPLACE); err != nil {
		return errors.Join(fmt.Errorf("adopt %s: rename it to %s: %w", a.From, tree, err), a.undo(mark))
	}
	var st unix.Stat_t
	err := unix.Stat(tree, &st)
	if err == nil {
		var held map[uint64]holder
		if held, err = holders(uint64(st.Dev)); err == nil {
			err = a.survey(&AdoptReport{}, held, tree) // who was quicker than the rename
		}
	}
	if err != nil {
		if back := unix.Renameat2(unix.AT_FDCWD, tree, unix.AT_FDCWD, a.From, unix.RENAME_NOREPLACE); back != nil {
			return fmt.Errorf("%w; and %s could not be renamed back to %s: %w", err, tree, a.From, back)
		}
		return errors.Join(err, a.undo(mark))
	}
	return nil
}

func (a *Adoption) undo(mark string) error {
	return errors.Join(os.Remove(mark), os.Remove(filepath.Join(a.Backing, limboName)), os.Remove(a.Backing))
}

// finish gives every file its id, the mount point its place and the backing directory its identity.
func (a *Adoption) finish(r *AdoptReport, tree string) error {
	if err := mountPointFor(a.From, tree); err != nil {
		return err
	}
	if err := number(tree); err != nil {
		return fmt.Errorf("adopt %s: %w", a.From, err)
	}
	dir, err := os.Open(a.Backing)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("adopt %s: syncfs: %w", a.From, err)
	}
	if a.Header != nil {
		if err := a.Header(a.Backing); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(a.Backing, adoptingName)); err != nil {
		return err
	}
	return dir.Sync()
}

// mountPointFor makes the empty directory on which the volume will be mounted, with the owner and mode of the tree.
func mountPointFor(path, tree string) error {
	var st unix.Stat_t
	if err := unix.Stat(tree, &st); err != nil {
		return err
	}
	err := os.Mkdir(path, os.FileMode(st.Mode&0o777))
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make the mount point: %w", err)
	}
	return errors.Join(os.Lchown(path, int(st.Uid), int(st.Gid)), syncAll(filepath.Dir(path)))
}

// number gives ids, in the order of the walk; ids from before do not count.
func number(tree string) error {
	top, err := os.Open(tree)
	if err != nil {
		return err
	}
	defer top.Close()
	if err := unix.Fsetxattr(int(top.Fd()), idXattr, idBytes(replication.RootID), 0); err != nil {
		return xattrRefusal(tree, err)
	}
	next := replication.RootID
	return eachBelow(int(top.Fd()), tree, func(fd int, name, path string, _ *unix.Statx_t) error {
		next++ // what has several names keeps the last number
		if err := setxattrAt(fd, name, idXattr, idBytes(next)); err != nil {
			return fmt.Errorf("give %s a file id: %w", path, err)
		}
		if err := removexattrAt(fd, name, placeXattr); err != nil && err != unix.ENODATA && err != unix.EPERM {
			return fmt.Errorf("clear %s: %w", path, err)
		}
		return nil
	})
}

// Release gives the tree of a backing directory back as the plain directory to, which is not there or empty. No server may use it. What else is in
// the backing directory (header, state, journal, what was set aside) stays for the caller to remove. Cut short, it is repeated.
func Release(backing, to string) error {
	to, err := filepath.Abs(to)
	if err != nil {
		return err
	}
	tree := filepath.Join(backing, treeName)
	mark := filepath.Join(backing, releasingName)
	if was, err := os.ReadFile(mark); err == nil {
		if _, err := os.Lstat(tree); errors.Is(err, os.ErrNotExist) && string(was) == to {
			return os.Remove(mark) // all was done but this
		}
	}
	if es, err := os.ReadDir(to); err == nil && len(es) > 0 {
		return fmt.Errorf("release %s: %s is not empty: name a directory that is not there", backing, to)
	}
	var st, up unix.Stat_t
	if err := unix.Stat(tree, &st); err != nil {
		return fmt.Errorf("release %s: %w", tree, err)
	}
	if err := unix.Stat(filepath.Dir(to), &up); err != nil || up.Dev != st.Dev {
		return fmt.Errorf("release %s: %s lies on another file system (%v): name a directory on the same one, it is a rename", backing, to, err)
	}
	if mounts := mountsBelow(to); len(mounts) > 0 {
		return fmt.Errorf("release %s: %s is mounted: stop the service first", backing, mounts[0])
	}
	if err := os.WriteFile(mark, []byte(to), 0o600); err != nil {
		return err
	}
	if err := syncAll(mark, backing); err != nil {
		return err
	}
	if err := strip(tree); err != nil {
		return fmt.Errorf("release %s: %w", backing, err)
	}
	if err := os.RemoveAll(filepath.Join(backing, limboName)); err != nil {
		return err
	}
	if err := mutable(to); err != nil {
		return err
	}
	if err := unix.Rename(tree, to); err != nil {
		return fmt.Errorf("release %s: rename %s to %s: %w", backing, tree, to, err)
	}
	if err := syncAll(filepath.Dir(to), backing); err != nil {
		return err
	}
	return os.Remove(mark)
}

// strip takes the ids away.
func strip(tree string) error {
	top, err := os.Open(tree)
	if err != nil {
		return err
	}
	defer top.Close()
	if err := unix.Fremovexattr(int(top.Fd()), idXattr); err != nil && err != unix.ENODATA {
		return err
	}
	return eachBelow(int(top.Fd()), tree, func(fd int, name, path string, _ *unix.Statx_t) error {
		for _, attr := range [...]string{idXattr, placeXattr} {
			if err := removexattrAt(fd, name, attr); err != nil && err != unix.ENODATA {
				return fmt.Errorf("take the file id from %s: %w", path, err)
			}
		}
		return nil
	})
}

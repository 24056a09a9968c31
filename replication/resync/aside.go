package resync

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/tree"
)

// A set holds operations that one copy has and nobody else will have, because the group went on without them. It is a directory
// <epoch>-<generation>-<time> under divergent/ of the service's first volume:
//
//	listing               one line "hanode divergent 1 crc32c=…", then JSON: what happened to which file
//	journal               the records, one behind the other
//	files/VOLUME/ID       the content that each regular file they touch had when the set was made, holes kept
//
// It gets its name when it is complete and durable.
const (
	listingName = "listing"
	recordsName = "journal"
	listingHead = "hanode divergent 1 crc32c="
	asideTmp    = ".making"
)

// AsideOptions say what is set aside.
type AsideOptions struct {
	Dir      string // divergent/
	Journal  *journal.Journal
	From, To uint64 // sequences, both included
	Trees    []*Tree
	Names    []string // of the volumes
	Most     int64    // bytes of content kept in all; what does not fit is listed as omitted; 0: 10 GiB. Records are always kept
	Now      time.Time
	Why      string
}

// Set is one that was set aside.
type Set struct {
	Name       string           `json:"name"`
	From       cluster.Position `json:"from"`
	To         cluster.Position `json:"to"`
	Made       time.Time        `json:"made"`
	Why        string           `json:"why"`
	Operations int              `json:"operations"`
	Records    int64            `json:"records_bytes"`
	Kept       int64            `json:"kept_bytes"`
	Omitted    int              `json:"omitted"` // files whose content was not kept
	Files      []AsideFile      `json:"files"`
}

// AsideFile is one inode that the operations touch.
type AsideFile struct {
	Volume     string         `json:"volume"`
	Number     uint8          `json:"number"`
	ID         FileID         `json:"id"`
	Paths      []string       `json:"paths"` // in the tree as it was, and as the operations made them
	Kind       string         `json:"kind"`
	Mode       uint32         `json:"mode"`
	UID        uint32         `json:"uid"`
	GID        uint32         `json:"gid"`
	Size       int64          `json:"size"`
	Mtime      int64          `json:"mtime"`
	Target     string         `json:"target,omitempty"`
	Operations map[string]int `json:"operations"`
	Kept       bool           `json:"kept"`
	Omitted    string         `json:"omitted,omitempty"` // why the content was not kept
}

type fileKey struct {
	volume uint8
	id     FileID
}

type aside struct {
	opt   AsideOptions
	dir   string
	set   Set
	files map[fileKey]*AsideFile
}

// SetAside keeps the records From to To and the present content of every file that they touch. After nil all of it is durable; after an error nothing may be taken
// away from the copy. If the same records were set aside before, as before a crash, that set is returned.
func SetAside(ctx context.Context, opt AsideOptions) (Set, error) {
	if opt.Most == 0 {
		opt.Most = 10 << 30
	}
	s, err := setAside(ctx, opt)
	if err != nil {
		return s, fmt.Errorf("set aside operations %d to %d in %s, which nobody else has: %w. They stay where they are; make room there, or see to the disk", opt.From, opt.To, opt.Dir, err)
	}
	return s, nil
}

func setAside(ctx context.Context, opt AsideOptions) (Set, error) {
	if err := os.Mkdir(opt.Dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return Set{}, err
	}
	a := &aside{opt: opt, dir: filepath.Join(opt.Dir, asideTmp), files: map[fileKey]*AsideFile{}}
	if err := os.RemoveAll(a.dir); err != nil { // an earlier attempt
		return Set{}, err
	}
	if err := os.Mkdir(a.dir, 0o700); err != nil {
		return Set{}, err
	}
	if err := a.records(ctx); err != nil {
		return Set{}, err
	}
	sets, err := Sets(opt.Dir)
	if err != nil {
		return Set{}, err
	}
	for _, s := range sets {
		if s.From == a.set.From && s.To == a.set.To {
			return s, os.RemoveAll(a.dir)
		}
	}
	if err := a.paths(ctx); err != nil {
		return Set{}, err
	}
	for _, k := range slices.SortedFunc(maps.Keys(a.files), func(x, y fileKey) int {
		return cmp.Or(cmp.Compare(x.volume, y.volume), cmp.Compare(x.id, y.id))
	}) {
		if err := a.keep(ctx, k, a.files[k]); err != nil {
			return Set{}, err
		}
		a.set.Files = append(a.set.Files, *a.files[k])
	}
	a.set.Made, a.set.Why = opt.Now.UTC(), opt.Why
	a.set.Name = fmt.Sprintf("%d-%d-%s", a.set.From.Epoch, a.set.From.Gen, a.set.Made.Format("20060102T150405.000Z"))
	if err := a.finish(); err != nil {
		return Set{}, err
	}
	return a.set, nil
}

// records copies the journal's part and notes what it touches.
func (a *aside) records(ctx context.Context) error {
	r, err := a.opt.Journal.Read(a.opt.From)
	if err != nil {
		return err
	}
	defer r.Close()
	out, err := os.OpenFile(filepath.Join(a.dir, recordsName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	buf := make([]byte, 1<<20)
	for next := a.opt.From; next <= a.opt.To; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := r.Next(buf)
		if err != nil {
			return err
		}
		n := 0
		for n < len(b) && next <= a.opt.To {
			var op replication.Op
			h, err := replication.Parse(b[n:], &op)
			if err != nil && !(errors.Is(err, replication.ErrUnknown) && h.Skip) {
				return fmt.Errorf("record %d: %w", next, err)
			}
			if a.set.Operations++; a.set.Operations == 1 {
				a.set.From = h.Pos
			}
			a.set.To = h.Pos
			a.note(&op)
			n, next = n+h.Len, next+1
		}
		if _, err := out.Write(b[:n]); err != nil {
			return err
		}
		a.set.Records += int64(n)
	}
	return out.Sync()
}

// note takes down which files an operation touches.
func (a *aside) note(op *replication.Op) {
	if op.Kind == replication.Mark || op.Volume == 0 {
		return
	}
	for _, id := range [...]FileID{op.ID, op.Before} {
		if id == 0 {
			continue
		}
		f := a.files[fileKey{op.Volume, id}]
		if f == nil {
			f = &AsideFile{Number: op.Volume, ID: id, Operations: map[string]int{}}
			if int(op.Volume) <= len(a.opt.Names) {
				f.Volume = a.opt.Names[op.Volume-1]
			}
			a.files[fileKey{op.Volume, id}] = f
		}
		f.Operations[op.Kind.String()]++
	}
	f := a.files[fileKey{op.Volume, op.ID}]
	if t := a.tree(op.Volume); t != nil && f != nil {
		if op.Name != "" && op.Parent != 0 {
			f.addPath(path.Join(pathOf(t, op.Parent), op.Name))
		}
		if op.NewName != "" {
			f.addPath(path.Join(pathOf(t, op.NewParent), op.NewName))
		}
	}
}

// morePaths bounds the paths that are listed of one file.
const morePaths = 16

func (f *AsideFile) addPath(p string) {
	if len(f.Paths) < morePaths && !slices.Contains(f.Paths, p) {
		f.Paths = append(f.Paths, p)
	}
}

func (a *aside) tree(volume uint8) *Tree {
	if volume == 0 || int(volume) > len(a.opt.Trees) {
		return nil
	}
	return a.opt.Trees[volume-1]
}

// paths finds the names of files that no operation named, by one walk for all.
func (a *aside) paths(ctx context.Context) error {
	for n := range a.opt.Trees {
		volume := uint8(n + 1)
		unnamed := 0
		for k, f := range a.files {
			if k.volume == volume && len(f.Paths) == 0 {
				unnamed++
			}
		}
		if unnamed == 0 {
			continue
		}
		err := a.tree(volume).Walk(ctx, func(d tree.Dir) error {
			for _, e := range d.Entries {
				if f := a.files[fileKey{volume, e.ID}]; f != nil {
					f.addPath(path.Join(d.Path, e.Name))
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// keep describes a file and copies its content.
func (a *aside) keep(ctx context.Context, k fileKey, f *AsideFile) error {
	t := a.tree(k.volume)
	if t == nil {
		f.Kind = "unknown volume"
		return nil
	}
	i, err := t.Inode(k.id)
	if gone(err) {
		f.Kind = "not here" // made and removed again by these operations, or not applied
		return nil
	}
	if err != nil {
		return err
	}
	s := i.Stat
	f.Kind, f.Mode, f.UID, f.GID, f.Mtime, f.Target = kindText(i.Type), s.Mode&0o7777, s.UID, s.GID, s.Mtime, i.Target
	if i.Type != unix.S_IFREG {
		return nil
	}
	f.Size = s.Size
	if used := min(s.Blocks*512, s.Size); a.set.Kept+used > a.opt.Most {
		f.Omitted = fmt.Sprintf("with its %d bytes the set would have more than %d", used, a.opt.Most)
		a.set.Omitted++
		return nil
	}
	dir := filepath.Join(a.dir, "files", fmt.Sprint(k.volume))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	src, err := t.OpenFile(k.id, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("%016x", uint64(k.id))), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	n, err := copySparse(ctx, dst, src, s.Size)
	if err != nil {
		return fmt.Errorf("keep the content of file id %x: %w", uint64(k.id), err)
	}
	f.Kept = true
	a.set.Kept += n
	return dst.Sync()
}

// seeker is a file whose holes can be found.
type seeker interface {
	io.ReaderAt
	Seek(off int64, whence int) (int64, error)
}

// copySparse copies the data of src and returns how much there was.
func copySparse(ctx context.Context, dst *os.File, src seeker, size int64) (copied int64, err error) {
	if err := dst.Truncate(size); err != nil {
		return 0, err
	}
	b := make([]byte, 1<<20)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return copied, err
		}
		data, err := src.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= size {
			break
		} else if err != nil {
			return copied, err
		}
		end, err := src.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return copied, err
		}
		for off = data; off < min(end, size); {
			n, err := src.ReadAt(b[:min(int64(len(b)), min(end, size)-off)], off)
			if err != nil && err != io.EOF {
				return copied, err
			}
			if n == 0 {
				return copied, nil // cut off meanwhile
			}
			if _, err := dst.WriteAt(b[:n], off); err != nil {
				return copied, err
			}
			off, copied = off+int64(n), copied+int64(n)
		}
	}
	return copied, nil
}

func kindText(typ uint32) string {
	switch typ {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "link"
	case unix.S_IFIFO:
		return "pipe"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "device"
}

// finish writes the listing and gives the set its name, durably.
func (a *aside) finish() error {
	b, err := json.MarshalIndent(&a.set, "", "  ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	head := fmt.Sprintf("%s%08x\n", listingHead, crc32.Checksum(b, castagnoli))
	out, err := os.OpenFile(filepath.Join(a.dir, listingName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := out.WriteString(head + string(b)); err != nil {
		return err
	}
	if err := out.Sync(); err != nil {
		return err
	}
	dirs := []string{a.dir}
	err = filepath.WalkDir(filepath.Join(a.dir, "files"), func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, d := range dirs {
		if err := syncDir(d); err != nil {
			return err
		}
	}
	if err := os.Rename(a.dir, filepath.Join(a.opt.Dir, a.set.Name)); err != nil {
		return err
	}
	if err := syncDir(a.opt.Dir); err != nil {
		return err
	}
	return syncDir(filepath.Dir(a.opt.Dir))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Sets are the sets in a directory, oldest first. A set whose listing is damaged is an error: nothing of it is left out silently.
func Sets(dir string) ([]Set, error) {
	es, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var out []Set
	for _, e := range es {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		s, err := ReadSet(dir, e.Name())
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y Set) int { return x.Made.Compare(y.Made) })
	return out, nil
}

// ReadSet reads the listing of one set.
func ReadSet(dir, name string) (s Set, err error) {
	if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return s, fmt.Errorf("%q is not the name of a set: `hanode volume divergent list` shows them", name)
	}
	file := filepath.Join(dir, name, listingName)
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return s, fmt.Errorf("there is no set %q in %s: `hanode volume divergent list` shows them", name, dir)
	} else if err != nil {
		return s, err
	}
	head, text, _ := bytes.Cut(b, []byte("\n"))
	if string(head) != fmt.Sprintf("%s%08x", listingHead, crc32.Checksum(text, castagnoli)) {
		return s, fmt.Errorf("%s is damaged: its checksum is wrong. Its `%s` and `files` may be whole; look at them by hand", file, recordsName)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("%s: %w", file, err)
	}
	return s, nil
}

package tree

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// mountTmpfs mounts memory on a directory of its own.
func mountTmpfs(t testing.TB) string {
	t.Helper()
	return mounted(t, "tmpfs", func(dir string) error { return unix.Mount("hanode-test", dir, "tmpfs", 0, "size=512m,mode=0700") })
}

// mountExt4 mounts an ext4 of 256 MiB, made in memory, by a loop device.
func mountExt4(t testing.TB) string {
	t.Helper()
	for _, tool := range []string{"mkfs.ext4", "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no ext4 here: %v", err)
		}
	}
	hold := mountTmpfs(t)
	img := filepath.Join(hold, "ext4.img")
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, 256<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", img).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v: %s", err, out)
	}
	return mounted(t, "ext4 by a loop device", func(dir string) error {
		if out, err := exec.Command("mount", "-o", "loop", img, dir).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

func mounted(t testing.TB, what string, mount func(dir string) error) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("file ids and file handles need root")
	}
	dir, err := os.MkdirTemp("", "hanode-tree-")
	if err != nil {
		t.Fatal(err)
	}
	if err := mount(dir); err != nil {
		os.Remove(dir)
		t.Skipf("%s: %v", what, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s of %s: %v", what, dir, err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
		os.Remove(dir)
	})
	return dir
}

// failer is a test, or one round of a test that is shrunk.
type failer interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// onEach runs a test on each file system that there is.
func onEach(t *testing.T, fn func(t *testing.T, disk string)) {
	for name, mount := range map[string]func(testing.TB) string{"tmpfs": mountTmpfs, "ext4": mountExt4} {
		t.Run(name, func(t *testing.T) { fn(t, mount(t)) })
	}
}

// newTree makes a volume in a directory of the disk.
func newTree(t testing.TB, dir string) *Tree {
	t.Helper()
	if err := Make(dir); err != nil {
		t.Fatal(err)
	}
	return openTree(t, dir, Options{})
}

func openTree(t testing.TB, dir string, opt Options) *Tree {
	t.Helper()
	tr, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	t.Cleanup(func() {
		if !closed {
			tr.Close()
		}
	})
	return tr
}

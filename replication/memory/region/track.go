package region

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication/memory/image"
)

// tracker finds the blocks that were written. Its methods are called with the region's gate held.
type tracker interface {
	changed(ids []uint32, size int) ([]uint32, error) // since the last call, ascending; from then on they count as unchanged
	clean(size int) error                             // everything counts as unchanged
	grow(from, to int) error
	close()
}

func newTracker(t Tracking, mem []byte) (tracker, error) {
	switch t {
	case Declared:
		return &declared{bits: make([]uint64, (len(mem)/image.Block+63)/64)}, nil
	case Compare:
		return &comparer{mem: mem}, nil
	}
	k, err := newKernel(mem)
	if err == nil {
		return k, nil
	}
	if t == Kernel {
		return nil, fmt.Errorf("the kernel cannot track changes (needs Linux 6.7 and userfaultfd): %w; declare ranges, or compare", err)
	}
	return &comparer{mem: mem}, nil
}

// declared believes the application.
type declared struct {
	mu   sync.Mutex
	bits []uint64
}

func (d *declared) mark(off, n int) {
	if n <= 0 || off < 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for b := off / image.Block; b <= (off+n-1)/image.Block && b < len(d.bits)*64; b++ {
		d.bits[b/64] |= 1 << (b % 64)
	}
}

func (d *declared) changed(ids []uint32, size int) ([]uint32, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	blocks := uint32(image.Blocks(uint64(size)))
	for w, word := range d.bits {
		for b := 0; word != 0; b, word = b+1, word>>1 {
			if id := uint32(w*64 + b); word&1 != 0 && id < blocks {
				ids = append(ids, id)
			}
		}
		d.bits[w] = 0
	}
	return ids, nil
}

func (d *declared) clean(int) error     { clear(d.bits); return nil }
func (d *declared) grow(int, int) error { return nil }
func (d *declared) close()              {}

// comparer keeps a copy of the last checkpoint.
type comparer struct{ mem, last []byte }

func (c *comparer) changed(ids []uint32, size int) ([]uint32, error) {
	for b := 0; b*image.Block < len(c.last); b++ {
		now, last := c.mem[b*image.Block:][:image.Block], c.last[b*image.Block:][:image.Block]
		if !bytes.Equal(now, last) {
			copy(last, now)
			ids = append(ids, uint32(b))
		}
	}
	return ids, nil
}

func (c *comparer) clean(size int) error {
	c.last = append(c.last[:0], c.mem[:round(uint64(size))]...)
	return nil
}

func (c *comparer) grow(_, to int) error {
	c.last = append(c.last, make([]byte, int(round(uint64(to)))-len(c.last))...)
	return nil
}

func (c *comparer) close() { c.last = nil }

// kernel asks the kernel: every page is write-protected without anybody being told of a write (UFFD_FEATURE_WP_ASYNC); PAGEMAP_SCAN lists the pages that are no longer
// protected and protects them again in one step. Values from include/uapi/linux/userfaultfd.h and fs.h.
type kernel struct {
	mem     []byte
	uffd    int
	pagemap int
	vec     [512]pageRegion
}

type pageRegion struct{ start, end, categories uint64 }

type scanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages, inverted, mask, anyOf, ret uint64
}

const (
	uffdioAPI          = 0xc018aa3f
	uffdioRegister     = 0xc020aa00
	uffdioWriteProtect = 0xc018aa06
	uffdAPI            = 0xaa
	uffdUserModeOnly   = 1
	featWP             = 1 << 0
	featWPShmem        = 1 << 12
	featWPUnpopulated  = 1 << 13
	featWPAsync        = 1 << 15
	registerWP         = 1 << 1
	protectWP          = 1 << 0
	pagemapScan        = 0xc0606610
	scanWPMatching     = 1 << 0
	scanCheckAsync     = 1 << 1
	pageIsWritten      = 1 << 1
)

func ioctl(fd int, req uintptr, arg unsafe.Pointer) (int, error) {
	for {
		n, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
		if e == unix.EINTR || e == unix.EAGAIN {
			continue
		}
		if e != 0 {
			return 0, e
		}
		return int(n), nil
	}
}

func newKernel(mem []byte) (*kernel, error) {
	if unix.Getpagesize() != image.Block {
		return nil, fmt.Errorf("pages of %d bytes", unix.Getpagesize())
	}
	fd, _, e := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|uffdUserModeOnly, 0, 0)
	if e != 0 {
		return nil, fmt.Errorf("userfaultfd: %w", e)
	}
	k := &kernel{mem: mem, uffd: int(fd), pagemap: -1}
	api := [3]uint64{uffdAPI, featWP | featWPShmem | featWPUnpopulated | featWPAsync, 0}
	_, err := ioctl(k.uffd, uffdioAPI, unsafe.Pointer(&api))
	if err == nil {
		reg := [4]uint64{k.at(0), uint64(len(mem)), registerWP, 0}
		_, err = ioctl(k.uffd, uffdioRegister, unsafe.Pointer(&reg))
	}
	if err == nil {
		k.pagemap, err = unix.Open("/proc/self/pagemap", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err == nil {
		_, err = k.scan(nil, 0, image.Block)
	}
	if err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

func (k *kernel) at(off int) uint64 { return uint64(uintptr(unsafe.Pointer(&k.mem[0]))) + uint64(off) }

func (k *kernel) protect(from, to int) error {
	a := [3]uint64{k.at(from), uint64(to - from), protectWP}
	_, err := ioctl(k.uffd, uffdioWriteProtect, unsafe.Pointer(&a))
	return err
}

func (k *kernel) clean(size int) error { return k.protect(0, int(round(uint64(size)))) }

func (k *kernel) grow(from, to int) error {
	if round(uint64(from)) == round(uint64(to)) {
		return nil
	}
	return k.protect(int(round(uint64(from))), int(round(uint64(to))))
}

func (k *kernel) changed(ids []uint32, size int) ([]uint32, error) {
	return k.scan(ids, 0, int(round(uint64(size))))
}

func (k *kernel) scan(ids []uint32, from, to int) ([]uint32, error) {
	base, end := k.at(0), k.at(to)
	for at := k.at(from); at < end; {
		a := scanArg{size: uint64(unsafe.Sizeof(scanArg{})), flags: scanWPMatching | scanCheckAsync, start: at, end: end, vec: uint64(uintptr(unsafe.Pointer(&k.vec))), vecLen: uint64(len(k.vec)),
			mask: pageIsWritten, ret: pageIsWritten}
		n, err := ioctl(k.pagemap, pagemapScan, unsafe.Pointer(&a))
		if err != nil {
			return ids, fmt.Errorf("PAGEMAP_SCAN: %w", err)
		}
		for _, r := range k.vec[:n] {
			for p := r.start; p < r.end; p += image.Block {
				ids = append(ids, uint32((p-base)/image.Block))
			}
		}
		if a.walkEnd <= at {
			return ids, errors.New("PAGEMAP_SCAN makes no progress")
		}
		at = a.walkEnd
	}
	return ids, nil
}

func (k *kernel) close() {
	unix.Close(k.uffd)
	if k.pagemap >= 0 {
		unix.Close(k.pagemap)
	}
}

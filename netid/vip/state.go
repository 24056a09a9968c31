package vip

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The list of our addresses, for kernels that do not keep their mark: a header line with format version and checksum
// (CRC-32C of the rest), then an address per line. It names every VIP that may be in the kernel because of us, so it is
// written before an address can be added and shortened only after the kernel was seen without.

const (
	listName   = "vips"
	listHeader = "hanode-vips 1 "
	listMax    = 256 << 10 // bytes; 2 x maxKnown addresses fit
)

func listSum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func writeList(dir string, addrs []netip.Addr) error {
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	var body bytes.Buffer
	for _, a := range slices.Compact(addrs) {
		fmt.Fprintln(&body, a)
	}
	content := fmt.Appendf(nil, "%s%08x\n%s", listHeader, listSum(body.Bytes()), body.Bytes())
	path := filepath.Join(dir, listName)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := replaceFile(path, content); err != nil {
		return fmt.Errorf("write the list of our VIPs: %w", err)
	}
	return nil
}

func replaceFile(path string, content []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readList returns the list; none when there is no file yet.
func readList(dir string) ([]netip.Addr, error) {
	path := filepath.Join(dir, listName)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of our VIPs: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, listMax+1))
	if err != nil {
		return nil, fmt.Errorf("read the list of our VIPs %s: %w", path, err)
	}
	head, body, _ := strings.Cut(string(b), "\n")
	if len(b) > listMax || head != fmt.Sprintf("%s%08x", listHeader, listSum([]byte(body))) {
		return nil, fmt.Errorf("the list of our VIPs %s is damaged or of another version", path)
	}
	var out []netip.Addr
	for line := range strings.Lines(body) {
		a, err := netip.ParseAddr(strings.TrimSpace(line))
		if err != nil {
			return nil, fmt.Errorf("the list of our VIPs %s: %w", path, err)
		}
		out = append(out, a)
	}
	return out, nil
}

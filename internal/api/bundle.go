package api

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Bundle writes a debug bundle: a gzipped tar with one file for each thing. Add nothing that is secret.
type Bundle struct {
	gz  *gzip.Writer
	tw  *tar.Writer
	at  time.Time
	dir string
}

// NewBundle starts a bundle on w; its files stand in a folder called name.
func NewBundle(w io.Writer, name string, at time.Time) *Bundle {
	gz := gzip.NewWriter(w)
	return &Bundle{gz: gz, tw: tar.NewWriter(gz), at: at, dir: name}
}

// Add writes one file.
func (b *Bundle) Add(name string, data []byte) error {
	h := &tar.Header{Name: b.dir + "/" + name, Mode: 0o640, Size: int64(len(data)), ModTime: b.at, Typeflag: tar.TypeReg}
	if err := b.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("debug bundle: %s: %w", name, err)
	}
	if _, err := b.tw.Write(data); err != nil {
		return fmt.Errorf("debug bundle: %s: %w", name, err)
	}
	return nil
}

// AddJSON writes one file with an object, indented for people.
func (b *Bundle) AddJSON(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("debug bundle: %s: %w", name, err)
	}
	return b.Add(name, append(data, '\n'))
}

// Close ends the bundle. Without it the bundle is not readable.
func (b *Bundle) Close() error {
	if err := b.tw.Close(); err != nil {
		return fmt.Errorf("debug bundle: %w", err)
	}
	if err := b.gz.Close(); err != nil {
		return fmt.Errorf("debug bundle: %w", err)
	}
	return nil
}

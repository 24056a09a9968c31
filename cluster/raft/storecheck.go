package raft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/hashicorp/go-msgpack/v2/codec"
	hraft "github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// DamagedError says that a file under the group's directory cannot be used, and what to do.
type DamagedError struct {
	File string
	What string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s is damaged: %s; put a copy of %s aside, empty it, and let this member join again as a new one (if it is the only member left: restore the directory from a backup)",
		e.File, e.What, filepath.Dir(e.File))
}

// explainOpen turns what bbolt says about opening path into what an operator can act on.
func explainOpen(path string, err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%s is locked: another daemon runs with this directory; stop it first, and never run two with one directory: %w", path, err)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return &DamagedError{File: path, What: "neither of its two head pages is valid (" + err.Error() + ")"}
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("open %s: %w; it must belong to the user that runs the daemon, mode 0600", path, err)
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("open %s: %w; make room on its file system", path, err)
	}
	return fmt.Errorf("open %s: %w", path, err)
}

// checkFile reads the whole of a raft.db that exists, read-only, and returns the first thing that is wrong with it: first
// the pages, without bbolt, which trusts the numbers in them and would crash the process; then the records.
func checkFile(path string) error {
	if st, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) || err == nil && st.Size() == 0 {
		return nil
	}
	db, err := bbolt.Open(path, 0o600, boltOptions(true)) // maps the file, touches only the head pages
	if err != nil {
		return explainOpen(path, err)
	}
	defer db.Close()
	if err := checkPages(path); err != nil {
		return err
	}
	found := make(chan error)
	go func() { found <- guarded(func() error { return walk(db) }) }()
	if err := <-found; err != nil {
		return &DamagedError{File: path, What: err.Error()}
	}
	return nil
}

// guarded turns panics of bbolt, and faults on what it took for a page, into errors.
func guarded(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // of this goroutine only
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return fn()
}

// walk reads every record and checks order, contiguity and checksums.
func walk(db *bbolt.DB) error {
	tx, err := db.Begin(false)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	logs, conf := tx.Bucket([]byte("logs")), tx.Bucket([]byte("conf"))
	if logs == nil || conf == nil {
		return errors.New("it has no log or no settings in it")
	}
	var prev []byte
	err = conf.ForEach(func(k, v []byte) error {
		if prev != nil && bytes.Compare(prev, k) >= 0 {
			return errors.New("its settings are out of order")
		}
		prev = k
		if string(k) == keyProbe {
			return nil
		}
		_, err := unsealValue(string(k), v)
		return err
	})
	if err != nil {
		return err
	}
	var last uint64
	return logs.ForEach(func(k, v []byte) error {
		if len(k) != 8 {
			return errors.New("a log entry has no number")
		}
		index := binary.BigEndian.Uint64(k)
		if last != 0 && index != last+1 {
			return fmt.Errorf("log entry %d is followed by %d", last, index)
		}
		last = index
		var l hraft.Log
		if err := codec.NewDecoderBytes(v, &codec.MsgpackHandle{}).Decode(&l); err != nil {
			return fmt.Errorf("log entry %d cannot be read: %w", index, err)
		}
		return unseal(index, &l)
	})
}

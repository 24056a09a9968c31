package volserver

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/hanode/hanode/replication/resync"
)

// asideDir is where the service keeps what was set aside.
func (w *works) asideDir() string { return filepath.Join(w.start.Volumes[0].Backing, "divergent") }

// setAside keeps operations that nobody else has, and the content of what they touch, before they go.
func (w *works) setAside(from, to uint64) error {
	var names []string
	for i := range w.start.Volumes {
		names = append(names, w.start.Volumes[i].Name)
	}
	set, err := resync.SetAside(w.h.ctx, resync.AsideOptions{Dir: w.asideDir(), Journal: w.journal, From: from, To: to, Trees: w.trees, Names: names, Now: time.Now(),
		Why: "the group went on without them"})
	if err != nil {
		return err
	}
	w.h.log.Warn("operations that nobody else has were set aside", "set", set.Name, "operations", set.Operations, "files", len(set.Files))
	return nil
}

// divergentOrder are the words of an operator's order about what was set aside.
type divergentOrder struct {
	Set  string `json:"set"`
	File string `json:"file"`
	To   string `json:"to"`
}

// divergent lists, compares, restores and discards what was set aside.
func (w *works) divergent(ctx context.Context, o Order) (json.RawMessage, error) {
	var d divergentOrder
	if len(o.Args) > 0 {
		if err := json.Unmarshal(o.Args, &d); err != nil {
			return nil, err
		}
	}
	var v any
	var err error
	switch o.What {
	case "divergent":
		v, err = resync.Sets(w.asideDir())
	case "divergent-diff":
		v, err = resync.Diff(ctx, w.asideDir(), d.Set, w.trees)
	case "divergent-restore":
		for i := range w.start.Volumes { // a process that uses its own mount waits for itself
			if p := w.start.Volumes[i].Path; d.To == p || strings.HasPrefix(d.To, p+"/") {
				return nil, fmt.Errorf("%s lies in the volume itself: name a place outside, look at the file, and copy it", d.To)
			}
		}
		v, err = resync.Restore(ctx, w.asideDir(), d.Set, d.File, d.To)
	case "divergent-discard":
		err = resync.Discard(w.asideDir(), d.Set)
	default:
		return nil, fmt.Errorf("an order to %s a volume is not known to this version", o.What)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

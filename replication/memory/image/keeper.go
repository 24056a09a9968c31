package image

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hanode/hanode/cluster"
)

// Errors of a Keeper; the sentences around them name what they are about.
var (
	ErrEpoch  = errors.New("of an epoch that is over")
	ErrStale  = errors.New("not newer than what is held")
	ErrMixed  = errors.New("its parts were not taken together")
	ErrLayout = errors.New("of another layout version")
)

// Region is one region of an image.
type Region struct {
	Name string
	Full bool // every block is there; what is not there is zero. Otherwise the blocks are the difference to the image before
	Base Head // what the difference was made from: the copy must hold exactly this
	Head Head
}

// Complete is an image whose every block has arrived and was verified. ID is the caller's word for where the blocks lie.
//
// Moment: the state of several regions at one moment, as a standby receives it that was away. Each has the number of its own last
// checkpoint then. It replaces what the standby holds of earlier epochs, also where that is newer: nobody acknowledged it.
type Complete struct {
	ID      uint64
	Epoch   cluster.Epoch // in which it was sent
	Moment  bool
	Regions []Region
}

func (c Complete) fileSeq() (seq uint64) {
	for _, r := range c.Regions {
		seq = max(seq, r.Head.FileSeq)
	}
	return seq
}

// Keeper decides for a standby which images count. Its zero value holds nothing.
type Keeper struct {
	epoch   cluster.Epoch
	held    map[string]Head // the newest usable image of each region
	waiting []Complete      // complete, newer than the files, oldest first
	layout  map[string]uint32
}

// Hold tells the keeper what its copy holds at the start, or of a region that was taken anew.
func (k *Keeper) Hold(name string, h Head) {
	if k.held == nil {
		k.held = map[string]Head{}
	}
	k.held[name] = h
	k.epoch = max(k.epoch, h.Epoch)
}

// Forget takes a region away.
func (k *Keeper) Forget(name string) { delete(k.held, name) }

// Held is the newest usable image of a region.
func (k *Keeper) Held(name string) (Head, bool) {
	h, ok := k.held[name]
	return h, ok
}

// Epoch is the highest epoch seen.
func (k *Keeper) Epoch() cluster.Epoch { return k.epoch }

// Waiting is the number of complete images that wait for the files.
func (k *Keeper) Waiting() int { return len(k.waiting) }

// Want says that the standby's own application reads only this layout of a region; 0: any.
func (k *Keeper) Want(name string, layout uint32) {
	if k.layout == nil {
		k.layout = map[string]uint32{}
	}
	k.layout[name] = layout
}

// CheckLayout refuses a layout that the standby's application cannot read, before the standby would have to serve with it.
func (k *Keeper) CheckLayout(name string, layout uint32) error {
	if want := k.layout[name]; want != 0 && want != layout {
		return fmt.Errorf("region %s has layout version %d, and this member's application reads version %d: %w; start the same version of the application on both sides", name, layout, want, ErrLayout)
	}
	return nil
}

// Admit notes an epoch; an older one than any seen before is refused. Images of an earlier epoch that still wait are dropped
// when another member became active (keep false): it sends its own.
func (k *Keeper) Admit(e cluster.Epoch, keep bool) (dropped []Complete, err error) {
	if e < k.epoch {
		return nil, fmt.Errorf("epoch %d: %w, epoch %d was seen", e, ErrEpoch, k.epoch)
	}
	if e > k.epoch && !keep {
		dropped, k.waiting = k.waiting, nil
	}
	k.epoch = e
	return dropped, nil
}

// Restart forgets the images that wait and takes what the copy holds from the caller (Hold): the active sends everything anew.
func (k *Keeper) Restart() (dropped []Complete) {
	dropped, k.waiting = k.waiting, nil
	return dropped
}

// newest is the newest image of a region, waiting ones included.
func (k *Keeper) newest(name string) Head {
	h := k.held[name]
	for _, w := range k.waiting {
		for _, r := range w.Regions {
			if r.Name == name {
				h = r.Head
			}
		}
	}
	return h
}

// Take accepts a complete image, or says why not. It returns what becomes usable by it, in order: nothing, if its files are not
// there yet (files is the sequence up to which they are).
func (k *Keeper) Take(c Complete, files uint64) (usable []Complete, err error) {
	if len(c.Regions) == 0 || len(c.Regions) > MaxParts {
		return nil, fmt.Errorf("an image of %d regions: %w", len(c.Regions), ErrMixed)
	}
	first := c.Regions[0].Head
	for i, r := range c.Regions {
		have := k.newest(r.Name)
		switch {
		case c.Epoch < k.epoch || c.Epoch < r.Head.Epoch:
			return nil, fmt.Errorf("image %d of region %s, sent in epoch %d: %w, epoch %d was seen", r.Head.Number, r.Name, c.Epoch, ErrEpoch, max(k.epoch, r.Head.Epoch))
		case !c.Moment && (r.Head.Number != first.Number || r.Head.Epoch != first.Epoch || r.Head.FileSeq != first.FileSeq):
			return nil, fmt.Errorf("image %d of regions %s and %s: %w", first.Number, c.Regions[0].Name, r.Name, ErrMixed)
		case slices.ContainsFunc(c.Regions[:i], func(o Region) bool { return o.Name == r.Name }):
			return nil, fmt.Errorf("image %d has region %s twice: %w", first.Number, r.Name, ErrMixed)
		case !r.Full && !r.Base.Same(have):
			return nil, fmt.Errorf("image %d of region %s is the difference to image %d, and image %d is held: %w", r.Head.Number, r.Name, r.Base.Number, have.Number, ErrStale)
		case !r.Head.Newer(have) && !(c.Moment && (r.Head.Same(have) || have.Epoch < c.Epoch)):
			return nil, fmt.Errorf("image %d (epoch %d) of region %s, image %d (epoch %d) is held: %w", r.Head.Number, r.Head.Epoch, r.Name, have.Number, have.Epoch, ErrStale)
		}
		if err := k.CheckLayout(r.Name, r.Head.Layout); err != nil {
			return nil, err
		}
	}
	k.epoch = max(k.epoch, c.Epoch)
	c.Regions = slices.Clone(c.Regions)
	k.waiting = append(k.waiting, c)
	return k.Files(files), nil
}

// Files returns what has become usable because the files have come to this sequence, in order.
func (k *Keeper) Files(files uint64) (usable []Complete) {
	n := 0
	for n < len(k.waiting) && k.waiting[n].fileSeq() <= files {
		for _, r := range k.waiting[n].Regions {
			k.Hold(r.Name, r.Head)
		}
		n++
	}
	usable, k.waiting = k.waiting[:n:n], k.waiting[n:]
	return usable
}

// Promote is the end of being a standby: what can be used with the files as they are is used, the rest is left.
func (k *Keeper) Promote(files uint64) (usable, left []Complete) {
	usable = k.Files(files)
	left, k.waiting = k.waiting, nil
	return usable, left
}

// Usable is the newest image whose files are there, of images that were complete, in any order. It is the rule that Take, Files and
// Promote follow step by step; a test compares them.
func Usable(complete []Head, files uint64) (best Head, ok bool) {
	for _, h := range complete {
		if h.FileSeq <= files && (!ok || h.Newer(best)) {
			best, ok = h, true
		}
	}
	return best, ok
}

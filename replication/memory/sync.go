package memory

import (
	"encoding/json"
	"time"

	"github.com/hanode/hanode/replication/memory/image"
	"github.com/hanode/hanode/replication/memory/store"
	"github.com/hanode/hanode/replication/memory/wire"
)

// sync brings the other member up to date whenever it lacks something: it sends blocks in rounds while checkpoints go on, and ends with a moment, for
// which they are held up briefly.
func (p *peer) sync() {
	for {
		select {
		case <-p.done:
			return
		case <-p.kick:
		}
		p.mu.Lock()
		p.tx++
		tx := p.tx
		p.mu.Unlock()
		for p.bringUp(tx) { // the same image: what was sent of it is not sent again
			select {
			case <-p.done:
				return
			default:
			}
		}
		p.consider()
	}
}

const (
	lastBlocks = 64 // with so few left, the moment comes
	maxRounds  = 8
)

// bringUp sends what is lacking. It returns true if something was lacking again in the meantime.
func (p *peer) bringUp(tx uint64) bool {
	if !p.define() {
		return false
	}
	for round := 0; ; round++ {
		for _, r := range p.s.list {
			if err := p.sendLacking(r, tx); err != nil {
				return false
			}
		}
		if left, any := p.lacking(); !any {
			return false
		} else if left <= lastBlocks || round == maxRounds {
			break
		}
	}
	return p.moment(tx)
}

// define tells the other member of the regions that it lacks; false: it lacks nothing that it could hold.
func (p *peer) define() bool {
	any := false
	for _, r := range p.s.list {
		r.mu.Lock()
		p.mu.Lock()
		st := p.state[r]
		need := p.following && st != nil && !st.synced && st.refused == ""
		tell := need && !st.defined
		if tell {
			st.defined = true
		}
		p.mu.Unlock()
		var d wire.Definition
		if tell {
			h := r.img.Head()
			d = wire.Definition{Number: r.no, Name: r.spec.Name, Size: h.Size, Layout: h.Layout}
		}
		r.mu.Unlock()
		if tell {
			body, err := json.Marshal(d)
			if err != nil {
				return false
			}
			p.wmu.Lock()
			p.out = wire.AppendFrame(p.out[:0], &wire.Frame{Kind: wire.PeerDefine, Epoch: p.epoch, Body: body})
			err = p.write(p.out)
			p.wmu.Unlock()
			if err != nil {
				return false
			}
		}
		any = any || need
	}
	return any
}

// lacking counts the blocks to be sent; any: there are regions that are not up to date.
func (p *peer) lacking() (blocks int, any bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.following {
		return 0, false
	}
	for _, st := range p.state {
		if st.synced || st.refused != "" {
			continue
		}
		any = true
		if st.full && st.dirty == nil {
			blocks += lastBlocks + 1 // not begun
		}
		blocks += count(st.dirty)
	}
	return blocks, any
}

// sendLacking sends what the member lacks of a region at this time, a frame at a time.
func (p *peer) sendLacking(r *region, tx uint64) error {
	entries := make([]store.Entry, 0, wire.PageBlocks)
	data := make([]byte, 0, wire.PageBlocks*image.Block)
	for sent := uint64(0); sent <= image.Blocks(r.spec.Size); sent += uint64(len(entries)) {
		r.mu.Lock()
		entries, data = p.pick(r, entries[:0], data[:0])
		r.mu.Unlock()
		if len(entries) == 0 {
			return nil
		}
		if err := p.sendBlocks(r, tx, entries, data); err != nil {
			return err
		}
	}
	return nil
}

func (p *peer) sendBlocks(r *region, tx uint64, entries []store.Entry, data []byte) error {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	p.out = p.out[:0]
	if err := p.blocks(r.no, tx, 1, entries, data); err != nil {
		return err
	}
	if len(p.out) > 0 {
		return p.write(p.out)
	}
	return nil
}

// pick takes blocks that the member lacks, as many as fit (r.mu is held).
func (p *peer) pick(r *region, entries []store.Entry, data []byte) ([]store.Entry, []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.state[r]
	if st == nil || st.synced || st.refused != "" {
		return entries, data
	}
	n := image.Blocks(r.img.Head().Size)
	if st.dirty == nil {
		st.dirty = newBits(image.Blocks(r.spec.Size))
		for i := uint64(0); st.full && i < n; i++ {
			if r.img.BlockSum(uint32(i)) != 0 {
				st.dirty[i/64] |= 1 << (i % 64)
			}
		}
	}
	content := r.img.Data()
	for i := uint64(0); i < n && len(entries) < cap(entries); i++ {
		if st.dirty[i/64] == 0 {
			i |= 63
			continue
		}
		if st.dirty[i/64]&(1<<(i%64)) != 0 {
			st.dirty[i/64] &^= 1 << (i % 64)
			entries = append(entries, store.Entry{Block: uint32(i), Sum: r.img.BlockSum(uint32(i))})
			data = append(data, content[i*image.Block:][:image.Block]...)
		}
	}
	return entries, data
}

// moment sends the last blocks and makes the state of all regions that the member lacks one image. true: it has to be begun again.
func (p *peer) moment(tx uint64) bool {
	s := p.s
	lock(s.list)
	defer unlock(s.list)
	p.mu.Lock()
	var regs []*region
	again := false
	for _, r := range s.list {
		st := p.state[r]
		if st == nil || st.synced || st.refused != "" {
			continue
		}
		regs = append(regs, r)
		again = again || !st.defined || st.full && st.dirty == nil
	}
	follows := p.following
	p.mu.Unlock()
	if again || !follows || len(regs) == 0 {
		return again && follows
	}
	entries, data := make([]store.Entry, 0, wire.PageBlocks), make([]byte, 0, wire.PageBlocks*image.Block)
	for _, r := range regs {
		for {
			if entries, data = p.pick(r, entries[:0], data[:0]); len(entries) == 0 {
				break
			}
			if p.sendBlocks(r, tx, entries, data) != nil {
				return false
			}
		}
	}
	p.mu.Lock()
	parts := make([]wire.CommitPart, len(regs))
	sn := sent{tx: tx, regs: regs, at: time.Now()}
	for i, r := range regs {
		st, h := p.state[r], r.img.Head()
		if st == nil { // a promotion came between
			p.mu.Unlock()
			return false
		}
		parts[i] = wire.CommitPart{Region: r.no, Full: st.full, Base: st.base, Head: h}
		sn.heads = append(sn.heads, h)
		st.synced, st.full, st.dirty, st.base = true, false, nil, h
	}
	p.sent = append(p.sent, sn)
	p.mu.Unlock()
	p.wmu.Lock()
	p.out = p.out[:0]
	for i := range parts {
		p.raise(parts[i].Head.Epoch)
	}
	p.out = wire.AppendFrame(p.out, &wire.Frame{Kind: wire.PeerCommit, Epoch: p.epoch, Tx: tx, Body: wire.AppendCommit(nil, parts, true)})
	err := p.write(p.out)
	p.wmu.Unlock()
	if err != nil {
		return false
	}
	for _, r := range regs {
		r.img.Log().Each(r.img.Head().LogSeq, func(seq uint64, data []byte) error { p.sendRecord(r, seq, data); return nil })
	}
	return false
}

func count(bits []uint64) (n int) {
	for _, w := range bits {
		for ; w != 0; w &= w - 1 {
			n++
		}
	}
	return n
}

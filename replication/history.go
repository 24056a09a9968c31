package replication

import "github.com/hanode/hanode/cluster"

// Turn is one entry of a history: from First on, records carry this epoch and generation.
type Turn struct {
	Epoch cluster.Epoch      `json:"epoch"`
	Gen   cluster.Generation `json:"gen"`
	First uint64             `json:"first"`
}

// History is what a copy knows of how its stream came about, oldest turn first; epochs, generations and first sequences never
// fall. It is what DRBD keeps as its history of UUIDs, with sequences in it as in Kafka's leader epochs (KIP-101).
type History []Turn

// Add notes that the record at p is the first of a new epoch or generation; of a known one it changes nothing.
func (h History) Add(p cluster.Position) History {
	if n := len(h); n > 0 && h[n-1].Epoch == p.Epoch && h[n-1].Gen == p.Gen {
		return h
	}
	return append(h[:len(h):len(h)], Turn{p.Epoch, p.Gen, p.Seq})
}

// Cut drops what begins after seq.
func (h History) Cut(seq uint64) History {
	n := len(h)
	for n > 0 && h[n-1].First > seq {
		n--
	}
	return h[:n:n]
}

// Last is the position of seq, if it is at or after the first one known.
func (h History) Last(seq uint64) cluster.Position {
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].First <= seq {
			return cluster.Position{Epoch: h[i].Epoch, Gen: h[i].Gen, Seq: seq}
		}
	}
	return cluster.Position{Seq: seq}
}

// end is the last sequence of turn i, where the whole ends at last.
func (h History) end(i int, last uint64) uint64 {
	if i+1 < len(h) {
		return h[i+1].First - 1
	}
	return last
}

// Fork is the last sequence up to which two copies hold the same records: a ends at aLast, b at bLast. ok is false when they have no
// turn in common.
func Fork(a History, aLast uint64, b History, bLast uint64) (seq uint64, ok bool) {
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i].Epoch == b[j].Epoch && a[i].Gen == b[j].Gen && a[i].First == b[j].First {
				return min(a.end(i, aLast), b.end(j, bLast)), true
			}
		}
	}
	return 0, false
}

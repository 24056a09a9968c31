package raft

import (
	"errors"
	"net"
	"os"
	"time"

	hraft "github.com/hashicorp/raft"
)

// transport repeats a call whose connection turned out to be dead. hashicorp/raft keeps connections in a pool and learns that one was
// closed only by using it; it then takes the call for lost, and an election in which the only other voter's connection was
// such a one is repeated only after a whole election time-out. All of these calls may arrive twice without harm.
type transport struct {
	*hraft.NetworkTransport
	pool int // how many dead connections there may be in a row
}

// atOnce is how quickly a call fails whose connection is dead. A call that failed later has waited for an answer, and is not repeated.
const atOnce = 20 * time.Millisecond

func (t transport) again(call func() error) error {
	for tries := 0; ; tries++ {
		began := time.Now()
		err := call()
		if err == nil || tries >= t.pool || time.Since(began) > atOnce || errors.Is(err, os.ErrDeadlineExceeded) || isDial(err) {
			return err
		}
	}
}

// isDial says that there was no connection at all.
func isDial(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// RequestVote asks for a vote.
func (t transport) RequestVote(id hraft.ServerID, to hraft.ServerAddress, q *hraft.RequestVoteRequest, a *hraft.RequestVoteResponse) error {
	return t.again(func() error { return t.NetworkTransport.RequestVote(id, to, q, a) })
}

// RequestPreVote asks whether a vote would be given.
func (t transport) RequestPreVote(id hraft.ServerID, to hraft.ServerAddress, q *hraft.RequestPreVoteRequest, a *hraft.RequestPreVoteResponse) error {
	return t.again(func() error { return t.NetworkTransport.RequestPreVote(id, to, q, a) })
}

// AppendEntries sends entries, or a heartbeat.
func (t transport) AppendEntries(id hraft.ServerID, to hraft.ServerAddress, q *hraft.AppendEntriesRequest, a *hraft.AppendEntriesResponse) error {
	return t.again(func() error { return t.NetworkTransport.AppendEntries(id, to, q, a) })
}

// TimeoutNow makes a member a candidate.
func (t transport) TimeoutNow(id hraft.ServerID, to hraft.ServerAddress, q *hraft.TimeoutNowRequest, a *hraft.TimeoutNowResponse) error {
	return t.again(func() error { return t.NetworkTransport.TimeoutNow(id, to, q, a) })
}

var (
	_ hraft.WithPreVote = transport{}
	_ hraft.WithClose   = transport{}
)

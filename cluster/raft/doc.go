// Package raft is a thin shell round hashicorp/raft and raft-boltdb: it keeps the log that the replicated state machine
// is fed from, and it keeps a slow or broken disk from doing harm.
//
// What it never does: it does not decide who is active. Leadership here is only the right to order commands; a leader
// may be stale, and two members may call themselves leader for some 150 ms after a Kick. Whoever is active holds a
// lease that the voters promised (cluster/lease). So neither State, nor Leader, nor a successful Barrier may be used as
// a fence.
//
// # Why a hung disk does no harm
//
// hashicorp/raft sends heartbeats from goroutines of their own, so a leader whose disk hangs stays leader and commits
// nothing (hashicorp/raft issues 503, 614 and 666). All writes therefore go through a store with a deadline. When a
// write is late, the store refuses every further write, the transport is closed (no votes, no log, no heartbeats) and
// the whole Raft instance is thrown away. A late write may still reach the disk afterwards; that is why the instance
// cannot simply go on: its memory would differ from the log on disk. A new instance is built from the disk once all
// late writes have ended and two probe writes in a row were quick. The state machine is not rebuilt: committed entries
// never change, so the new instance skips what has been applied already, and takes no snapshot before it has caught up.
//
// A write or read that ends in an error is different: after a failed fsync nothing is known about the file. The store
// then refuses everything, OnFatal is called, and Run returns the error. ENOSPC alone gets one second try, with the
// ballast file given up first.
//
// What is on disk carries checksums (log entries, votes, terms, identity, snapshots); bbolt itself has them only for its
// two meta pages. Open reads the whole file once and names the first damaged thing instead of running on it.
//
// # What callers must do
//
// Give a Stream that reaches members by ServerID over authenticated connections: anybody who can speak to it can depose
// leaders. Never open an empty directory under a ServerID that was used before: an empty voter votes for anybody. End
// the process when OnFatal is called. Call the methods of FSM implementations from nowhere else. Treat
// ErrUnknownOutcome as what it says: read the state machine before acting again (commands are compare-and-set).
package raft

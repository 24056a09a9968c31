// Package model holds an explicit-state model of the lease, the lock and the data rules, as a Go test over the very code that runs in the
// field: the votes are answered by lease.Voter, the deadlines are lease.Holder's, the promises are collected by lease.Coordinator, and the log is
// applied by lock.Service and lock.Group. It has no product code.
//
// The model explores every order of events within stated bounds (how many epochs, restarts and log entries of lag) and checks after each
// of them that at most one member's gates are open, that no epoch is granted twice, and that every acknowledged operation is at
// the holder and at every member in sync. The rules of docs/protocol.md, section 10, are each broken on purpose, and the model must find a
// counter-example: a model that finds nothing there would prove nothing elsewhere.
//
// What stands for what:
//
//   - Time goes in ticks of 50 ms. A lease is one to three ticks; the wait of a voter is what cluster.Wait says, so that the margin and the drift count.
//   - Drift: the clock by which a member judges its own lease runs 1 % slow, and the one by which it judges a promise runs 1 % fast, at every
//     member at once. That contains every drift within the bound: a holder's clock that is not slow only ends the lease sooner, which it may do at any time
//     in the model, and a voter's that is not fast only promises later, which it may do as well.
//   - A message once sent may come at any later time, many times or never; of several renewals of the same epoch only the youngest is kept,
//     because an older one extends less. A command once proposed may be committed as long as the log would accept it, whatever its proposer has done since.
//   - A crash leaves the gates as they were last set: they close by their deadline. A restart shuts them first. A frozen daemon is one that does nothing.
//   - Each member applies the log at its own pace, within the bound of lag. Any member may coordinate at any time, with any promise that was ever given.
//
// Callers: none. HANODE_MODEL=deep explores further; -short less.
package model

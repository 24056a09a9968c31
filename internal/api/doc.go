// Package api is the contract between hanode's daemon and those who talk to it: the types that `--json` prints, the
// errors and their exit statuses, the interface that the daemon implements (Backend), and a server and a client that
// carry it over a Unix socket or over a connection between two members.
//
// It decides nothing and keeps no state: every answer is the Backend's. It never lets anybody in by itself either: on
// the Unix socket the kernel says who asks (SO_PEERCRED, SO_PEERGROUPS), and only root and the members of one group may
// ask anything; on a member's connection the caller of ServeMembers says who the peer is.
//
// Why an operator can rely on it: keys are only ever added; a request with an unknown key is refused instead of being
// half understood (a newer client's "plan": true must not be carried out by an older daemon); every request body is at
// most MaxRequest bytes and must arrive within a time limit; every write to a client has a deadline, so that nobody who
// stops reading can hold an order back.
//
// Callers must: fill every contract key of Status (lists may be nil, they are printed as []), return *Error for whatever
// an operator can act on, and treat the context's end as the end of the order's patience, not as its undoing.
package api

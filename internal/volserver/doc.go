// Package volserver is the process that holds one service's volumes on one node, and the daemon's end of it.
//
// One process per service with data, in either role: a process that uses its own FUSE mount can deadlock the Go runtime, and one service's crash is
// its own. It owns the service's journal, trees, mounts and stream connections; it is started as standby, turned into the active in place (Lead), and
// ends with its tenure (Fence): after that a new one is started as standby.
//
// It decides nothing. The daemon tells it what the log says (Facts); it tells the daemon what it sees (Events), and the core proposes. What it may
// do at any moment stands on the deadline page, which it reads for each request: at 60 % of a lease without a renewal it holds new writes, at the
// deadline it answers EIO, whatever has become of the daemon. When the daemon's end of the socket closes, it fences itself and exits.
//
// Messages are packets of a SOCK_SEQPACKET pair, JSON, at most 64 KiB; a longer one comes as a sealed memory file. Descriptors (the deadline page,
// connections) travel with them by SCM_RIGHTS. A request has a number, and one answer with the same number.
package volserver

// Package lab shows on one machine, to anybody, what hanode promises: it builds hosts from namespaces, runs a real
// cluster on them with a real service on a VIP, breaks things one by one and measures from a client what that cost.
// Demo is the tour with a verdict, Bench the measurement of every fault many times, beside the peers if wanted.
//
// The binaries under test are black boxes: everything is ordered and asked by the commands that operators use
// (hanode.go has them all), and judged from outside, by clients (package probe). Hosts, networks and faults are package
// world. The lab never touches the machine's own network and leaves nothing behind.
package lab

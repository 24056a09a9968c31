// Package gate is how a node's kernel stops serving when the lease runs out, whatever has become of the daemon: layer
// G2 of the protocol. Every address of a service (a VIP) is known to the gate for as long as it is in the spec, and
// each service has a deadline on CLOCK_BOOTTIME. From the deadline on, and before a first deadline was given, the
// kernel drops
//
//   - what comes in through any interface, lo included, addressed to the VIP (IPv4, IPv6), and
//   - what goes out through any interface and speaks as the VIP: IPv4 and IPv6 with that source, ARP with that sender,
//     neighbour advertisements for that target.
//
// Both together, and not "VIP as source or destination, either way", because a closed node must stay a good client: its
// own processes reach the VIP on the active node, it learns the new place of the VIP from announcements, and it may
// probe whether somebody else holds the address before it claims it. A server needs both directions, or at least the
// outgoing one to answer; a claim needs the outgoing one.
//
// # Forms
//
//   - tcx (kernel 6.6): eBPF programs at the head of the tcx hooks of every interface.
//   - clsact (kernel 5.8): the same programs as direct-action filters.
//   - nft: nftables sets with timeouts, in the families inet and arp, which have no interface to follow. Time-outs are
//     relative and counted in jiffies, which stand still in suspend; a daemon stopped between reading the clock and
//     the system call opens the set late, for as long as it takes it to read the clock again and shut. Therefore
//     refused where Config.Fastest is set.
//
// Form "auto" takes the first one that passes its test here. Where none does, Open returns an error with the reason of
// each: the node refuses to arm.
//
// # Why it is correct
//
// The deadline is absolute and the kernel compares it with its own clock for each packet: nobody has to run for the gate
// to close. An eBPF program is attached to the interface itself (BPF_PROG_ATTACH), not by a link: a link lives as long as
// a file descriptor or a pin, and a pin lives as long as some mount of its bpffs, so a daemon with a mount namespace of
// its own (PrivateMounts=, a container, ip netns exec) or a removed state directory would open the gate. The attachment
// lives until it is detached or its interface goes. The same holds for filters and tables. So nothing of the gate is on
// disk, and a new incarnation finds what the former one left by name in the kernel: it closes that first, attaches its
// own closed programs with the same addresses, and only then removes the old ones. The VIP is at no moment ungated.
//
// In a time namespace the daemon's CLOCK_BOOTTIME differs from the kernel's. The difference is measured with a program
// (three readings, equal to 1 ms, or Open refuses), rounded to the early side and added to each deadline.
//
// # What it never does
//
// It never removes a VIP on its own, never opens one without Refresh, and never extends a deadline by itself.
//
// # Limits
//
// Not seen by it: what a program that was attached later in front of it lets pass or redirects; an address that is
// translated (DNAT) to the VIP on this very host (form nft does see that); AF_XDP; packet sockets with
// PACKET_QDISC_BYPASS, or in form nft any claim by ARP that a packet socket sends; more than three VLAN tags in one frame;
// the time between the birth of an interface and its event (a few ms; none for nft); a paused virtual machine. Whoever
// detaches the programs or flushes the ruleset opens the gate: Run looks twice a second, puts it back and says so; in
// form nft so does the next Refresh. A closed node also drops what it would only forward to the VIP, or from it.
// 64-bit machines: a deadline is one atomic word.
//
// # What callers must do
//
// Call SetVIPs before the address is put on an interface and SetVIPs(svc, nil) after it is gone; keep Run running; call
// Refresh with deadlines from one lease core in the order in which it decided; after the spec is declared once, call
// ForgetStrangers. The namespace is that of the calling thread: the process has to live in one network namespace.
package gate

package gate

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// direction is the hook of an interface: what comes in from it, what goes out to it.
type direction uint8

const (
	ingress direction = iota
	egress
)

// framing says where the network header of a packet is found.
type framing uint8

const (
	ethernet framing = iota // after the Ethernet header and up to maxTags VLAN tags: Ethernet devices and lo
	bare                    // where the kernel says: tun, wireguard, tunnels, ppp
)

// maxTags is how many VLAN tags within the frame are stepped over; one more may be in the packet's metadata.
const maxTags = 3

// licence is what the kernel is told; nothing that the programs call needs a GPL-compatible one.
const licence = "Apache-2.0"

// Verdicts. -1 is TCX_NEXT (include/uapi/linux/bpf.h) and TC_ACT_UNSPEC (pkt_cls.h): ask the next program; 2 is
// TCX_DROP and TC_ACT_SHOT.
const (
	verdictNext = -1
	verdictDrop = 2
)

// Indexes of the counters.
const (
	countIPv4 = iota
	countARP
	countIPv6
	countND
	countPassed
	counters
)

// counterNames are the keys of Stats.
var counterNames = [counters]string{"dropped_ipv4", "dropped_arp", "dropped_ipv6", "dropped_nd", "passed"}

// Stack of the programs, from the frame pointer.
const (
	stackKey     = -16 // the address, 16 bytes, IPv4 as ::ffff:a.b.c.d
	stackCounter = -20 // index of the counter
	stackSlot    = -24 // index of the deadline
	stackBuf     = -32 // 8 bytes read from the packet
)

// code collects instructions; label names the next one.
type code struct {
	ins     asm.Instructions
	pending string
	framing framing
}

func (c *code) add(ins ...asm.Instruction) {
	if c.pending != "" {
		ins[0] = ins[0].WithSymbol(c.pending)
		c.pending = ""
	}
	c.ins = append(c.ins, ins...)
}

func (c *code) label(name string) { c.pending = name }

// Registers: R6 context, R7 offset of the network header, R8 and R9 scratch that survives calls.

// load copies n bytes at the network header + off to the stack. A packet too short for that goes to short.
func (c *code) load(off int32, to int32, n int32, short string) {
	c.add(asm.Mov.Reg(asm.R2, asm.R7), asm.Add.Imm(asm.R2, off))
	c.loadAtR2(to, n, short)
}

func (c *code) loadAtR2(to int32, n int32, short string) {
	c.add(
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, to),
		asm.Mov.Imm(asm.R4, n),
	)
	if c.framing == bare {
		const startOfNetworkHeader = 1 // BPF_HDR_START_NET
		c.add(asm.Mov.Imm(asm.R5, startOfNetworkHeader), asm.FnSkbLoadBytesRelative.Call())
	} else {
		c.add(asm.FnSkbLoadBytes.Call())
	}
	c.add(asm.JNE.Imm(asm.R0, 0, short))
}

// key4 prepares the key for an IPv4 address, which goes to stackKey+12.
func (c *code) key4() {
	c.add(
		asm.StoreImm(asm.RFP, stackKey, 0, asm.Word),
		asm.StoreImm(asm.RFP, stackKey+4, 0, asm.Word),
		asm.StoreImm(asm.RFP, stackKey+8, 0, asm.Word),
		asm.StoreImm(asm.RFP, stackKey+10, 0xffff, asm.Half),
	)
}

// check drops the packet when the address in the key is known and its deadline is over. Unknown: goes to unknown.
// Open: goes to open.
func (c *code) check(m *maps, counter int64, unknown, open string) {
	c.add(
		asm.StoreImm(asm.RFP, stackCounter, counter, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.LoadMapPtr(asm.R1, m.vips.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, unknown),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.Word),
		asm.StoreMem(asm.RFP, stackSlot, asm.R1, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackSlot),
		asm.LoadMapPtr(asm.R1, m.deadlines.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		asm.LoadMem(asm.R9, asm.R0, 0, asm.DWord),
		asm.FnKtimeGetBootNs.Call(),
		asm.JGE.Reg(asm.R0, asm.R9, "drop"),
		asm.Ja.Label(open),
	)
}

// finish counts under the index at stackCounter and returns the verdict.
func (c *code) finish(m *maps, name string, verdict int32) {
	c.label(name)
	c.add(
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackCounter),
		asm.LoadMapPtr(asm.R1, m.counters.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, name+"-uncounted"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
	)
	c.label(name + "-uncounted")
	c.add(asm.Mov.Imm(asm.R0, verdict), asm.Return())
}

// findNetworkHeader leaves the ethertype in R8 (host order) and the offset of the network header in R7.
func (c *code) findNetworkHeader() {
	if c.framing == bare {
		const protocol = 16 // offset in struct __sk_buff
		c.add(
			asm.LoadMem(asm.R8, asm.R6, protocol, asm.Word),
			asm.HostTo(asm.BE, asm.R8, asm.Half),
			asm.Mov.Imm(asm.R7, 0),
		)
		return
	}
	const header = 14
	c.add(asm.Mov.Imm(asm.R7, header))
	for tag := range maxTags + 1 {
		c.load(-2, stackBuf, 2, "next")
		c.add(asm.LoadMem(asm.R8, asm.RFP, stackBuf, asm.Half), asm.HostTo(asm.BE, asm.R8, asm.Half))
		if tag == maxTags {
			return
		}
		more := fmt.Sprintf("tag-%d", tag+1)
		c.add(
			asm.JEq.Imm(asm.R8, 0x8100, more), // IEEE 802.1Q
			asm.JEq.Imm(asm.R8, 0x88a8, more), // 802.1ad
			asm.JEq.Imm(asm.R8, 0x9100, more), // before 802.1ad
			asm.Ja.Label("network"),
		)
		c.label(more)
		c.add(asm.Add.Imm(asm.R7, 4))
	}
}

// assemble writes one program. Only the hook and the framing differ; the maps are common to all.
func assemble(m *maps, dir direction, fr framing) asm.Instructions {
	c := &code{framing: fr}
	c.add(asm.Mov.Reg(asm.R6, asm.R1))
	c.findNetworkHeader()
	c.label("network")
	c.add(asm.JEq.Imm(asm.R8, 0x0800, "ipv4"), asm.JEq.Imm(asm.R8, 0x86dd, "ipv6"))
	if dir == egress {
		c.add(asm.JEq.Imm(asm.R8, 0x0806, "arp"))
	}
	c.add(asm.Ja.Label("next"))

	address4, address6 := int32(16), int32(24) // destination (RFC 791, RFC 8200)
	if dir == egress {
		address4, address6 = 12, 8 // source
	}
	c.label("ipv4")
	c.key4()
	c.load(address4, stackKey+12, 4, "next")
	c.check(m, countIPv4, "next", "passed")
	if dir == egress {
		c.arpSender(m)
	}
	c.label("ipv6")
	if dir == egress {
		c.advertisedTarget(m)
		c.label("address6")
	}
	c.load(address6, stackKey, 16, "next")
	c.check(m, countIPv6, "next", "passed")

	c.label("passed")
	c.add(asm.StoreImm(asm.RFP, stackCounter, countPassed, asm.Word))
	c.finish(m, "count", verdictNext)
	c.finish(m, "drop", verdictDrop)
	c.label("next")
	c.add(asm.Mov.Imm(asm.R0, verdictNext), asm.Return())
	return c.ins
}

// arpSender checks the sender of any ARP packet for IPv4, with hardware addresses of any length (RFC 826).
func (c *code) arpSender(m *maps) {
	c.label("arp")
	c.load(2, stackBuf, 4, "next")
	c.add(
		asm.LoadMem(asm.R8, asm.RFP, stackBuf, asm.Half),
		asm.HostTo(asm.BE, asm.R8, asm.Half),
		asm.JNE.Imm(asm.R8, 0x0800, "next"),
		asm.LoadMem(asm.R8, asm.RFP, stackBuf+3, asm.Byte),
		asm.JNE.Imm(asm.R8, 4, "next"),
		asm.LoadMem(asm.R9, asm.RFP, stackBuf+2, asm.Byte),
	)
	c.key4()
	c.add(asm.Mov.Reg(asm.R2, asm.R7), asm.Add.Imm(asm.R2, 8), asm.Add.Reg(asm.R2, asm.R9))
	c.loadAtR2(stackKey+12, 4, "next")
	c.check(m, countARP, "next", "passed")
}

// advertisedTarget checks the target of a neighbour advertisement (RFC 4861, 4.4); then the source is looked at as in
// any packet.
func (c *code) advertisedTarget(m *maps) {
	c.load(6, stackBuf, 1, "next")
	c.add(asm.LoadMem(asm.R8, asm.RFP, stackBuf, asm.Byte), asm.JNE.Imm(asm.R8, 58, "address6"))
	c.load(40, stackBuf, 1, "address6")
	c.add(asm.LoadMem(asm.R8, asm.RFP, stackBuf, asm.Byte), asm.JNE.Imm(asm.R8, 136, "address6"))
	c.load(48, stackKey, 16, "address6")
	c.check(m, countND, "address6", "address6")
}

// programs are the four that the gate attaches.
type programs [2][2]*ebpf.Program // by direction and framing

func loadPrograms(tag string, m *maps) (*programs, error) {
	p := new(programs)
	for _, dir := range []direction{ingress, egress} {
		for _, fr := range []framing{ethernet, bare} {
			prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
				Name: tag + "_" + string("ie"[dir]) + string("eb"[fr]), Type: ebpf.SchedCLS, License: licence,
				Instructions: assemble(m, dir, fr),
			})
			if err != nil {
				p.close()
				return nil, fmt.Errorf("load the gate's program: %w", err)
			}
			p[dir][fr] = prog
		}
	}
	return p, nil
}

func (p *programs) close() {
	for _, byFraming := range p {
		for _, prog := range byFraming {
			if prog != nil {
				prog.Close()
			}
		}
	}
}

// ids of the four, to tell them from a former incarnation's.
func (p *programs) ids() (map[ebpf.ProgramID]bool, error) {
	out := make(map[ebpf.ProgramID]bool)
	for _, byFraming := range p {
		for _, prog := range byFraming {
			info, err := prog.Info()
			if err != nil {
				return nil, fmt.Errorf("ask for a program's number: %w", err)
			}
			id, ok := info.ID()
			if !ok {
				return nil, fmt.Errorf("the kernel numbers no programs (needs 4.13)")
			}
			out[id] = true
		}
	}
	return out, nil
}

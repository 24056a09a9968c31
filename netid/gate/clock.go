package gate

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// boottime reads CLOCK_BOOTTIME as this process sees it (clock_gettime(2)).
func boottime() cluster.Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("read CLOCK_BOOTTIME: %v", err)) // only for a clock that the kernel does not have
	}
	return cluster.Instant(ts.Nano())
}

const (
	clockReadings  = 3
	clockTolerance = time.Millisecond
	clockTries     = 20 // per reading: one that was interrupted for longer than the tolerance says nothing
)

// clockOffset measures what has to be added to CLOCK_BOOTTIME of this process to get the clock of eBPF programs. It is
// 0 (less the duration of a reading) except in a time namespace (time_namespaces(7)). It is never too large, so a
// deadline with it added is never too late.
func clockOffset(read func() (cluster.Instant, error)) (time.Duration, error) {
	var lo, hi time.Duration
	for n := range clockReadings {
		d, err := oneOffset(read)
		if err != nil {
			return 0, err
		}
		if n == 0 || d < lo {
			lo = d
		}
		if n == 0 || d > hi {
			hi = d
		}
	}
	if hi-lo > clockTolerance {
		return 0, fmt.Errorf("the kernel's clock and CLOCK_BOOTTIME drift apart: %v to %v in %d readings; their difference must be constant to %v",
			lo, hi, clockReadings, clockTolerance)
	}
	return hi, nil
}

// oneOffset returns the kernel's reading less the later of two readings round it: at most the true offset.
func oneOffset(read func() (cluster.Instant, error)) (time.Duration, error) {
	for range clockTries {
		before := boottime()
		kernel, err := read()
		after := boottime()
		if err != nil {
			return 0, err
		}
		if after.Sub(before) < clockTolerance/2 {
			return kernel.Sub(after), nil
		}
	}
	return 0, fmt.Errorf("no reading of the kernel's clock took less than %v in %d tries: the machine is too busy to compare clocks; start again",
		clockTolerance/2, clockTries)
}

// kernelClock is a program that only reads the clock which the gate's programs read.
type kernelClock struct {
	cell *ebpf.Map
	prog *ebpf.Program
}

func newKernelClock() (*kernelClock, error) {
	cell, err := ebpf.NewMap(&ebpf.MapSpec{Name: "hg1_clock", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return nil, fmt.Errorf("make the map of the clock program: %w", err)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "hg1_clock", Type: ebpf.SchedCLS, License: licence, Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, cell.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R6, asm.R0),
		asm.FnKtimeGetBootNs.Call(),
		asm.StoreMem(asm.R6, 0, asm.R0, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return(),
	}})
	if err != nil {
		cell.Close()
		return nil, fmt.Errorf("load the clock program (bpf_ktime_get_boot_ns needs kernel 5.8): %w", err)
	}
	return &kernelClock{cell, prog}, nil
}

func (k *kernelClock) read() (cluster.Instant, error) {
	if _, err := k.prog.Run(&ebpf.RunOptions{Data: make([]byte, 64)}); err != nil {
		return 0, fmt.Errorf("run the clock program: %w", err)
	}
	var ns uint64
	if err := k.cell.Lookup(uint32(0), &ns); err != nil {
		return 0, fmt.Errorf("read the clock program's result: %w", err)
	}
	return cluster.Instant(ns), nil
}

func (k *kernelClock) close() {
	k.prog.Close()
	k.cell.Close()
}

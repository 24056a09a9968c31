// Command volbench measures what a replicated volume costs: local ext4, the file system of a volume without a standby (loopback), the volume in each
// mode with a standby in another network namespace, and GlusterFS replica 2 where it is installed, on the same work in one run, beside the bare bounds of
// network and disks. `make bench-volume` runs it; docs/benchmarks.md has its figures. It is no part of the product: nothing imports it.
//
//	volbench run [--quick] [--out FILE.json] [--systems a,b] [--workloads a,b] [--rounds n]
//	volbench serve --backing DIR --mount DIR        a loopback volume, until it is told to end by SIGTERM
//	volbench node …, echo …, work …                 the processes that run starts
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: volbench run|serve …")
		os.Exit(2)
	}
	var err error
	args := os.Args[2:]
	switch os.Args[1] {
	case "run":
		err = run(args)
	case "serve":
		err = serve(args)
	case "node":
		err = node(args)
	case "echo":
		err = echo(args)
	case "ask":
		err = ask(args)
	case "work":
		err = work(args)
	default:
		err = fmt.Errorf("%s is no command of volbench", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "volbench:", err)
		os.Exit(1)
	}
}

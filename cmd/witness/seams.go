package main

import "github.com/hanode/hanode/internal/witnesscmd"

// funcs wires what the commands do. A nil function says that this build cannot do it.
func funcs() witnesscmd.Funcs {
	return witnesscmd.Funcs{}
}

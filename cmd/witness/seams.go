package main

import (
	"github.com/hanode/hanode/internal/witnesscmd"
	"github.com/hanode/hanode/internal/witnesswire"
)

// funcs wires what the commands do.
func funcs() witnesscmd.Funcs { return witnesswire.Funcs() }

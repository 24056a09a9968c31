package demoapp

import (
	"fmt"
	"strconv"

	"github.com/hanode/hanode/internal/page"
)

// PageVariable names the environment variable with the descriptor of the service's deadline page.
const PageVariable = "HANODE_PAGE_FD"

// PageEpoch returns a source of the epoch that the deadline page shows, nil when fd (the variable's value) is "", for a
// service that runs without hanode.
func PageEpoch(fd string) (func() uint64, error) {
	if fd == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(fd)
	if err != nil {
		return nil, fmt.Errorf("%s=%q is not a number", PageVariable, fd)
	}
	r, err := page.OpenFD(n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", PageVariable, err)
	}
	return func() uint64 { return uint64(r.Load().Epoch) }, nil
}

package agent

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/hanode/hanode/failover/supervise/launch"
)

// The test binary is its own exec step.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == launch.Subcommand {
		fmt.Fprintln(os.Stderr, launch.Child(os.Args[2:]))
		os.Exit(127)
	}
	goleak.VerifyTestMain(m)
}

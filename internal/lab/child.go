package lab

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/hanode/hanode/internal/demoapp"
	"github.com/hanode/hanode/internal/demoapp/postgres"
	"github.com/hanode/hanode/internal/lab/probe"
	"github.com/hanode/hanode/internal/lab/world"
)

// hogCommand keeps all CPUs busy: the fault cpu-load.
const hogCommand = "hog"

// Child runs args as one of the processes that the lab starts of its own program (first processes of hosts, probes,
// the service, load) and returns its exit status; ok is false when args are none of these. The program that embeds the
// lab calls it with the words after Config.Self's before it does anything else.
func Child(args []string, stderr io.Writer) (status int, ok bool) {
	if len(args) == 0 {
		return 0, false
	}
	switch args[0] {
	case world.HostCommand, world.SwitchCommand, world.NothingCommand:
		return world.RunChild(args[0]), true
	case probe.Command:
		return probe.Main(args[1:], stderr), true
	case demoapp.Command:
		return demoapp.Main(args[1:], stderr), true
	case demoapp.LedgerCommand:
		return demoapp.LedgerMain(args[1:], stderr), true
	case demoapp.ClerkCommand:
		return demoapp.ClerkMain(args[1:], stderr), true
	case loadCommand:
		if len(args) != 3 {
			return 2, true
		}
		fmt.Fprintln(stderr, makeLoad(args[1], args[2]))
		return 1, true
	case postgres.ServerCommand:
		return postgres.ServerMain(args[1:], stderr), true
	case postgres.ClientCommand:
		return postgres.ClientMain(args[1:], os.Stdout, stderr), true
	case hogCommand:
		hog(8, time.Minute)
		return 0, true
	}
	return 0, false
}

// hog burns CPU in n threads, for at most d.
func hog(n int, d time.Duration) {
	runtime.GOMAXPROCS(n)
	end := time.Now().Add(d)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for i := 0; i%1024 != 0 || time.Now().Before(end); i++ {
			}
		})
	}
	wg.Wait()
}

func hogCmd(self []string, h *world.Host) world.Cmd {
	return world.Cmd{Argv: append(append([]string(nil), self...), hogCommand), Log: h.Log("hog")}
}

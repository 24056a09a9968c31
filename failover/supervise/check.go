package supervise

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/supervise/launch"
	"github.com/hanode/hanode/internal/cgroup"
)

// Check says whether this node can run a process of the spec: kind and words known, program, user, group and directory
// there, limits possible. It names everything that is wrong. group may be nil: then limits are not checked. A directory
// on a volume may be missing while the volume is not mounted; that is not checked here but at the start.
func Check(spec *cluster.ProcessSpec, group *cgroup.Group) error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("process %q: "+format, append([]any{spec.Name}, args...)...))
	}
	switch {
	case spec.OCF != "":
		bad("ocf = %q is not supported by this version: write start = [argv] and a check with exec", spec.OCF)
	case spec.Systemd != "":
		bad("systemd = %q is not supported by this version: write start = [argv]", spec.Systemd)
	case len(spec.Start) == 0:
		bad("start is missing: give the program and its arguments as a list")
	}
	word := func(key, value string, allowed ...string) {
		if value != "" && !slices.Contains(allowed, value) {
			bad("%s = %q: choose one of %v", key, value, allowed)
		}
	}
	word("ready", spec.Ready, "checks", "started", "notify")
	word("standby", spec.Standby, "cold", "hot")
	if spec.StopSignal != "" && unix.SignalNum("SIG"+spec.StopSignal) == 0 {
		bad("stop_signal = %q: give the name of a signal without SIG, such as TERM, INT or QUIT", spec.StopSignal)
	}
	if spec.FilesMax < 0 || spec.MemoryMax < 0 {
		bad("files_max and memory_max cannot be negative")
	}
	if spec.User != "" || spec.Group != "" {
		if _, err := launch.Lookup(spec.User, spec.Group); err != nil {
			bad("%w", err)
		} else if id, _ := launch.Lookup(spec.User, spec.Group); os.Geteuid() != 0 && int(id.UID) != os.Geteuid() {
			bad("user = %q: the daemon is not root and cannot become another user", spec.User)
		}
	}
	env := launch.BaseEnv(spec.User, spec.Group)
	if p, ok := spec.Env["PATH"]; ok {
		env = append(env, "PATH="+p)
	}
	for key, argv := range map[string][]string{"start": spec.Start, "stop": spec.Stop, "promote": spec.Promote} {
		if len(argv) == 0 {
			continue
		}
		if _, err := launch.LookPath(argv[0], env); err != nil {
			bad("%s: %w", key, err)
		}
	}
	if group != nil && spec.MemoryMax > 0 {
		if err := group.CanLimitMemory(); err != nil {
			bad("memory_max: %w", err)
		}
	}
	return errors.Join(errs...)
}

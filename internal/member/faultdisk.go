package member

import (
	"log/slog"
	"os"
	"strings"
	"time"
)

// FaultDiskEnv names the file by which the lab makes the disk of a Raft log slow: while the file exists, each write of the log is delayed by the
// duration that it contains ("2s"). For the lab only: no operator has a use for it, and the log says loudly that it is set.
const FaultDiskEnv = "HANODE_FAULT_DISK"

// FaultDisk is the Config.Slow that FaultDiskEnv asks for; nil when it is not set, as it should be.
func FaultDisk(log *slog.Logger) func() time.Duration {
	path := os.Getenv(FaultDiskEnv)
	if path == "" {
		return nil
	}
	log.Warn("writes of the Raft log can be delayed from outside: this is for the lab only", FaultDiskEnv, path)
	return func() time.Duration {
		b, err := os.ReadFile(path)
		if err != nil {
			return 0
		}
		d, _ := time.ParseDuration(strings.TrimSpace(string(b))) // a damaged file delays nothing
		return d
	}
}

package agent

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"

	"github.com/hanode/hanode/cluster"
)

// Kinds are the kinds of checks that this version can run.
func Kinds() []string { return []string{"tcp", "http", "exec"} }

// Check says whether this version can run a check of the spec; it names everything that is wrong. Whether the program of
// an exec check is there is not looked at: it may lie on a volume that is not mounted.
func Check(spec cluster.CheckSpec) error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("check %q: "+format, append([]any{spec.Name}, args...)...))
	}
	switch spec.Kind {
	case "tcp":
		if host, port, err := net.SplitHostPort(spec.Target); err != nil || host == "" || port == "" {
			bad("tcp = %q: write host:port, such as 127.0.0.1:5432", spec.Target)
		}
	case "http":
		if u, err := url.Parse(spec.Target); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
			bad("http = %q: write a whole URL, such as http://127.0.0.1:8080/health", spec.Target)
		}
	case "exec":
		if len(spec.Argv) == 0 || spec.Argv[0] == "" {
			bad("exec is empty: give the program and its arguments as a list")
		}
	default:
		bad("%s is not supported by this version: choose one of %v; a program that you write can check anything (exec)", spec.Kind, Kinds())
	}
	if spec.Every <= 0 || spec.Timeout <= 0 {
		bad("every = %v, timeout = %v: choose more than 0", spec.Every, spec.Timeout)
	}
	if spec.Failures < 1 && spec.For <= 0 {
		bad("neither failures nor for is set: choose at least 1 failure, or a time")
	}
	for _, f := range spec.From {
		if !slices.Contains([]string{"active", "standby", "witness"}, f) {
			bad("from = %q: choose active, standby or witness", f)
		}
	}
	return errors.Join(errs...)
}

package agent

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hanode/hanode/cluster"
)

// Ready says whether a service has become ready by its checks: each check of specs that runs in role has succeeded once
// and is not failed now (healthy = "all"), or one of them ("any"), or N. Without checks in that role it is ready. st holds
// the last Status of each check by its name; one that is missing has not run yet. Ready and Failed are never both true.
func Ready(st map[string]Status, specs []cluster.CheckSpec, healthy, role string) bool {
	good, all := 0, 0
	for i := range specs {
		if slices.Contains(specs[i].From, role) {
			all++
			if s := st[specs[i].Name]; s.LastOK != 0 && s.State != StateFailed {
				good++
			}
		}
	}
	return good >= need(healthy, all)
}

// Failed says whether the checks of specs that run in role condemn the service, and why: more of them are failed than
// healthy ("all", "any", N) leaves room for. Callers act on it only once the service is no longer starting.
func Failed(st map[string]Status, specs []cluster.CheckSpec, healthy, role string) (bool, string) {
	all := 0
	var why []string
	for i := range specs {
		if !slices.Contains(specs[i].From, role) {
			continue
		}
		all++
		if s := st[specs[i].Name]; s.State == StateFailed {
			why = append(why, fmt.Sprintf("check %s: %s", s.Name, s.Output))
		}
	}
	n := need(healthy, all)
	if all-len(why) >= n {
		return false, ""
	}
	text := strings.Join(why[:min(len(why), 3)], "; ")
	if len(why) > 3 {
		text += fmt.Sprintf("; and %d more", len(why)-3)
	}
	if n < all {
		text = fmt.Sprintf("%d of %d checks succeed, healthy = %s: %s", all-len(why), all, healthy, text)
	}
	return true, text
}

// need is how many of all checks must succeed. What is not understood counts as "all".
func need(healthy string, all int) int {
	if healthy == "any" {
		return min(1, all)
	}
	if n, err := strconv.Atoi(healthy); err == nil && n > 0 {
		return min(n, all)
	}
	return all
}

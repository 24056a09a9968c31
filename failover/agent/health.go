package agent

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/hanode/hanode/cluster"
)

// Ready says whether enough checks of the active are ok, by the service's `healthy`: all, any, or a number.
func Ready(all map[string]Status, specs []cluster.CheckSpec, healthy string) bool {
	ok, n := 0, 0
	for i := range specs {
		if runsIn(&specs[i], "active") {
			n++
			if all[specs[i].Name].State == StateOK {
				ok++
			}
		}
	}
	return ok >= needed(n, healthy)
}

// Failed says whether so many checks of the active are condemned that `healthy` cannot be met, and why in one sentence.
func Failed(all map[string]Status, specs []cluster.CheckSpec, healthy string) (bool, string) {
	var why []string
	n := 0
	for i := range specs {
		if !runsIn(&specs[i], "active") {
			continue
		}
		n++
		if c := all[specs[i].Name]; c.State == StateFailed {
			why = append(why, fmt.Sprintf("check %s failed %d times: %s", c.Name, c.Failures, c.Output))
		}
	}
	need := needed(n, healthy)
	if n-len(why) >= need {
		return false, ""
	}
	sentence := strings.Join(why, "; ")
	if need < n {
		sentence = fmt.Sprintf("%d of %d checks are left, %d needed: %s", n-len(why), n, need, sentence)
	}
	return true, sentence
}

// needed is how many of n checks must be ok. An unknown word counts as all: the spec has been checked before.
func needed(n int, healthy string) int {
	switch k, err := strconv.Atoi(healthy); {
	case healthy == "any":
		return min(1, n)
	case err == nil:
		return min(max(k, 0), n)
	}
	return n
}

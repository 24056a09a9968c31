package link_test

import (
	"testing"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link/linktest"
)

func TestContractOnSockets(t *testing.T) {
	linktest.Contract(t, func(t *testing.T, names ...string) []linktest.Mesh {
		w := newWorld(t)
		var hosts []*host
		var out []linktest.Mesh
		for _, name := range names {
			h := w.start(w.person(name, cluster.RoleNode), twoLinks)
			hosts, out = append(hosts, h), append(out, h.Mesh)
		}
		introduce(hosts...)
		return out
	})
}

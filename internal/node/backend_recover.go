package node

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
)

// quorumLostFor is how long a majority must not have been heard before the cluster may be forked: a network or a machine that comes back is the better way.
const quorumLostFor = 60 * time.Second

// Recover forks the cluster to this node. If another member lives, two clusters serve, and what one of them writes will be set aside: that is the operator's risk, who has
// said that all others are off. What this node itself can see of that it checks.
func (b backend) Recover(_ context.Context, r api.RecoverRequest, _ api.Progress) (*api.Outcome, error) {
	const what = "recover refused"
	var refusal error
	var others, missing []string
	var age time.Duration
	var services []string
	now := b.n.m.Now()
	err := b.n.m.On(func(c *core.Core) {
		st := c.State()
		self := st.Member(c.Self())
		if self == nil || r.Keep != self.Name || r.Via != "" {
			refusal = api.Refusal(what, "it can only keep the node on which it is ordered, which is "+b.n.dir.Identity.Name, "run it on "+r.Keep+", with --keep "+r.Keep)
			return
		}
		lost := c.QuorumLost(now)
		heard, total, needed, ok := c.Quorum()
		switch {
		case ok:
			refusal = api.Refusal(what, fmt.Sprintf("there is a quorum (%d of %d are heard, %d needed): the group decides", heard, total, needed),
				"hanode status; to move a service that is not in sync: hanode force SERVICE --to NODE")
			return
		case lost < quorumLostFor:
			refusal = api.Refusal(what, fmt.Sprintf("the quorum is lost for only %v as seen from here; a member that returns within %v is the better way", lost.Round(time.Second), quorumLostFor),
				fmt.Sprintf("wait %v, and try to bring the others back meanwhile", (quorumLostFor-lost).Round(time.Second)))
			return
		}
		for i := range st.Members {
			m := &st.Members[i]
			if m.Removed || m.No == c.Self() {
				continue
			}
			others = append(others, m.Name)
			if c.Alive(m.No) {
				refusal = api.Refusal(what, m.Name+" is heard: it is not off", "switch it off, or repair the members that are needed for a quorum")
				return
			}
			if !slices.Contains(r.VerifiedOff, m.Name) {
				missing = append(missing, m.Name)
			}
		}
		for _, name := range r.VerifiedOff {
			if !slices.Contains(others, name) {
				refusal = api.Errorf(api.CodeUsage, "%s is no other member: the others are %s", name, strings.Join(others, ", "))
				return
			}
		}
		if st.LogTime != 0 {
			age = time.Duration(time.Now().UnixMilli()-st.LogTime) * time.Millisecond
		}
		for i := range st.Services {
			s := &st.Services[i]
			held := "last held by " + st.MemberName(s.Lock.Holder.Node)
			if s.Lock.Data {
				held += map[bool]string{true: ", in sync here", false: ", NOT in sync here"}[s.Lock.InSync.Has(c.Self())]
			}
			services = append(services, s.Name+" ("+held+")")
		}
	})
	if err == nil {
		err = refusal
	}
	if err != nil {
		return nil, err
	}
	plan := &api.Plan{Order: "recover: fork the cluster to " + r.Keep, VerifiedOff: others,
		Risk: api.Risk{Unknown: true, AgeMs: api.Ms(age), Text: fmt.Sprintf("the newest thing that this member knows is %v old; services: %s. What the others wrote since is set aside. If one of them still runs, two clusters serve",
			age.Round(time.Second), strings.Join(services, ", "))},
		Steps: []api.Step{{N: 1, Of: 3, Text: "end this daemon's tenure"}, {N: 2, Of: 3, Text: "make a new cluster of " + r.Keep + " alone, all epochs raised by 2^32"},
			{N: 3, Of: 3, Text: "start as its only member; " + strings.Join(others, ", ") + " join anew, as new members"}}}
	if r.Plan {
		return &api.Outcome{Plan: plan, OutageMs: api.Ms(-time.Millisecond), ReadyMs: api.Ms(-time.Millisecond)}, nil
	}
	if len(missing) > 0 {
		return nil, api.Refusal(what, "nobody has said that "+strings.Join(missing, ", ")+" is off", "make sure that it is, then: hanode recover --keep "+r.Keep+" --i-have-verified-off="+strings.Join(others, ","))
	}
	id, err := b.n.dir.OrderRecover(others, r.Who, r.Reason)
	if err != nil {
		return nil, api.Errorf(api.CodeFailed, "make the order durable: %v", err)
	}
	out := &api.Outcome{To: r.Keep, OutageMs: api.Ms(-time.Millisecond), ReadyMs: api.Ms(-time.Millisecond),
		Text: fmt.Sprintf("the daemon starts anew as the only member of cluster %s", id), Next: b.rejoin(others)}
	b.n.again.Store(true)
	b.n.leave()
	return out, nil
}

// rejoin is how each old member comes back: its state directory is put aside, never used again; its data stay where they are and are compared.
func (b backend) rejoin(others []string) []string {
	next := []string{"hanode status"}
	_ = b.n.m.On(func(c *core.Core) {
		for _, name := range others {
			m := c.State().MemberByName(name)
			if m == nil {
				continue
			}
			role, dir, join := "node", "/var/lib/hanode", "hanode join"
			if m.Role == cluster.RoleWitness {
				role, dir, join = "witness", "/var/lib/hanode-witness", "hanode-witness join"
			}
			line := fmt.Sprintf("hanode token create --role %s   # then on %s: mv %s %s.before-recover && %s --token TOKEN --name %s --advertise %s", role, name, dir, dir, join, name, m.Addrs[0])
			for _, l := range m.Addrs[1:] {
				line += " --link " + l
			}
			next = append(next, line)
		}
	})
	return next
}

// startAgain replaces this process by a fresh one of the same kind: what was locked in memory, opened and started belongs to the old cluster.
func startAgain() error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(exe, os.Args, os.Environ())
}

package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/cluster/spec"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/member"
	"github.com/hanode/hanode/netid/vip"
)

// validateTime bounds one node's answer: it asks the network for every new address, which takes 0.6 s.
const validateTime = 8 * time.Second

// validateEverywhere asks each node that is to carry a changed service whether it can, one after the other: two nodes that ask the network for
// one address at the same time might take each other for its owner.
func (b backend) validateEverywhere(ctx context.Context, next *cluster.Spec, compiled []byte, services []string, p api.Progress) []spec.Problem {
	var out []spec.Problem
	var facts []spec.Facts
	for _, name := range nodesOf(next, services) {
		if p != nil {
			p(api.Step{Text: "asking " + name + " whether it can run what is new", State: "running"})
		}
		v, err := b.validateOn(ctx, name, api.ValidateRequest{Compiled: compiled, Services: services})
		if err != nil {
			out = append(out, spec.Problem{Node: name, Where: "node", What: fmt.Sprintf("%s could not be asked whether it can run it: %v", name, err),
				Remedy: "bring " + name + " back and apply again, or leave it out of nodes = [...]"})
			continue
		}
		for _, o := range v.Problems {
			out = append(out, spec.Problem{Node: v.Node, Service: o.Service, Where: o.Where, What: o.What, Remedy: o.Remedy})
		}
		facts = append(facts, spec.Facts{Node: v.Node, Users: v.Users, Files: v.Files})
	}
	return append(out, spec.Compare(next, facts)...)
}

// unkept says which members cannot keep a profile that the spec names anew. A profile that is in force already is not refused when something else
// changes: that it is not kept is an alarm.
func (n *Node) unkept(next, now *cluster.Spec) []spec.Problem {
	if next.Profile == "auto" || now != nil && now.Profile == next.Profile && now.Lease == next.Lease {
		return nil
	}
	t, err := cluster.Profile(next.Profile)
	if err == nil && next.Lease > 0 {
		t, err = t.WithLease(next.Lease)
	}
	if err != nil {
		return []spec.Problem{{Where: "profile", What: err.Error(), Remedy: "choose another one"}}
	}
	var out []spec.Problem
	members := n.m.Fitness()
	best, _ := member.Fastest(members)
	for _, f := range members {
		if why := member.Unfit(t, f); why != "" {
			out = append(out, spec.Problem{Node: f.Name, Where: "profile", What: why, Remedy: "choose profile " + best + ", which all members can keep, or auto"})
		}
	}
	return out
}

func nodesOf(s *cluster.Spec, services []string) []string {
	var out []string
	for i := range s.Services {
		for _, n := range s.Services[i].Nodes {
			if slices.Contains(services, s.Services[i].Name) && !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}

func (b backend) validateOn(ctx context.Context, name string, r api.ValidateRequest) (*api.Validation, error) {
	ctx, cancel := context.WithTimeout(ctx, validateTime)
	defer cancel()
	if name == b.n.dir.Identity.Name {
		return b.Validate(ctx, r)
	}
	var id cluster.NodeID
	alive := false
	if err := b.n.m.On(func(c *core.Core) {
		if m := c.State().MemberByName(name); m != nil {
			id, alive = m.ID, c.Alive(m.No)
		}
	}); err != nil {
		return nil, err
	}
	if !alive {
		return nil, fmt.Errorf("%s is not heard", name)
	}
	c := api.Forward(name, func(ctx context.Context) (net.Conn, error) { return b.n.m.Dial(ctx, id, link.API) })
	defer c.Close()
	return c.Validate(ctx, r)
}

// Validate says what stands in the way of running the named services of a spec on this node.
func (b backend) Validate(_ context.Context, r api.ValidateRequest) (*api.Validation, error) {
	next, err := cluster.DecodeSpec(r.Compiled)
	if err != nil {
		return nil, api.Errorf(api.CodeUsage, "the spec to look at cannot be read: %v", err)
	}
	next.Services = slices.DeleteFunc(next.Services, func(s cluster.ServiceSpec) bool { return !slices.Contains(r.Services, s.Name) })
	var now *cluster.Spec
	if err := b.n.m.On(func(c *core.Core) { now = c.State().Compiled() }); err != nil {
		return nil, err
	}
	env := b.n.environment()
	out := &api.Validation{Node: env.Name}
	for _, p := range append(spec.Validate(next, env), freshAddresses(next, now, env.Name)...) {
		out.Problems = append(out.Problems, api.Obstacle{Service: p.Service, Where: p.Where, What: p.What, Remedy: p.Remedy})
	}
	f := spec.Gather(next, env)
	out.Users, out.Files = f.Users, f.Files
	return out, nil
}

// environment is this machine as the spec asks about it.
func (n *Node) environment() spec.NodeEnv {
	return spec.NodeEnv{Name: n.dir.Identity.Name, Role: cluster.RoleNode, StateDir: n.dir.Path, LookupUser: lookupUser, LookupGroup: lookupGroup,
		Executable: executable, Interfaces: interfaces, Directory: directory, Mountable: n.mountable, File: digest}
}

// freshAddresses asks the machine and the network about the addresses that the spec in force does not have.
func freshAddresses(next, now *cluster.Spec, self string) []spec.Problem {
	var fresh []vip.Address
	for i := range next.Services {
		s := &next.Services[i]
		if !slices.Contains(s.Nodes, self) {
			continue
		}
		for _, v := range s.VIPs {
			if now == nil || !hasVIP(now, v.Prefix) {
				fresh = append(fresh, vip.Address{Service: cluster.ServiceNo(i + 1), Prefix: v.Prefix, Interface: v.Interface, VirtualMAC: v.MAC == "virtual"})
			}
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	var out []spec.Problem
	for _, err := range vip.Check(fresh) {
		if err != nil {
			out = append(out, spec.Problem{Node: self, Where: "vip", What: err.Error(), Remedy: "change the address or the interface"})
		}
	}
	return out
}

func hasVIP(s *cluster.Spec, p netip.Prefix) bool {
	for i := range s.Services {
		for _, v := range s.Services[i].VIPs {
			if v.Prefix.Addr() == p.Addr() {
				return true
			}
		}
	}
	return false
}

// maxDigest is the largest file that same_files compares.
const maxDigest = 16 << 20

// digest is the SHA-256 of a file.
func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() > maxDigest {
		return "", fmt.Errorf("%s is no regular file of at most %d MiB", path, maxDigest>>20)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, maxDigest)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

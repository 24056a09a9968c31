package spec

import (
	"fmt"
	"net/netip"
	"sort"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"github.com/hanode/hanode/cluster"
)

// Member is somebody who has joined the cluster.
type Member struct {
	Name      string
	Role      cluster.Role
	Site      string
	Addresses []netip.Addr // its own: no VIP may be one of them
}

// references checks what the parts of a spec say of each other and of the members.
func (d *decoder) references(s *cluster.Spec) {
	d.memberBlocks(s)
	if n := len(s.Services); n > maxServices {
		sv := &s.Services[maxServices]
		d.refer(sv, "", fmt.Sprintf("%d services", n), fmt.Sprintf("one cluster carries at most %d", maxServices))
		return
	}
	for i := range s.Services {
		sv := &s.Services[i]
		d.nodes(sv)
		d.run(sv)
		d.checks(sv)
		d.named(s, sv, "requires", sv.Requires)
		d.named(s, sv, "apart", sv.Apart)
	}
	d.circles(s)
	d.apartness(s)
	d.sites(s)
	d.vips(s)
	d.paths(s)
}

func servicePath(sv *cluster.ServiceSpec) string { return "/service/" + sv.Name }

func serviceWhere(sv *cluster.ServiceSpec) string { return "service " + quote(sv.Name) }

// position is where something stands: the first of the paths that is known.
func (d *decoder) position(paths ...string) hcl.Range {
	for _, p := range paths {
		if r, ok := d.pos[p]; ok {
			return r
		}
	}
	return hcl.Range{Start: hcl.InitialPos, End: hcl.InitialPos}
}

// refer notes what is wrong at a path of a service.
func (d *decoder) refer(sv *cluster.ServiceSpec, path, what, remedy string) {
	d.add(d.position(servicePath(sv)+path, servicePath(sv)), serviceWhere(sv), what, remedy)
}

func (d *decoder) member(name string) *Member {
	for i := range d.members {
		if d.members[i].Name == name {
			return &d.members[i]
		}
	}
	return nil
}

func (d *decoder) memberNames(role cluster.Role) []string {
	var out []string
	for _, m := range d.members {
		if m.Role == role {
			out = append(out, m.Name)
		}
	}
	sort.Strings(out)
	return out
}

// joinLine is what makes a name known.
func joinLine(name string, role cluster.Role) string {
	join := "join"
	if role == cluster.RoleWitness {
		join = "witness join"
	}
	return fmt.Sprintf("let it join first: on a member `hanode token create --role %s`, then on %s `hanode %s --token TOKEN --name %s --advertise IP`", role, name, join, name)
}

func (d *decoder) memberBlocks(s *cluster.Spec) {
	check := func(kind string, names map[string]cluster.NodeSpec, role cluster.Role) {
		for _, name := range sortedKeys(names) {
			at, where := d.position("/"+kind+"/"+name), kind+" "+quote(name)
			if _, both := s.Witnesses[name]; both && kind == "node" {
				other := d.position("/witness/" + name)
				if other.Start.Byte > at.Start.Byte {
					at, where = other, "witness "+quote(name)
				}
				d.add(at, where, name+" is a node and a witness", "keep one of the two blocks: a member has one role")
				continue
			}
			m := d.member(name)
			switch {
			case !d.knowsMembers:
			case m == nil:
				d.add(at, where, fmt.Sprintf("%s has not joined", name), joinLine(name, role))
			case m.Role != role:
				d.add(at, where, fmt.Sprintf("%s is a %s", name, m.Role), fmt.Sprintf("write %s %q { ... }", m.Role, name))
			}
		}
	}
	check("node", s.Nodes, cluster.RoleNode)
	check("witness", s.Witnesses, cluster.RoleWitness)
}

// nodes checks the nodes of a service.
func (d *decoder) nodes(sv *cluster.ServiceSpec) {
	known := d.memberNames(cluster.RoleNode)
	for i, n := range sv.Nodes {
		path := "/nodes/" + strconv.Itoa(i)
		m := d.member(n)
		_, witness := d.pos["/witness/"+n]
		switch {
		case m != nil && m.Role == cluster.RoleWitness || m == nil && witness:
			d.refer(sv, path, n+" is a witness: it carries no service", "name nodes only")
		case d.knowsMembers && m == nil:
			remedy := joinLine(n, cluster.RoleNode)
			if near := nearest(n, known); near != "" && len(n) > 1 {
				remedy = fmt.Sprintf("did you mean %q? Otherwise %s", near, remedy)
			} else if len(known) > 0 {
				remedy = "nodes of this cluster: " + strings.Join(known, ", ") + "; or " + remedy
			}
			d.refer(sv, path, n+" has not joined", remedy)
		}
	}
	if len(sv.Nodes) > cluster.MaxMembers {
		d.refer(sv, "/nodes", fmt.Sprintf("%d nodes", len(sv.Nodes)), fmt.Sprintf("a cluster has at most %d members", cluster.MaxMembers))
	}
}

// run checks what run = "everywhere" excludes.
func (d *decoder) run(sv *cluster.ServiceSpec) {
	if sv.Run != "everywhere" {
		return
	}
	say := func(path, what string) {
		d.refer(sv, path, what+" in a service that runs everywhere", `remove it, or write run = "active": without a lease nobody may own it`)
	}
	for _, v := range sv.VIPs {
		say("/vip/"+v.Prefix.String(), "a vip")
	}
	for _, v := range sv.Volumes {
		say("/volume/"+v.Name, "a volume")
	}
	for _, r := range sv.Remotes {
		say("/remote/"+r.Site, "a remote")
	}
	for _, m := range sv.Memories {
		say("/memory/"+m.Name, "a memory region")
	}
	for _, p := range sv.Processes {
		if p.Standby == "hot" {
			say("/process/"+p.Name+"/standby", "a hot standby process")
		}
	}
}

func (d *decoder) checks(sv *cluster.ServiceSpec) {
	if n, err := strconv.Atoi(sv.Healthy); err == nil && n > len(sv.Checks) {
		d.refer(sv, "/healthy", fmt.Sprintf("healthy = %d, but there are %d checks", n, len(sv.Checks)), "add checks, or choose a lower number, all or any")
	}
	for i := range sv.Checks {
		c := &sv.Checks[i]
		if contains(c.From, "witness") && loopback(c.Target) {
			d.refer(sv, "/check/"+c.Name+"/"+c.Kind, "seen from the witness this address is the witness itself", "write an address at which the witness can reach the service, or remove witness from from")
		}
	}
}

// loopback says that the target names the host on which the check runs.
func loopback(target string) bool {
	for _, t := range []string{"127.", "[::1]", "::1", "localhost", "http://127.", "http://localhost", "http://[::1]", "https://127.", "https://localhost", "https://[::1]"} {
		if strings.HasPrefix(target, t) {
			return true
		}
	}
	return strings.Contains(target, "@127.") || strings.Contains(target, "@[::1]") || strings.Contains(target, "@localhost")
}

// named checks a list of other services.
func (d *decoder) named(s *cluster.Spec, sv *cluster.ServiceSpec, key string, list []string) {
	var names []string
	for i := range s.Services {
		names = append(names, s.Services[i].Name)
	}
	for i, n := range list {
		path := "/" + key + "/" + strconv.Itoa(i)
		o := s.Service(n)
		switch {
		case n == sv.Name:
			d.refer(sv, path, fmt.Sprintf("%s names the service itself", key), "remove it")
		case o == nil:
			remedy := "services of this file: " + strings.Join(names, ", ")
			if near := nearest(n, names); near != "" && near != sv.Name {
				remedy = fmt.Sprintf("did you mean %q?", near)
			}
			d.refer(sv, path, fmt.Sprintf("there is no service %q", n), remedy)
		case key == "apart" && (o.Run == "everywhere" || sv.Run == "everywhere"):
			d.refer(sv, path, fmt.Sprintf("%s and %s cannot be apart: one of them runs everywhere", sv.Name, n), "remove it from apart")
		case key == "requires" && len(sv.Nodes) > 0 && len(o.Nodes) > 0 && !meet(sv.Nodes, o.Nodes):
			d.refer(sv, path, fmt.Sprintf("%s requires %s, but they have no node in common", sv.Name, n), fmt.Sprintf("%s may run on %s: name one of them in nodes", n, strings.Join(o.Nodes, ", ")))
		case key == "requires" && sv.Run == "everywhere" && o.Run == "active":
			d.refer(sv, path, fmt.Sprintf("%s runs everywhere, but %s on one node only", sv.Name, n), `remove it from requires, or write run = "active"`)
		}
	}
}

func meet(a, b []string) bool {
	for _, x := range a {
		if contains(b, x) {
			return true
		}
	}
	return false
}

// circles finds services that require themselves by way of others. Each circle is told once, where it is closed.
func (d *decoder) circles(s *cluster.Spec) {
	const walking, done = 1, 2
	state := map[string]int{}
	var trail []string
	var visit func(sv *cluster.ServiceSpec)
	visit = func(sv *cluster.ServiceSpec) {
		state[sv.Name] = walking
		trail = append(trail, sv.Name)
		for i, n := range sv.Requires {
			o := s.Service(n)
			switch {
			case o == nil || n == sv.Name:
			case state[n] == walking:
				from := 0
				for trail[from] != n {
					from++
				}
				circle := append(append([]string{}, trail[from:]...), n)
				d.refer(sv, "/requires/"+strconv.Itoa(i), "requires goes round in a circle: "+strings.Join(circle, " -> "), "remove one of these requires: none of them could start first")
			case state[n] == 0:
				visit(o)
			}
		}
		trail = trail[:len(trail)-1]
		state[sv.Name] = done
	}
	for i := range s.Services {
		if state[s.Services[i].Name] == 0 {
			visit(&s.Services[i])
		}
	}
}

// apartness finds services that must be together and apart at once.
func (d *decoder) apartness(s *cluster.Spec) {
	groups := map[string][]string{}
	for i := range s.Services {
		groups[s.Services[i].Name] = together(s, &s.Services[i])
	}
	for i := range s.Services {
		sv := &s.Services[i]
		for k, n := range sv.Apart {
			if n == sv.Name {
				continue
			}
			for _, x := range groups[sv.Name] {
				if contains(groups[n], x) && s.Service(x).Run == "active" {
					d.refer(sv, "/apart/"+strconv.Itoa(k), fmt.Sprintf("%s and %s must be apart, but both must be where %s is", sv.Name, n, x), "remove it from apart, or from requires")
					break
				}
			}
		}
	}
}

// together lists sv and all that it requires, directly or not.
func together(s *cluster.Spec, sv *cluster.ServiceSpec) []string {
	out := []string{sv.Name}
	for i := 0; i < len(out); i++ {
		for _, n := range s.Service(out[i]).Requires {
			if s.Service(n) != nil && !contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}

// sites checks the names of sites, when it is known who is where.
func (d *decoder) sites(s *cluster.Spec) {
	if !d.knowsMembers {
		return
	}
	var known []string
	for _, m := range d.members {
		site := m.Site
		if n, ok := s.Nodes[m.Name]; ok && m.Role == cluster.RoleNode {
			site = n.Site
		}
		if site == "" {
			site = "default"
		}
		if m.Role == cluster.RoleNode && !contains(known, site) {
			known = append(known, site)
		}
	}
	sort.Strings(known)
	say := func(sv *cluster.ServiceSpec, path, site string) {
		if !contains(known, site) {
			d.refer(sv, path, fmt.Sprintf("no node is at site %q", site), "sites with nodes: "+strings.Join(known, ", "))
		}
	}
	for i := range s.Services {
		sv := &s.Services[i]
		for _, v := range sv.VIPs {
			for k, site := range v.Sites {
				say(sv, "/vip/"+v.Prefix.String()+"/sites/"+strconv.Itoa(k), site)
			}
		}
		for _, r := range sv.Remotes {
			say(sv, "/remote/"+r.Site, r.Site)
		}
	}
}

// vips finds addresses that two would own.
func (d *decoder) vips(s *cluster.Spec) {
	owner := map[netip.Addr]string{}
	for i := range s.Services {
		sv := &s.Services[i]
		for _, v := range sv.VIPs {
			path, a := "/vip/"+v.Prefix.String(), v.Prefix.Addr()
			if other, ok := owner[a]; ok {
				whose := "service " + other
				if other == sv.Name {
					whose = "this service"
				}
				d.refer(sv, path, fmt.Sprintf("%s is a vip of %s already", a, whose), "an address belongs to one service: remove one of them")
				continue
			}
			owner[a] = sv.Name
			for _, m := range d.members {
				for _, own := range m.Addresses {
					if own.Unmap() == a {
						d.refer(sv, path, fmt.Sprintf("%s is an address of member %s itself", a, m.Name), "choose an address that no machine has")
					}
				}
			}
			if v.Interface == "" && (v.Prefix.IsSingleIP() || a.IsLinkLocalUnicast()) {
				d.refer(sv, path, fmt.Sprintf("%s does not say in which network it is", v.Prefix), "write the network's length, or name the interface")
			}
		}
	}
}

// paths finds directories of volumes that lie within each other.
func (d *decoder) paths(s *cluster.Spec) {
	type place struct {
		sv               *cluster.ServiceSpec
		volume, key, dir string
	}
	var places []place
	for i := range s.Services {
		sv := &s.Services[i]
		for _, v := range sv.Volumes {
			if v.Path != "" {
				places = append(places, place{sv, v.Name, "path", v.Path}, place{sv, v.Name, "backing", v.Backing})
			}
		}
	}
	for i, b := range places {
		for _, a := range places[:i] {
			if !within(a.dir, b.dir) && !within(b.dir, a.dir) || a.sv != b.sv && !meet(a.sv.Nodes, b.sv.Nodes) {
				continue
			}
			how := fmt.Sprintf("%s and %s lie within each other", a.dir, b.dir)
			if a.dir == b.dir {
				how = fmt.Sprintf("%s is used twice", a.dir)
			}
			what := fmt.Sprintf("%s (%s of volume %s/%s)", how, a.key, a.sv.Name, a.volume)
			base := servicePath(b.sv) + "/volume/" + b.volume
			d.add(d.position(base+"/"+b.key, base+"/path", base), serviceWhere(b.sv)+", volume "+quote(b.volume), what, "choose directories of which none contains another")
			break
		}
	}
}

// within says that dir is top or lies below it.
func within(top, dir string) bool { return dir == top || strings.HasPrefix(dir, top+"/") }

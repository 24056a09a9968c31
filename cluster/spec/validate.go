package spec

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/hanode/hanode/cluster"
)

// NodeEnv is what Validate may ask about one member. A function that is nil is not asked, and what it would tell is not
// checked. The errors of the functions are shown to the operator behind the sentence that says what was looked for.
type NodeEnv struct {
	Name string       // of this member
	Role cluster.Role // 0: node

	StateDir    string                                         // hanode's own; no volume may be in it
	LookupUser  func(name string) (uid, gid uint32, err error) // of the password file or directory
	LookupGroup func(name string) (gid uint32, err error)
	Executable  func(path, user string) error     // may user ("" for root) execute it
	Unit        func(name string) error           // does the systemd unit exist
	Agent       func(class, name string) error    // does the OCF agent exist
	Interfaces  func() ([]Interface, error)       // of this member, all of them
	Directory   func(path, user string) error     // may user work in it
	Mountable   func(path, backing string) error  // may a volume be mounted at path with its bytes at backing
	File        func(path string) (string, error) // a digest of the file's content
}

// Interface is a network interface of a member.
type Interface struct {
	Name     string
	Prefixes []netip.Prefix // its addresses with the lengths of their networks
}

// Facts are what must be equal on all members that carry a service. Every member returns its own, and Compare is given
// all of them.
type Facts struct {
	Node  string            `json:"node"`
	Users map[string]string `json:"users,omitempty"` // name: "uid:gid"
	Files map[string]string `json:"files,omitempty"` // path: digest
}

// Validate says what stands in the way of running s on the member that env describes. It looks only at what concerns
// that member, and changes nothing.
func Validate(s *cluster.Spec, env NodeEnv) []Problem {
	c := &inspection{env: env}
	for i := range s.Services {
		sv := &s.Services[i]
		c.service = sv.Name
		mine := env.Role != cluster.RoleWitness && contains(sv.Nodes, env.Name)
		if mine {
			c.vips(sv)
			c.volumes(sv)
			for j := range sv.Processes {
				c.process(&sv.Processes[j], sv.Volumes)
			}
			for _, h := range sv.Hooks {
				c.executable("hook "+quote(h.Name)+" exec", h.Exec, "")
			}
		}
		for j := range sv.Checks {
			if k := &sv.Checks[j]; mine || env.Role == cluster.RoleWitness && contains(k.From, "witness") {
				c.check(k)
			}
		}
		if mine {
			c.alerts(sv.Alerts)
		}
	}
	c.service = ""
	if env.Role != cluster.RoleWitness {
		c.alerts(s.Alerts)
	}
	return c.found
}

// inspection is one run of Validate.
type inspection struct {
	env     NodeEnv
	service string
	found   []Problem
}

func (c *inspection) say(where, what, remedy string) {
	c.found = append(c.found, Problem{Node: c.env.Name, Service: c.service, Where: where, What: what, Remedy: remedy})
}

func (c *inspection) executable(where string, argv []string, user string) {
	if len(argv) == 0 || c.env.Executable == nil {
		return
	}
	if err := c.env.Executable(argv[0], user); err != nil {
		who := user
		if who == "" {
			who = "root"
		}
		c.say(where, fmt.Sprintf("%s cannot be executed by %s: %v", argv[0], who, err), "install it there, correct its mode, or correct the path")
	}
}

// inVolume says whether a path lies in one of these volumes: what is there is known only where they are mounted.
func inVolume(p string, volumes []cluster.VolumeSpec) bool {
	for i := range volumes {
		if within(volumes[i].Path, p) {
			return true
		}
	}
	return false
}

func (c *inspection) process(p *cluster.ProcessSpec, volumes []cluster.VolumeSpec) {
	where := "process " + quote(p.Name)
	switch {
	case p.Systemd != "":
		c.unit(where+" systemd", p.Systemd)
	case p.OCF != "":
		c.agent(where+" ocf", p.OCF)
	default:
		if !c.account(where, p) {
			return // whether it may execute anything cannot be asked
		}
		c.executable(where+" start", p.Start, p.User)
		c.executable(where+" stop", p.Stop, p.User)
		if c.env.Directory != nil && p.Dir != "/" && !inVolume(p.Dir, volumes) {
			if err := c.env.Directory(p.Dir, p.User); err != nil {
				c.say(where+" dir", fmt.Sprintf("%s cannot work in %s: %v", p.User, p.Dir, err), "make the directory there and give it to the user")
			}
		}
	}
	c.executable(where+" promote", p.Promote, p.User)
}

// account checks user and group.
func (c *inspection) account(where string, p *cluster.ProcessSpec) bool {
	good := true
	if c.env.LookupUser != nil && p.User != "" {
		if _, _, err := c.env.LookupUser(p.User); err != nil {
			c.say(where+" user", fmt.Sprintf("there is no user %s: %v", p.User, err), "make the user there, with the same numbers as on the other nodes (`useradd -u UID`)")
			good = false
		}
	}
	if c.env.LookupGroup != nil && p.Group != "" {
		if _, err := c.env.LookupGroup(p.Group); err != nil {
			c.say(where+" group", fmt.Sprintf("there is no group %s: %v", p.Group, err), "make the group there, with the same number as on the other nodes (`groupadd -g GID`)")
			good = false
		}
	}
	return good
}

func (c *inspection) unit(where, name string) {
	if c.env.Unit == nil {
		return
	}
	if err := c.env.Unit(name); err != nil {
		c.say(where, fmt.Sprintf("there is no systemd unit %s: %v", name, err), "install it there; hanode starts it, so disable it at boot (`systemctl disable "+name+"`)")
	}
}

func (c *inspection) agent(where, name string) {
	if c.env.Agent == nil {
		return
	}
	class, agent, _ := strings.Cut(name, ":")
	if err := c.env.Agent(class, agent); err != nil {
		c.say(where, fmt.Sprintf("there is no OCF agent %s: %v", name, err), "install it there (Debian: resource-agents)")
	}
}

func (c *inspection) check(k *cluster.CheckSpec) {
	where := "check " + quote(k.Name) + " " + k.Kind
	switch k.Kind {
	case "exec":
		c.executable(where, k.Argv, "")
	case "systemd":
		c.unit(where, k.Target)
	case "ocf":
		c.agent(where, k.Target)
	}
}

func (c *inspection) alerts(list []cluster.AlertSpec) {
	for _, a := range list {
		if a.Kind == "exec" {
			c.executable("alert "+quote(a.Name)+" exec", a.Argv, "")
		}
	}
}

// vips finds the interface for each address.
func (c *inspection) vips(sv *cluster.ServiceSpec) {
	if c.env.Interfaces == nil || len(sv.VIPs) == 0 {
		return
	}
	all, err := c.env.Interfaces()
	if err != nil {
		c.say("vip", fmt.Sprintf("the network interfaces could not be read: %v", err), "look at `ip address` there")
		return
	}
	for _, v := range sv.VIPs {
		if _, err := InterfaceFor(v, all); err != nil {
			c.say("vip "+quote(v.Prefix.String()), err.Error(), "correct the address or its length, give the node an address in that network, or name the interface")
		}
	}
}

// InterfaceFor returns the name of the interface on which a VIP is put: the one that the spec names, else the only one
// that has another address in the VIP's network.
func InterfaceFor(v cluster.VIPSpec, all []Interface) (string, error) {
	var found, names []string
	for _, i := range all {
		names = append(names, i.Name)
		if v.Interface != "" {
			if i.Name == v.Interface {
				return i.Name, nil
			}
			continue
		}
		for _, p := range i.Prefixes {
			if p.Masked() == v.Prefix.Masked() && p.Addr() != v.Prefix.Addr() {
				found = append(found, i.Name)
				break
			}
		}
	}
	switch {
	case v.Interface != "":
		return "", fmt.Errorf("there is no interface %s (there are %s)", v.Interface, strings.Join(names, ", "))
	case len(found) == 0:
		return "", fmt.Errorf("no interface has an address in %s", v.Prefix.Masked())
	case len(found) > 1:
		return "", fmt.Errorf("more than one interface has an address in %s: %s", v.Prefix.Masked(), strings.Join(found, ", "))
	}
	return found[0], nil
}

func (c *inspection) volumes(sv *cluster.ServiceSpec) {
	for _, v := range sv.Volumes {
		where := "volume " + quote(v.Name)
		if d := c.env.StateDir; d != "" {
			for _, p := range []string{v.Path, v.Backing} {
				if within(p, d) || within(d, p) {
					c.say(where, fmt.Sprintf("%s and hanode's own directory %s lie within each other", p, d), "choose another directory")
				}
			}
		}
		if c.env.Mountable != nil {
			if err := c.env.Mountable(v.Path, v.Backing); err != nil {
				c.say(where, fmt.Sprintf("%s cannot be used: %v", v.Path, err), "make an empty directory there, and none of the name of backing")
			}
		}
	}
}

// Gather returns the facts of the member that env describes, for Compare. What could not be read is left out: Validate
// tells it.
func Gather(s *cluster.Spec, env NodeEnv) Facts {
	f := Facts{Node: env.Name, Users: map[string]string{}, Files: map[string]string{}}
	for i := range s.Services {
		sv := &s.Services[i]
		if !contains(sv.Nodes, env.Name) {
			continue
		}
		for _, p := range sv.Processes {
			if id, ok := accountNumbers(&p, env); ok {
				f.Users[accountName(&p)] = id
			}
		}
		for _, path := range sv.SameFiles {
			if env.File == nil {
				continue
			}
			digest, err := env.File(path)
			if err != nil {
				digest = "unreadable: " + err.Error()
			}
			f.Files[path] = digest
		}
	}
	return f
}

func accountName(p *cluster.ProcessSpec) string {
	if p.Group != "" {
		return p.User + ":" + p.Group
	}
	return p.User
}

func accountNumbers(p *cluster.ProcessSpec, env NodeEnv) (string, bool) {
	if env.LookupUser == nil || len(p.Start) == 0 {
		return "", false
	}
	uid, gid, err := env.LookupUser(p.User)
	if err != nil {
		return "", false
	}
	if p.Group != "" {
		if env.LookupGroup == nil {
			return "", false
		}
		if gid, err = env.LookupGroup(p.Group); err != nil {
			return "", false
		}
	}
	return fmt.Sprintf("%d:%d", uid, gid), true
}

// Compare finds what is not equal on the members of each service: the numbers of users, because files keep numbers and
// not names, and the files that the service says are the same.
func Compare(s *cluster.Spec, facts []Facts) []Problem {
	var out []Problem
	for i := range s.Services {
		sv := &s.Services[i]
		said := map[string]bool{}
		compare := func(where, name, remedy string, of func(Facts) string) {
			first := ""
			var values []string
			differ := false
			for _, f := range facts {
				v := of(f)
				if v == "" || !contains(sv.Nodes, f.Node) {
					continue
				}
				if first == "" {
					first = v
				}
				differ = differ || v != first || strings.HasPrefix(v, "unreadable: ")
				values = append(values, f.Node+" "+short(v))
			}
			if differ && !said[where+name] {
				said[where+name] = true
				out = append(out, Problem{Service: sv.Name, Where: where, What: fmt.Sprintf("%s is not the same on all nodes: %s", name, strings.Join(values, ", ")), Remedy: remedy})
			}
		}
		for _, p := range sv.Processes {
			name := accountName(&p)
			compare("process "+quote(p.Name)+" user", name, "give it the same uid and gid everywhere (`usermod -u`, `groupmod -g`, then chown its files)", func(f Facts) string { return f.Users[name] })
		}
		for _, path := range sv.SameFiles {
			compare("same_files", path, "copy it from the node where it is right, or remove it from same_files", func(f Facts) string { return f.Files[path] })
		}
	}
	return out
}

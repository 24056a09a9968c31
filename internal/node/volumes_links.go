package node

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/volserver"
)

// events carries what the volume server says to the core.
func (v *volumes) events() volserver.Events {
	step := v.n.m.Step
	no := v.s.no
	return volserver.Events{
		Replica: func(r volserver.Replica) {
			step(core.Replica{Service: no, Member: r.Member, Pos: r.Pos, Good: r.Good, Connected: r.Connected, Waiting: time.Duration(r.WaitingMs) * time.Millisecond,
				LagBytes: r.LagBytes, Failed: r.Failed})
		},
		CaughtUp: func(c volserver.CaughtUp) {
			step(core.CaughtUp{Service: no, Member: c.Member, Inc: c.Inc, Epoch: c.Epoch, Gen: c.Gen})
		},
		Dial:   v.dial,
		Higher: func(e cluster.Epoch) { step(core.HigherEpoch{Service: no, Epoch: e}) },
		Failed: func(text string) {
			v.mu.Lock()
			leads := v.epoch != 0
			v.mu.Unlock()
			if leads {
				step(core.DiskFailed{Service: no, Text: text})
				return
			}
			v.n.raise("disk-failed", v.s.name, "crit", "the copy of "+v.s.name+" here cannot be kept: "+text, "look at the disk and the log of this node, then hanode volume status "+v.s.name)
		},
		Deposed: func(why string) {
			v.n.log.Info("the volume server gave up its tenure", "service", v.s.name, "why", why)
			v.mu.Lock()
			v.ending = true
			srv := v.server
			v.mu.Unlock()
			if srv != nil {
				go func() { // its end is ordered by the runner too, as a rule; whoever comes first
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					defer cancel()
					if err := srv.Fence(ctx, why); err != nil {
						srv.Kill()
					}
				}()
			}
		},
		Closed: v.closed,
		Alarm: func(code, text string) {
			if text == "" {
				v.n.clear(code, v.s.name)
				return
			}
			v.n.raise(code, v.s.name, "warn", text, "hanode volume status "+v.s.name)
		},
	}
}

// dialWait bounds one attempt to reach a follower.
const dialWait = 3 * time.Second

// dial connects to a node for the volume server, which does TLS on it.
func (v *volumes) dial(to cluster.MemberNo) {
	v.mu.Lock()
	srv := v.server
	var id cluster.NodeID
	for _, m := range v.facts.Members {
		if m.Node == to {
			id = m.ID
		}
	}
	if srv == nil || v.off || id.IsZero() || v.dials[to] || len(v.raws) > 64 {
		v.mu.Unlock()
		return
	}
	v.dials[to] = true
	v.nextID++
	n := v.nextID
	v.mu.Unlock()
	v.n.run.Go(func() error {
		defer func() {
			v.mu.Lock()
			delete(v.dials, to)
			v.mu.Unlock()
		}()
		ctx, cancel := context.WithTimeout(v.n.ctx, dialWait)
		defer cancel()
		r, err := v.n.m.Mesh().DialStream(ctx, id, v.s.no, func() { srv.Down(n) })
		if err != nil {
			v.n.log.Debug("dial for the volumes", "service", v.s.name, "member", to, "err", err)
			return nil
		}
		v.mu.Lock()
		v.raws[n] = r
		v.mu.Unlock()
		if err := srv.Give(volserver.Conn{ID: n, Peer: to}, r.Conn); err != nil {
			v.closed(n)
		}
		return nil
	})
}

// closed ends the watch over a dialled connection.
func (v *volumes) closed(id uint64) {
	v.mu.Lock()
	r := v.raws[id]
	delete(v.raws, id)
	v.mu.Unlock()
	if r != nil {
		r.Forget()
	}
}

var errNoVolume = errors.New("no volume of that service is served here")

// handOver gives an accepted connection to the service's volume server.
func (n *Node) takeStream(r link.Raw) error {
	s := n.byNo(r.Service)
	if s == nil || s.vol == nil {
		return errNoVolume
	}
	s.vol.mu.Lock()
	srv, off := s.vol.server, s.vol.off
	s.vol.mu.Unlock()
	if srv == nil || off {
		return errNoVolume
	}
	return srv.Give(volserver.Conn{Incoming: true, First: r.First}, r.Conn)
}

// unmountStale takes away what dead volume servers have left mounted at these places (rule V0).
func unmountStale(paths []string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		_, kind, ok := strings.Cut(lines.Text(), " - ")
		if !ok || len(f) < 5 || !strings.HasPrefix(kind, "fuse.hanode ") {
			continue
		}
		at := unescapeMount(f[4])
		for _, p := range paths {
			if at != p {
				continue
			}
			if err := unix.Unmount(p, unix.MNT_DETACH|unix.MNT_FORCE); err != nil && err != unix.EINVAL {
				errs = append(errs, fmt.Errorf("unmount what an earlier volume server left on %s: %w", p, err))
			}
		}
	}
	return errors.Join(errs...)
}

// unescapeMount undoes the octal escapes of mountinfo (proc_pid_mountinfo(5)).
func unescapeMount(s string) string {
	for _, e := range [][2]string{{`\040`, " "}, {`\011`, "\t"}, {`\012`, "\n"}, {`\134`, `\`}} {
		s = strings.ReplaceAll(s, e[0], e[1])
	}
	return s
}

// cleanMounts takes away what the volume servers of an earlier run have left mounted: they are dead by now.
func (n *Node) cleanMounts() error {
	files, err := filepath.Glob(filepath.Join(n.dir.Path, "volumes", "*.json"))
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		var k kept
		b, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(b, &k)
		}
		if err != nil {
			n.log.Warn("what an earlier run mounted cannot be read", "file", f, "err", err)
			continue
		}
		errs = append(errs, unmountStale(k.Mounts))
	}
	return errors.Join(errs...)
}

// watchAlarms raises and clears the alarms that follow from how the copies stand.
func (v *volumes) watchAlarms(st *volserver.Status) {
	set := func(on bool, code, severity, text, remedy string) {
		if on {
			v.n.raise(code, v.s.name, severity, text, remedy)
		} else {
			v.n.clear(code, v.s.name)
		}
	}
	aside := 0
	for _, vol := range st.Volumes {
		aside += vol.Divergent
	}
	set(aside > 0, "divergent", "warn", fmt.Sprintf("%d sets of operations of %s that nobody else has were set aside on this node", aside, v.s.name),
		"look at them: hanode volume divergent list "+v.s.name)
	behind := ""
	if st.Role == "active" {
		v.mu.Lock()
		for _, r := range st.Replicas {
			if !v.facts.InSync.Has(r.Member) {
				behind = fmt.Sprintf("%s is not in sync: %s", v.name(r.Member), behindText(r))
			}
		}
		v.mu.Unlock()
	}
	set(behind != "", "standby-behind", "warn", "the copy of "+v.s.name+" on "+behind, "wait, or look at that node: hanode volume status "+v.s.name)
	if st.Failed != "" && st.Role == "active" {
		v.n.raise("disk-failed", v.s.name, "crit", "the data of "+v.s.name+" cannot be written here: "+st.Failed, "look at the disk of this node")
	}
}

// name is a node of the service. mu is held.
func (v *volumes) name(no cluster.MemberNo) string {
	for _, m := range v.facts.Members {
		if m.Node == no {
			return m.Name
		}
	}
	return fmt.Sprintf("member %d", no)
}

func behindText(r volserver.Replica) string {
	switch {
	case r.Failed != "":
		return r.Failed
	case !r.Connected:
		return "it is not connected"
	case r.Resync != nil && r.Resync.TotalBytes > 0:
		return fmt.Sprintf("%d %% of %d MiB compared", r.Resync.DoneBytes*100/r.Resync.TotalBytes, r.Resync.TotalBytes>>20)
	case r.LagBytes > 0:
		return fmt.Sprintf("%d KiB behind", r.LagBytes>>10)
	}
	return r.State
}

// distrust marks this copy, so that all of it is compared, and starts the server anew.
func (v *volumes) distrust(ctx context.Context, why string) error {
	v.mu.Lock()
	srv := v.server
	v.ending = srv != nil
	v.mu.Unlock()
	if srv == nil {
		return errors.New("there is no volume server here now: it is compared when there is one, if need be")
	}
	_, err := srv.Order(ctx, volserver.Order{What: "distrust", Volume: why})
	srv.Kill()
	return err
}

// forget lets backing directories that are missing be made anew.
func (v *volumes) forget() error {
	k := v.remember()
	k.Made = nil
	return v.keep(k)
}

// disconnect keeps this copy away from the others, or lets it follow again; it survives restarts.
func (v *volumes) disconnect(off bool) error {
	k := v.remember()
	k.Off = off
	if err := v.keep(k); err != nil {
		return err
	}
	v.mu.Lock()
	v.off = off
	srv := v.server
	v.ending = v.ending || off && srv != nil
	v.mu.Unlock()
	if off {
		v.n.raise("disconnected", v.s.name, "warn", "the copy of "+v.s.name+" here was disconnected by an operator", "hanode volume connect "+v.s.name+" --node "+v.n.dir.Identity.Name)
		if srv != nil {
			srv.Kill() // it starts anew, and nobody reaches it
		}
		return nil
	}
	v.n.clear("disconnected", v.s.name)
	return nil
}

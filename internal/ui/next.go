package ui

import "github.com/hanode/hanode/internal/api"

// NextFor is the command that an operator would want after seeing s: what the daemon says, or what the state suggests.
func NextFor(s *api.Status) []string {
	if len(s.Next) > 0 {
		return s.Next
	}
	switch {
	case s.Source == api.SourceLastKnown:
		return []string{"systemctl start hanode", "journalctl -u hanode -n 50"}
	case !s.Cluster.Quorum:
		return []string{"systemctl status hanode     on the members that are awaited"}
	}
	if len(s.Members) < 3 && s.Source == api.SourceLive {
		if cmds := nextForMembers(s.Members); cmds[0] != "hanode status" {
			return cmds
		}
	}
	for i := range s.Services {
		if cmd := nextForService(&s.Services[i]); cmd != "" {
			return []string{cmd}
		}
	}
	if len(s.Services) == 0 {
		return []string{"hanode apply FILE     with the first service"}
	}
	return []string{"hanode events -f"}
}

func nextForService(v *api.Service) string {
	switch {
	case v.State == api.StateHeld || v.State == api.StateFailed:
		return "hanode explain " + v.Name
	case v.State == api.StateStopped:
		return "hanode service start " + v.Name
	case v.State == api.StateStarting || v.State == api.StateMoving:
		return "hanode wait " + v.Name + " --for active"
	case !v.PausedUntil.IsZero():
		return "hanode resume " + v.Name
	case v.StandbyState == "resync" || v.StandbyState == "behind":
		return "hanode wait " + v.Name + " --for in-sync"
	case v.Protection != api.Protected:
		return "hanode explain " + v.Name
	}
	return ""
}

package plan

import "strings"

// asks says whose word a failover of this service waits for; "": it waits for nobody's. An order (hanode failover) and an approval are one and the
// same entry of the log, for one epoch: it does not outlive the failover that it was given for.
func (v *View) asks(s *Service) string {
	switch {
	case s.Approved:
		return ""
	case s.Approver != "":
		return "declined by " + s.Approver + ": it stays down until " + v.name(s.Lock.Holder.Node) + " returns, or hanode approve " + s.Name
	case len(s.Spec.Approvers) > 0:
		return "waits for the word of " + strings.Join(s.Spec.Approvers, " or ") + ": hanode approve " + s.Name + ", or hanode decline " + s.Name
	case s.Spec.Failover == "manual":
		return "the spec says failover = manual: hanode failover " + s.Name
	}
	return ""
}

// mayReturn says that the previous active itself can serve again: that is no failover, and nobody is asked.
func (v *View) mayReturn(s *Service) bool {
	m := v.Member(s.Lock.Holder.Node)
	if m == nil || s.Reports[m.No].Unhealthy {
		return false
	}
	why, _ := v.rank(s, m, m.Name, 0)
	return why == ""
}

package api

import (
	"fmt"
	"net/http"
	"os/user"
	"slices"
)

// Groups of the machine that narrow or widen what a member of the operators' group may do; see docs/operations.md.
const (
	ReadGroup  = "hanode-read"  // may only look
	AdminGroup = "hanode-admin" // may give the orders that can lose data, take members away or give secrets out
)

// role is what somebody on the Unix socket may do; each includes those before it.
type role int

const (
	mayRead role = iota
	mayOperate
	mayAll
)

// roleOf says what an operator may do. Whoever has no group that says otherwise operates; the dangerous orders are for root and AdminGroup, or, on a
// machine that has no such group, for every operator.
func roleOf(uid uint32, in func(group string) bool) role {
	switch {
	case uid == 0:
		return mayAll
	case in(ReadGroup):
		return mayRead
	case in(AdminGroup):
		return mayAll
	}
	if _, err := user.LookupGroup(AdminGroup); err != nil {
		return mayAll
	}
	return mayOperate
}

// dangerous are the requests that can lose data, take a member away, or give a secret out.
var dangerous = []string{pathForce, pathReplace, pathRemove, pathLeave, pathToken, pathBackup, pathKeyRotate, pathUpgradeFinish, "/v1/recover", "/v1/cert/renew"}

// needs is the role that a request needs.
func needs(r *http.Request) role {
	switch {
	case slices.Contains(dangerous, r.URL.Path):
		return mayAll
	case r.Method == http.MethodGet, r.URL.Path == pathEvents, r.URL.Path == pathWait:
		return mayRead
	}
	return mayOperate
}

// forbidden is the answer to an operator whose role is too small; nil: it is not.
func forbidden(p peer, r *http.Request) *Error {
	need := needs(r)
	if p.member != "" || p.role >= need {
		return nil
	}
	if need == mayAll {
		return Denied(fmt.Sprintf("%s may not give this order: it is for root and the group %s", p.who, AdminGroup), "ask one of them; or, as root: usermod -aG "+AdminGroup+" USER")
	}
	return Denied(fmt.Sprintf("%s may only look: the group %s is for that", p.who, ReadGroup), "ask an operator; or, as root, take the user out of that group")
}

package api

import (
	"net/http/httptest"
	"os/user"
	"testing"
)

func TestRolesOnTheSocket(t *testing.T) {
	_, err := user.LookupGroup(AdminGroup)
	widest := mayAll
	if err == nil {
		widest = mayOperate
	}
	for _, c := range []struct {
		uid    uint32
		groups string
		want   role
	}{{0, "", mayAll}, {0, ReadGroup, mayAll}, {7, ReadGroup, mayRead}, {7, AdminGroup, mayAll}, {7, "", widest}} {
		if got := roleOf(c.uid, func(g string) bool { return g == c.groups }); got != c.want {
			t.Errorf("uid %d in %q: %d, want %d", c.uid, c.groups, got, c.want)
		}
	}
	for _, c := range []struct {
		method, path string
		role         role
		ok           bool
	}{
		{"GET", pathStatus, mayRead, true}, {"POST", pathEvents, mayRead, true}, {"POST", pathSwitchover, mayRead, false}, {"POST", pathSwitchover, mayOperate, true},
		{"POST", pathForce, mayOperate, false}, {"POST", pathForce, mayAll, true}, {"GET", pathBackup, mayOperate, false}, {"POST", pathToken, mayOperate, false},
		{"POST", pathApply, mayOperate, true}, {"POST", "/v1/something/new", mayRead, false},
	} {
		if e := forbidden(peer{who: "ann", role: c.role}, httptest.NewRequest(c.method, c.path, nil)); (e == nil) != c.ok || e != nil && (e.Do == "" || e.Code != CodeDenied) {
			t.Errorf("%s %s with role %d: %v", c.method, c.path, c.role, e)
		}
	}
	if e := forbidden(peer{member: "b"}, httptest.NewRequest("POST", pathForce, nil)); e != nil {
		t.Errorf("what a member passes on was judged there: %v", e)
	}
}

package lab

import (
	"testing"

	"github.com/hanode/hanode/cluster/spec"
)

func TestTheSpecOfTheLabIsOneThatTheProductTakes(t *testing.T) {
	p := &product{bed: &bed{self: []string{"/usr/bin/hanode", "demo"}}, profile: "fast"}
	s, problems := spec.Parse("lab.hcl", []byte(p.spec()))
	if problems != nil {
		t.Fatalf("%v\n%s", problems, p.spec())
	}
	echo := s.Service(serviceName)
	if echo == nil || !echo.Hot() || echo.OnFailure.Restarts != 0 || s.Profile != "fast" || len(echo.Nodes) != 2 {
		t.Errorf("%+v", s)
	}
}

package cli

import (
	"os"
	"testing"
)

// The units in contrib are for packages. The source of both is Unit.Text; what init and join write with --unit is the same.
func TestTheUnitsInContribAreThoseThatTheCommandsWrite(t *testing.T) {
	for _, u := range []Unit{
		{Name: "hanode", Description: "hanode node", Runtime: "hanode", Node: true, Exec: []string{"/usr/bin/hanode", "run", "--data", "/var/lib/hanode"}},
		{Name: "hanode-witness", Description: "hanode witness", Runtime: "hanode-witness", Exec: []string{"/usr/bin/hanode-witness", "run", "--data", "/var/lib/hanode-witness"}},
	} {
		path := "../../contrib/systemd/" + u.Name + ".service"
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(path, []byte(u.Text()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		have, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(have) != u.Text() {
			t.Errorf("%s is not what the commands write: UPDATE=1 go test ./internal/cli\n%s", path, u.Text())
		}
	}
}

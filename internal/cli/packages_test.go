package cli

import (
	"os"
	"strings"
	"testing"
)

// A package that starts or stops a daemon moves services at a moment that nobody chose.
func TestPackagesTouchNoDaemon(t *testing.T) {
	for _, name := range []string{"postinstall", "preremove"} {
		b, err := os.ReadFile("../../contrib/packages/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range strings.Split(string(b), "\n") {
			if strings.HasPrefix(strings.TrimSpace(l), "#") {
				continue
			}
			for _, word := range []string{"start", "stop", "kill", "enable", "deb-systemd-invoke", "try-restart", "rm "} {
				if strings.Contains(l, word) {
					t.Errorf("%s: %q", name, l)
				}
			}
		}
	}
}

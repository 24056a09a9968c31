package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Where units stand that an administrator installs (systemd.unit(5)).
const unitDir = "/etc/systemd/system"

// Unit is a systemd unit of one of the daemons.
type Unit struct {
	Name        string // "hanode"
	Description string
	Exec        []string
	Runtime     string // directory below /run
	Node        bool   // it has children: volume servers, guards and applications
}

// Text is the unit file. A node's applications and its guard must outlive the daemon for a moment (KillMode=process),
// live in cgroups that the daemon makes (Delegate), and a stop hands the services over first (TimeoutStopSec).
func (u Unit) Text() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("[Unit]")
	p("Description=%s", u.Description)
	p("After=network-online.target time-sync.target")
	p("Wants=network-online.target")
	p("StartLimitIntervalSec=0")
	p("")
	p("[Service]")
	p("Type=notify")
	p("ExecStart=%s", strings.Join(quoted(u.Exec), " "))
	p("Restart=always")
	p("RestartSec=1")
	p("RuntimeDirectory=%s", u.Runtime)
	p("RuntimeDirectoryMode=0755")
	p("OOMScoreAdjust=-1000")
	p("LimitRTPRIO=20")
	p("LimitMEMLOCK=infinity")
	p("LimitNOFILE=65536")
	if u.Node {
		p("Delegate=yes")
		p("KillMode=process")
		p("TimeoutStopSec=150")
	} else {
		p("TimeoutStopSec=20")
		p("NoNewPrivileges=yes")
		p("ProtectSystem=full")
		p("ProtectHome=yes")
		p("PrivateTmp=yes")
	}
	p("")
	p("[Install]")
	p("WantedBy=multi-user.target")
	return b.String()
}

// quoted writes arguments as systemd.service(5) reads them.
func quoted(args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		a = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(a)
		if strings.ContainsAny(a, " \t'\"\\;") || a == "" {
			a = `"` + a + `"`
		}
		out[i] = a
	}
	return out
}

// Install writes the unit below root ("" is the real one) and returns its path. A unit that is there already is not
// touched unless it is the same.
func (u Unit) Install(root string) (string, error) {
	path := filepath.Join(root, unitDir, u.Name+".service")
	if old, err := os.ReadFile(path); err == nil && string(old) != u.Text() {
		return "", fmt.Errorf("%s exists and is different: move it away, or keep it and leave --unit out", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("write the unit: %w", err)
	}
	if err := os.WriteFile(path, []byte(u.Text()), 0o644); err != nil {
		return "", fmt.Errorf("write the unit: %w", err)
	}
	return path, nil
}

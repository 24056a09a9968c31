package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/cluster/spec"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/api/apitest"
)

func TestChecksAreListedRunAndPaused(t *testing.T) {
	w := newWorld(t)
	w.want(0, "db/sql", "", "check", "list")
	w.want(0, "no checks", "", "check", "list", "web")
	w.want(0, `"checks":[{"service":"db","name":"sql"`, "", "check", "list", "--json")
	w.want(0, "check db/sql succeeds on a", "next:  hanode check list db", "check", "run", "db/sql")
	w.want(0, "pause done (D-2)", "", "check", "pause", "db/sql", "--for", "5m", "--reason", "new index")
	w.want(0, "resume done (D-3)", "", "check", "resume", "db/sql")
	w.want(2, "", "want SERVICE/CHECK", "check", "run", "db")
	w.want(2, "", "db has no check x", "check", "run", "db/x")
	w.want(0, "db/sql\n", "", "__complete", "check", "run", "")
}

func TestAlertsKeysAndUpgrades(t *testing.T) {
	w := newWorld(t)
	w.want(0, "told on a: page", "", "alert", "test")
	w.want(2, "", "there is no alert x", "alert", "test", "x")
	w.want(0, "gossip has a new key (D-2)", "", "key", "rotate")
	w.want(0, "feature level 1 in force, 2 known to every member", "next:  hanode upgrade finish", "upgrade", "status")
	w.want(2, "", "--yes", "upgrade", "finish")
	w.want(0, "the cluster has feature level 2", "", "upgrade", "finish", "--yes")
}

func TestAWordOfAnApproverIsAskedForOnlyWhenTheActiveIsLost(t *testing.T) {
	w := newWorld(t)
	w.want(3, "", "nothing waits for your word", "approve", "db")
	w.Do(func(s *api.Status) { s.Services[0].State = api.StateFailed })
	w.want(0, "the failover of db is approved", "next:  hanode explain db", "approve", "db")
	w.want(0, "the failover of db", "", "decline", "db", "--yes")
}

func TestABackupIsSecretAndARestoreIsAskedFor(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(w.dir, "b")
	w.want(0, file, "it holds the key of the cluster's authority", "backup", "-o", file)
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	w.want(2, "", "choose another file", "backup", "-o", file)
	w.want(1, "", "this build cannot restore", "restore", "--name", "a", "--advertise", "10.0.0.11", "--yes", file)
	w.seams.restoreNode = func(_ context.Context, o api.RestoreOptions, _ api.Progress) (*api.RestoreResult, error) {
		return &api.RestoreResult{InitResult: api.InitResult{Name: o.Name, Cluster: "shop", ClusterID: "77"}, SpecVersion: 4, Stopped: []string{"db"}}, nil
	}
	args := []string{"restore", "--name", "a", "--advertise", "10.0.0.11", "--data", w.dir, file}
	w.want(2, "", "--yes", args...)
	w.want(0, "cluster shop made anew (77) with spec version 4", "stopped until you start them: db", append(args, "--yes")...)
}

func TestMonitoringGetsOneLineAndAStatus(t *testing.T) {
	w := newWorld(t)
	w.want(0, "HANODE OK - shop: every service survives the next failure (1 of 1 active) | votes=3;;;0;3 services=1;;;0;1 alarms=0\n", "", "status", "--nagios")
	w.Do(func(s *api.Status) {
		s.Services[0].Protection, s.Services[0].IfActiveFails = api.Degraded, "DOWN until b returns"
	})
	w.want(1, "HANODE WARNING - shop: db active (DOWN until b returns)", "", "status", "--nagios")
	w.Do(func(s *api.Status) { s.Cluster.Quorum = false })
	w.want(2, "HANODE CRITICAL - shop: no quorum", "", "status", "--nagios")
	w.dead = unreachable()
	w.want(2, "HANODE CRITICAL - hanode does not answer", "", "status", "--nagios", "--data", w.dir)
	s, _ := apitest.New().Status(t.Context(), api.StatusQuery{})
	if err := api.SaveLastStatus(w.dir, s); err != nil {
		t.Fatal(err)
	}
	w.want(2, "HANODE CRITICAL - shop: hanode does not answer; last known state", "", "status", "--nagios", "--data", w.dir)
	w.want(2, "", "choose one", "status", "--nagios", "--watch")
}

func TestTheSpecDescribesItself(t *testing.T) {
	w := newWorld(t)
	w.want(1, "", "cannot print the schema", "spec", "schema")
	w.seams.specSchema, w.seams.specHelp = spec.Schema, spec.Help
	w.want(0, `"$schema": "https://json-schema.org/draft/2020-12/schema"`, "", "spec", "schema")
	w.want(0, "check", "", "spec", "keys", "check")
	w.want(2, "", "no block x", "spec", "keys", "x")
}

// Each command has a page, and every page is one that groff (where it is installed) reads without complaint.
func TestEveryCommandHasAManualPage(t *testing.T) {
	w := newWorld(t)
	w.want(0, "pages in "+w.dir, "", "man", w.dir)
	root := commands(w.env(nil, nil, nil))
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if !c.IsAvailableCommand() && c.HasParent() || c.Name() == "help" || c.Name() == "completion" {
			return
		}
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".8"
		page, err := os.ReadFile(filepath.Join(w.dir, name))
		if err != nil {
			t.Error(err)
			return
		}
		for _, want := range []string{".SH NAME", ".SH SYNOPSIS", ".SH EXIT STATUS"} {
			if !strings.Contains(string(page), want) {
				t.Errorf("%s has no %s", name, want)
			}
		}
		if groff, err := exec.LookPath("groff"); err == nil {
			out, err := exec.Command(groff, "-man", "-ww", "-z", filepath.Join(w.dir, name)).CombinedOutput()
			if err != nil || len(out) > 0 {
				t.Errorf("%s: %v\n%s", name, err, out)
			}
		}
		for _, s := range c.Commands() {
			walk(s)
		}
	}
	walk(root)
}

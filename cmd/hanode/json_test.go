package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/api/apitest"
)

var update = flag.Bool("update", false, "write the golden files anew; read the difference before you commit it")

// TestJSONIsStable compares what scripts read with what they were promised. Keys may be added; never change or remove one.
func TestJSONIsStable(t *testing.T) {
	for name, args := range map[string][]string{
		"status": {"status"}, "explain": {"explain", "D-1"}, "events": {"events"}, "member-list": {"member", "list"}, "alarm-list": {"alarm", "list"},
		"leader": {"leader"}, "spec-show": {"spec", "show"}, "spec-log": {"spec", "log"}, "plan": {"switchover", "db", "--plan"}, "switchover": {"switchover", "db"},
		"token": {"token", "create"}, "version": {"version"}, "wait": {"wait", "db"}, "refusal": {"switchover", "db", "--to", "b"},
	} {
		w := newWorld(t)
		w.want(0, "db is active on b", "", "switchover", "db")
		w.Do(func(s *api.Status) {
			s.Alarms = []api.Alarm{{Code: "failed-over", Severity: "warn", Object: "db", Since: api.At(apitest.Epoch0), Text: "t", Remedy: "r", Decision: "D-1"}}
		})
		r := w.run(append(args, "--json")...)
		got := r.out
		if name == "refusal" {
			got = r.errOut
		}
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, []byte(got), "", "  "); err != nil {
			t.Errorf("%s is not one object: %v\n%s%s", name, err, got, r.errOut)
			continue
		}
		golden(t, name, pretty.Bytes())
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Errorf("%v; go test -update writes it", err)
		return
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s changed:\n%s\nwant\n%s", name, got, want)
	}
}

// TestStatusHasEveryKeyOfTheContract reads the keys that the contract with operators lists.
func TestStatusHasEveryKeyOfTheContract(t *testing.T) {
	w := newWorld(t)
	w.want(0, "db is active on b", "", "switchover", "db")
	w.Do(func(s *api.Status) {
		s.Alarms = []api.Alarm{{Code: "x"}}
	})
	var s map[string]any
	if err := json.Unmarshal([]byte(w.run("status", "--json").out), &s); err != nil {
		t.Fatal(err)
	}
	first := func(v any) map[string]any { return v.([]any)[0].(map[string]any) }
	service := first(s["services"])
	for where, c := range map[string]struct {
		has  map[string]any
		keys string
	}{
		"cluster":   {s["cluster"].(map[string]any), "name,id,protection,quorum,votes,leader,profile,lease_ms,spec_version,feature_level"},
		"member":    {first(s["members"]), "name,role,site,state,heard_ms,version,clock_offset_ms,links"},
		"link":      {first(first(s["members"])["links"]), "address,rtt_ms,state"},
		"service":   {service, "name,state,protection,protection_reasons,if_active_fails,active,standby,epoch,since,paused_until,lease_remaining_ms,in_sync,position,lag_bytes,last_move,identity,volumes,regions,processes,checks"},
		"last_move": {service["last_move"].(map[string]any), "decision,kind,from,to,at,outage_ms,ready_ms"},
		"process":   {first(service["processes"]), "name,state,pid,restarts"},
		"check":     {first(service["checks"]), "name,state,output,took_ms"},
		"alarm":     {first(s["alarms"]), "code,severity,object,since,text,remedy,decision,acked_by"},
	} {
		for _, k := range strings.Split(c.keys, ",") {
			if _, ok := c.has[k]; !ok {
				t.Errorf("%s has no %s", where, k)
			}
		}
	}
	for _, k := range []string{"protection_reasons", "in_sync", "identity", "volumes", "regions", "processes", "checks"} {
		if _, ok := service[k].([]any); !ok {
			t.Errorf("%s is %T, want a list", k, service[k])
		}
	}
}

package main

import (
	"bytes"
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/api/apitest"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/witnesscmd"
)

func call(t *testing.T, f witnesscmd.Funcs, in string, args ...string) (status int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	env := &cli.Env{Stdin: strings.NewReader(in), Stdout: &o, Stderr: &e, Getenv: func(string) string { return "" },
		Now: func() time.Time { return apitest.Epoch0 }, Zone: time.UTC, Version: api.Version{Version: "1.0.3", Go: "go1.26"}}
	status = run(t.Context(), env, f, args)
	return status, o.String(), e.String()
}

func TestTheWitnessJoinsRunsShowsAndLeaves(t *testing.T) {
	serving := api.WitnessStatus{At: api.At(apitest.Epoch0), Running: true, Listen: "10.2.0.13:7400", Clusters: []api.WitnessCluster{
		{Name: "shop", ID: "6f1c0a52", Member: "w", State: "up", Vote: true, Quorum: true, Votes: api.Votes{Heard: 3, Total: 3, Needed: 2}, Leader: "w"}}}
	var ran api.RunOptions
	var asked []string
	f := witnesscmd.Funcs{
		Join: func(_ context.Context, o api.JoinOptions, _ api.Progress) (*api.JoinResult, error) {
			if o.Role != "witness" || o.Token != "hn1-X" {
				return nil, api.Refusal("join refused", "the token is not for a witness", "hanode token create --role witness")
			}
			return &api.JoinResult{Name: o.Name, Cluster: "shop", DataDir: o.DataDir}, nil
		},
		Run: func(_ context.Context, o api.RunOptions) error { ran = o; return nil },
		Status: func(_ context.Context, socket, data string) (*api.WitnessStatus, error) {
			asked = []string{socket, data}
			s := serving
			return &s, nil
		},
		Leave: func(_ context.Context, o api.WitnessLeave, _ api.Progress) (*api.Outcome, error) {
			return &api.Outcome{Text: "w has left " + o.Cluster, Decision: "D-7", OutageMs: -1}, nil
		},
	}
	for _, c := range []struct {
		args        string
		in          string
		status      int
		out, errOut string
	}{
		{"join --token - --name w --advertise 10.2.0.13", "hn1-X\n", 0, "w is a witness of the cluster shop (/var/lib/hanode-witness)", "next:  hanode-witness run --data /var/lib/hanode-witness"},
		{"join --token y --name w --advertise 10.2.0.13", "", 3, "", "hanode token create --role witness"},
		{"join --token - --name w --advertise 10.2.0.13", "\n", 2, "", "no token on stdin"},
		{"join --name w", "", 2, "", "required flag"},
		{"run --data /d", "", 0, "", ""},
		{"status", "", 0, "shop        6f1c0a52  w", ""},
		{"list", "", 0, "shop", ""},
		{"list --json", "", 0, `{"clusters":[{"name":"shop"`, ""},
		{"leave shop", "", 2, "", "add --yes"},
		{"leave shop --yes", "", 0, "w has left shop (D-7)", "next:  hanode-witness list"},
		{"version", "", 0, "hanode-witness 1.0.3, go1.26", ""},
		{"apply", "", 2, "", "is no command"},
		{"", "", 2, "", "the witness of hanode clusters"},
	} {
		status, out, errOut := call(t, f, c.in, strings.Fields(c.args)...)
		if status != c.status || !strings.Contains(out, c.out) || !strings.Contains(errOut, c.errOut) {
			t.Errorf("%s: exit %d, want %d\n%s\n%s", c.args, status, c.status, out, errOut)
		}
	}
	if ran.DataDir != "/d" || ran.Socket != witnesscmd.Socket || ran.Log == nil {
		t.Errorf("ran with %+v", ran)
	}
	if len(asked) != 2 || asked[0] != witnesscmd.Socket || asked[1] != witnesscmd.DataDir {
		t.Errorf("asked %q", asked)
	}
	serving.Clusters[0].Quorum = false
	if status, _, _ := call(t, f, "", "status"); status != 4 {
		t.Errorf("exit %d although a cluster has no quorum", status)
	}
	serving.Clusters[0].Quorum, serving.Running = true, false
	if status, out, _ := call(t, f, "", "status"); status != 4 || !strings.Contains(out, "systemctl start hanode-witness") {
		t.Errorf("exit %d although it does not run\n%s", status, out)
	}
}

// TestTheWitnessStaysLean: what a witness does not need is not linked into its binary, which must stay below 15 MiB.
func TestTheWitnessStaysLean(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Skipf("needs the go command: %v", err)
	}
	for _, never := range []string{"hashicorp/hcl", "zclconf", "vishvananda", "google/nftables", "cilium/ebpf", "mdlayher/", "hanode/hanode/internal/node", "hanode/hanode/netid", "hanode/hanode/replication"} {
		if strings.Contains(string(out), never) {
			t.Errorf("hanode-witness is linked with %s", never)
		}
	}
}

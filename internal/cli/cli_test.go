package cli

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
)

func testEnv(in string) (*Env, *bytes.Buffer, *bytes.Buffer) {
	var out, errOut bytes.Buffer
	return &Env{Stdin: strings.NewReader(in), Stdout: &out, Stderr: &errOut, Getenv: func(string) string { return "" }, Now: time.Now}, &out, &errOut
}

func TestACommandEndsWithTheStatusOfItsError(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		says   string
	}{
		{nil, 0, ""}, {errors.New("x"), 1, "hanode: x"}, {api.Refusal("w", "y", "d"), 3, "  do:   d"}, {&Quiet{Status: 4}, 4, ""},
		{context.DeadlineExceeded, 5, "timed out"},
	} {
		e, out, errOut := testEnv("")
		root := Group("t", "test", &cobra.Command{Use: "go", RunE: Run(func(context.Context, []string) error { return c.err })})
		if got := Execute(t.Context(), e, root, []string{"go"}); got != c.status || out.Len() > 0 || !strings.Contains(errOut.String(), c.says) || c.says == "" && errOut.Len() > 0 {
			t.Errorf("%v: exit %d, want %d; said %q", c.err, got, c.status, errOut.String())
		}
	}
}

func TestAnInterruptedCommandSaysSo(t *testing.T) {
	e, _, errOut := testEnv("")
	ctx, cancel := context.WithCancel(t.Context())
	root := Group("t", "test", &cobra.Command{Use: "go", RunE: Run(func(ctx context.Context, _ []string) error { cancel(); return ctx.Err() })})
	if got := Execute(ctx, e, root, []string{"go"}); got != 1 || !strings.Contains(errOut.String(), "interrupted") {
		t.Errorf("exit %d, %q", got, errOut.String())
	}
}

func TestAnswersAreReadLineByLine(t *testing.T) {
	e, _, _ := testEnv("yes\nno\ndb\n" + strings.Repeat("x", 1000))
	for i, want := range []bool{true, false} {
		if got, err := e.Ask("?"); got != want || err != nil {
			t.Errorf("answer %d: %v, %v", i, got, err)
		}
	}
	if ok, err := e.AskToType("db"); !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	if ok, err := e.Ask("?"); ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
}

func TestNobodyToAskIsWrongUsage(t *testing.T) {
	e, _, _ := testEnv("y\n")
	if err := e.MustAgree(false, "jump"); api.ExitStatus(err) != 2 {
		t.Errorf("got %v", err)
	}
	e.Interactive = true
	if err := e.MustAgree(false, "jump"); err != nil {
		t.Error(err)
	}
	if err := e.MustAgree(false, "jump"); api.ExitStatus(err) != 3 {
		t.Errorf("got %v", err)
	}
}

func TestTheUnitLetsApplicationsOutliveTheDaemon(t *testing.T) {
	u := Unit{Name: "hanode", Description: "d", Runtime: "hanode", Node: true, Exec: []string{"/usr/bin/hanode", "run", "--data", "/my data/100%"}}
	text := u.Text()
	for _, want := range []string{"Delegate=yes\n", "KillMode=process\n", "OOMScoreAdjust=-1000\n", "TimeoutStopSec=150\n", `ExecStart=/usr/bin/hanode run --data "/my data/100%%"` + "\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the unit lacks %q:\n%s", want, text)
		}
	}
	u.Node = false
	if strings.Contains(u.Text(), "KillMode") {
		t.Error("the witness has no children to outlive it")
	}
}

func TestAUnitThatSomebodyChangedIsNotOverwritten(t *testing.T) {
	root := t.TempDir()
	u := Unit{Name: "hanode", Exec: []string{"x"}}
	path, err := u.Install(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Install(root); err != nil {
		t.Errorf("the same unit again: %v", err)
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Install(root); err == nil {
		t.Error("overwrote a unit that somebody changed")
	}
}

package spec

import (
	"os"
	"testing"
)

func TestX(t *testing.T) {
	for _, f := range []string{"postgres", "pair"} {
		src, _ := os.ReadFile("testdata/valid/" + f + ".hcl")
		s, ds := Parse(f+".hcl", src)
		if ds != nil {
			t.Fatal(ds)
		}
		t.Logf("%+v", s)
		t.Logf("\n%s", Render(s))
	}
	_, ds := Parse("x.hcl", []byte(`service "db" {
  nodes = "a"
  stop_signal = "INT"
	prioritty = 3
  vip "10.0.0.255/24" {}
  vip = 3
  process "Foo Bar" {
    start = "/usr/bin/foo -x ${HOME}"
	start = "/usr/bin/foo -x"
    stop_signal = "SIGINT"
	standby = hot
	stop_timeout = 10
  }
  check "x" {
    tpc = "9"
  }
  check "y" {
    tcp = "5432"
	exec = ["psql"]
  }
}
`))
	t.Logf("\n%s", ds.Error())
}

package volume_test

import (
	"os/exec"
	"testing"

	"github.com/hanode/hanode/replication/volume"
)

// sh runs a shell script in a directory and gives its output.
func sh(t *testing.T, dir, script string) string {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "umask 022; "+script)
	cmd.Dir = "/"
	cmd.Env = append(cmd.Environ(), "D="+dir, "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return string(out)
}

func TestAnActiveVolumeIsADirectory(t *testing.T) {
	m := mount(t, accept(), volume.Active)
	got := sh(t, m.dir, `cd $D; echo hello >a; cat a; mkdir d; mv a d/b; ln d/b c; ln -s d/b s; cat s c; ls -i c d/b | awk '{print $1}' | uniq | wc -l
		ls -a; echo more >>c; cat d/b; rm c; stat -c %h d/b; rmdir d 2>&1 | grep -c 'not empty'; dd if=/dev/zero of=big bs=1M count=5 2>/dev/null; stat -c %s big; truncate -s 100 big; stat -c %s big; chmod 600 big; stat -c %a big`)
	want := "hello\nhello\nhello\n1\n.\n..\nc\nd\ns\nhello\nmore\n1\n1\n5242880\n100\n600\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

package lab

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/lab/world"
)

// office is three fresh machines at which somebody types what a document says: a and b for nodes, w for the witness, with the addresses of the quick
// start, an empty /etc/systemd/system, /var/lib and /srv of their own, and a systemctl that knows start, stop, restart, enable and disable.
type office struct {
	*testing.T
	ctx   context.Context
	world *world.World
	bin   string
	token string
	typed map[string]bool // commands, as the document has them
	count int
}

const shim = `#!/bin/sh
# systemctl for the lab: units are started from their files and found again by their pid.
verb=$1; shift; now=
[ "$1" = --now ] && { now=1; shift; }
unit=/etc/systemd/system/$1.service; pid=/run/unit-$1.pid
start() { [ -e "$pid" ] && kill -0 "$(cat $pid)" 2>/dev/null && return; mkdir -p /run/$1; sh -c "echo \$\$ > $pid; exec $(sed -n 's#^ExecStart=/usr/bin/#BIN/#p' $unit)" >> LOG/$1.log 2>&1 < /dev/null & }
stop() { p=$(cat $pid 2>/dev/null) || return 0; kill "$p" 2>/dev/null; while kill -0 "$p" 2>/dev/null; do sleep 0.05; done; rm -f $pid; }
case $verb in
enable) [ -e $unit ] || exit 1; [ -n "$now" ] && start $1 ;;
start) start $1 ;;
stop) stop $1 ;;
restart) stop $1; start $1 ;;
disable) ;;
status) [ -e "$pid" ] && kill -0 "$(cat $pid)" ;;
*) echo "systemctl $verb: not in the lab" >&2; exit 1 ;;
esac
exit $?
`

func openOffice(t *testing.T, ctx context.Context, bin string) *office {
	dir, err := chooseDir()
	must(t, err)
	w, err := world.Up(ctx, world.Config{Self: testSelf(t), Dir: dir, Links: 1, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	o := &office{T: t, ctx: ctx, world: w, bin: bin, typed: map[string]bool{}}
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range []string{nodeA, nodeB, witnessHost} {
				for _, log := range []string{"hanode", "hanode-witness"} {
					if text := w.Host(h).Tail(log, 3000); text != "" && !strings.Contains(text, "no such file") {
						t.Logf("%s on %s: %s", log, h, text)
					}
				}
			}
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	for i, name := range []string{nodeA, nodeB, witnessHost} {
		_, err := w.Add(ctx, world.Spec{Name: name, Nics: []world.Nic{{Link: 0, Prefix: fmt.Sprintf("10.0.0.%d/24", 11+i), MAC: fmt.Sprintf("02:00:00:00:00:%d", 11+i)}}})
		must(t, err)
		o.furnish(name)
	}
	return o
}

// furnish gives a machine that was switched on its own directories; what lies in its host's directory survives.
func (o *office) furnish(host string) {
	o.Helper()
	dir := o.world.Host(host).Dir()
	must(o.T, os.WriteFile(filepath.Join(dir, "systemctl"), []byte(strings.NewReplacer("LOG", filepath.Join(dir, "log"), "BIN", o.bin).Replace(shim)), 0o755))
	script := "set -e; for d in etc/systemd/system var/lib srv; do mkdir -p " + dir + "/$d; mount --bind " + dir + "/$d /$d; done; mkdir -p /srv/www; echo well > /srv/www/index.html"
	if out, exit := o.sh(host, script); exit != 0 {
		o.Fatalf("%s: %s", host, out)
	}
}

func (o *office) sh(host, script string) (string, int) {
	o.Helper()
	h := o.world.Host(host)
	res, err := h.Exec(o.ctx, world.Cmd{Argv: []string{"/bin/sh", "-c", script}, Dir: h.Dir(), Timeout: 60 * time.Second, Env: []string{
		"PATH=" + h.Dir() + ":" + o.bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + h.Dir(), "HANODE_CGROUP=" + h.Cgroup()}})
	if err != nil {
		o.Fatalf("on %s, %s: %v", host, script, err)
	}
	return string(res.Stdout) + string(res.Stderr), res.Exit
}

var tokenRE = regexp.MustCompile(`hn1-[A-Za-z0-9_-]+`)

// types runs a command on a machine; TOKEN is the last one that was printed, and 10.0.0.x stays what it is.
func (o *office) types(host, line string) string {
	o.Helper()
	out, exit := o.tries(host, line)
	if exit != 0 {
		o.Fatalf("on %s, %s: exit status %d\n%s", host, line, exit, out)
	}
	return out
}

func (o *office) tries(host, line string) (string, int) {
	o.Helper()
	o.count++
	o.typed[line] = true
	out, exit := o.sh(host, strings.ReplaceAll(line, "TOKEN", o.token))
	if exit == 2 && strings.Contains(out, "add --yes") { // a person would be asked, and says yes
		out, exit = o.sh(host, strings.ReplaceAll(line, "TOKEN", o.token)+" --yes")
	}
	if t := tokenRE.FindString(out); t != "" {
		o.token = t
	}
	return out, exit
}

// sees waits until a command on a machine prints something.
func (o *office) sees(host, line, words string, within time.Duration) string {
	o.Helper()
	out := ""
	for end := time.Now().Add(within); time.Now().Before(end); {
		if out, _ = o.sh(host, line); strings.Contains(out, words) {
			return out
		}
		must(o.T, sleep(o.ctx, 100*time.Millisecond))
	}
	o.Fatalf("on %s, %s does not say %q within %v:\n%s", host, line, words, within, out)
	return ""
}

// page is one section of a document, from its heading to the next of the same or a higher level.
type page struct {
	title, text string
}

func readPage(t *testing.T, file, title string) page {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	var out []string
	level := 0
	for _, l := range strings.Split(string(b), "\n") {
		head := strings.TrimLeft(l, "#")
		n := len(l) - len(head)
		switch {
		case n > 0 && strings.HasPrefix(head, " ") && level == 0 && strings.TrimSpace(head) == title:
			level = n
			continue
		case n > 0 && n <= level && strings.HasPrefix(head, " "):
			return page{title, strings.Join(out, "\n")}
		}
		if level > 0 {
			out = append(out, l)
		}
	}
	if level == 0 {
		t.Fatalf("%s has no page %q", file, title)
	}
	return page{title, strings.Join(out, "\n")}
}

// commands are those of the indented blocks of a page, without prompt and remark. A block with a screen in it is none.
func (p page) commands() []string {
	var out []string
	for _, l := range strings.Split(p.text, "\n") {
		l, ok := strings.CutPrefix(l, "    ")
		if !ok {
			continue
		}
		l, _, _ = strings.Cut(l, "   #")
		if _, after, ok := strings.Cut(l, "#  "); ok && len(l)-len(after) <= 4 {
			l = after
		}
		l = strings.TrimSpace(l)
		for _, word := range []string{"hanode ", "hanode-witness ", "systemctl ", "mv "} {
			if strings.HasPrefix(l, word) {
				out = append(out, l)
				break
			}
		}
	}
	return out
}

// has says whether the page has a command, in a block or between back-quotes.
func (p page) has(line string) bool {
	return strings.Contains(p.text, "`"+line+"`") || strings.Contains("\n"+p.text, "\n    "+line) || strings.Contains(p.text, "#  "+line)
}

package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/hanode/hanode/internal/lab/probe"
	"github.com/hanode/hanode/internal/lab/world"
)

// fakeHanode answers the commands that the lab gives, with a mover behind them that is as simple as wrong: its nodes
// share a directory, whoever sees the other's stamp grow old takes the address, and nothing fences. So a tour with it
// must find the two actives of a stopped daemon, and find nothing wrong where no fence is needed.
func fakeHanode(args []string) int {
	node, _ := os.Hostname()
	f := fake{node: node, dir: filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(os.Getenv("HANODE_SOCKET")))), "fake")}
	_ = os.MkdirAll(f.dir, 0o755)
	switch args[0] {
	case "init", "join":
		return 0
	case "token":
		fmt.Println(`{"decision":"D-1","token":{"token":"fake","role":"node"}}`)
	case "run":
		f.run()
	case "apply":
		b, _ := os.ReadFile(args[1])
		argv := regexp.MustCompile(`(?m)^\s*start\s*=\s*(\[.*\])$`).FindSubmatch(b)
		f.put("spec", string(argv[1]))
		f.put("active", "a 1")
	case "wait":
		for range 100 {
			if f.fresh("a") && f.fresh("b") {
				return 0
			}
			time.Sleep(20 * time.Millisecond)
		}
		return 5
	case "status":
		active, epoch := f.active()
		fmt.Printf(`{"services":[{"name":"echo","active":%q,"epoch":%d,"protection":"protected"}]}`, active, epoch)
	case "explain":
		active, _ := f.active()
		fmt.Printf(`{"sentence":"%s serves\n because the other was silent","decision":{"id":"D-7"}}`, active)
	case "switchover":
		_, epoch := f.active()
		f.put("active", fmt.Sprintf("nobody %d", epoch))
		time.Sleep(30 * time.Millisecond)
		f.put("active", fmt.Sprintf("%s %d", args[3], epoch+1))
		time.Sleep(30 * time.Millisecond)
	default:
		return 2
	}
	return 0
}

type fake struct {
	node, dir string
	app       *exec.Cmd
	dead      chan struct{}
}

func (f *fake) put(name, text string) {
	tmp := filepath.Join(f.dir, name+"."+f.node)
	_ = os.WriteFile(tmp, []byte(text), 0o644)
	_ = os.Rename(tmp, filepath.Join(f.dir, name))
}

func (f *fake) get(name string) string {
	b, _ := os.ReadFile(filepath.Join(f.dir, name))
	return string(b)
}

func (f *fake) active() (node string, epoch int) {
	_, _ = fmt.Sscan(f.get("active"), &node, &epoch)
	return node, epoch
}

func (f *fake) fresh(node string) bool {
	var stamp int64
	_, _ = fmt.Sscan(f.get("alive-"+node), &stamp)
	return int64(probe.Now())-stamp < int64(150*time.Millisecond)
}

func (f *fake) run() {
	var net world.Here
	mine := false
	for ; ; time.Sleep(5 * time.Millisecond) {
		if f.node == witnessHost {
			continue
		}
		well := f.keepApp()
		active, epoch := f.active()
		switch {
		case (active != f.node || !well) && mine:
			_ = net.DelAddr("eth0", vipNet)
			mine = false
		case active == f.node && well && !mine:
			_ = net.AddAddr("eth0", vipNet)
			_ = net.Announce("eth0", vipNet)
			mine = true
		case well && active == otherNode(f.node) && !f.fresh(active):
			f.put("active", fmt.Sprintf("%s %d", f.node, epoch+1))
		}
		if well {
			f.put("alive-"+f.node, fmt.Sprint(int64(probe.Now())))
		}
	}
}

// keepApp starts the application, and again 300 ms after it has ended.
func (f *fake) keepApp() bool {
	var argv []string
	if json.Unmarshal([]byte(f.get("spec")), &argv) != nil || len(argv) == 0 {
		return false
	}
	if f.app == nil {
		f.app, f.dead = exec.Command(argv[0], argv[1:]...), make(chan struct{})
		if err := f.app.Start(); err != nil {
			panic(err)
		}
		go func() {
			_ = f.app.Wait()
			time.Sleep(300 * time.Millisecond)
			close(f.dead)
		}()
	}
	select {
	case <-f.dead:
		f.app = nil
		return false
	default:
		return f.app.ProcessState == nil
	}
}

func isFake() bool {
	b := filepath.Base(os.Args[0])
	return len(os.Args) > 1 && (strings.HasPrefix(b, "fake-hanode") || b == "fake-witness")
}

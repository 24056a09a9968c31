package link_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster/link"
)

func TestOneLostLinkChangesNothing(t *testing.T) {
	_, a, b := pair(t, twoLinks)
	b.echo(link.Raft, nil)
	rs := through(a, b)
	keyedBoth(t, a, b)
	conns := []net.Conn{}
	for range 4 {
		conns = append(conns, dial(t, a, b, link.Raft))
	}
	stop, lost := make(chan struct{}), make(chan int)
	go func() { // a frame each 5 ms, each must come
		sent := 0
		for {
			select {
			case <-stop:
				lost <- sent
				return
			case <-time.After(5 * time.Millisecond):
				if a.Send(b.person.id, 1, []byte{byte(sent)}) == nil {
					sent++
				}
			}
		}
	}()
	time.Sleep(50 * time.Millisecond)
	cutAt := time.Now()
	rs[0][0].cut(true)
	rs[0][1].cut(true)
	within(t, 5*time.Second, "the link is down on both sides", func() bool { return a.up(b.person) == 1 && b.up(a.person) == 1 })
	t.Logf("link down after %v", time.Since(cutAt))
	for _, c := range conns { // those of the first link end, so that their users redial
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("data from nowhere")
		} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("a connection on the lost link stays: %v", err)
		}
	}
	start := time.Now()
	c := dial(t, a, b, link.Raft)
	ask(t, c, "over the other link")
	if took := time.Since(start); took > 500*time.Millisecond {
		t.Errorf("redial took %v", took)
	}
	time.Sleep(50 * time.Millisecond)
	close(stop)
	sent := <-lost
	within(t, 5*time.Second, "every frame came", func() bool { return len(b.got) == sent })
	if l := a.links(b.person); l[0].Up || !l[1].Up || l[0].Remote != rs[0][1].addr {
		t.Errorf("links %+v", l)
	}

	rs[0][0].cut(false)
	rs[0][1].cut(false)
	within(t, 5*time.Second, "the link is up again", func() bool { return a.up(b.person) == 2 })
	if l := a.links(b.person); !l[0].Damped || l[1].Damped {
		t.Errorf("a link that just came back is preferred: %+v", l)
	}
	ask(t, c, "still on the second link")
}

func TestALinkThatWorksInOneDirectionIsDown(t *testing.T) {
	_, a, b := pair(t, twoLinks)
	rs := through(a, b)
	keyedBoth(t, a, b)
	rs[1][1].cut(true) // a's frames on the second link do not reach b
	within(t, 5*time.Second, "down on both sides", func() bool { return a.up(b.person) == 1 && b.up(a.person) == 1 })
	la, lb := a.links(b.person)[1], b.links(a.person)[1]
	if la.Up || lb.Up || la.Heard > 100*time.Millisecond {
		t.Errorf("a, who hears: %+v\nb, who does not: %+v", la, lb)
	}
}

func TestDialTakesTheFirstLinkThatAnswers(t *testing.T) {
	_, a, b := pair(t, twoLinks)
	b.echo(link.Raft, nil)
	rs := through(a, b)
	rs[0][1].cut(true) // from the start: nothing is known of the links yet
	start := time.Now()
	ask(t, dial(t, a, b, link.Raft), "x")
	if took := time.Since(start); took > time.Second {
		t.Errorf("took %v", took)
	}
	rs[1][1].cut(true)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := a.Dial(ctx, b.person.id, link.Raft); err == nil {
		t.Error("connected through nothing")
	} else if time.Since(start) > 2*time.Second {
		t.Error("took longer than its context")
	}
}

func TestMembersWithDifferentNumbersOfLinksReachEachOther(t *testing.T) {
	w, a, _ := pair(t, twoLinks)
	c := w.start(w.person("w", 2), oneLink)
	introduce(a, c)
	keyedBoth(t, a, c)
	if n, m := len(a.links(c.person)), len(c.links(a.person)); n != 2 || m != 2 {
		t.Errorf("%d and %d paths, want 2", n, m)
	}
	a.Send(c.person.id, 1, []byte("x"))
	c.receive()
}

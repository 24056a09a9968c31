package lab

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/lab/probe"
)

// Measurement is one fault, as the clients had it. Milliseconds everywhere.
type Measurement struct {
	Name         string  `json:"name"`
	OutageMS     float64 `json:"outage_ms"`      // fault to the first good answer of the new active; not moved: an interruption over 50 ms, else 0
	GapMS        float64 `json:"gap_ms"`         // longest silence between the fault and its healing
	DualActiveMS float64 `json:"dual_active_ms"` // time in which two nodes answered, from before the fault until after the healing
	EpochBefore  uint64  `json:"epoch_before"`
	EpochAfter   uint64  `json:"epoch_after"`
	Explanation  string  `json:"explanation"`

	Title            string   `json:"title"`
	From             string   `json:"from"`  // who answered before
	To               string   `json:"to"`    // who answered at the end
	Moved            bool     `json:"moved"` // another node answered before the healing
	Recovered        bool     `json:"recovered"`
	StaleAnswers     int      `json:"stale_answers"`     // answers of an epoch after one of a newer epoch was seen
	AfterHealGapMS   float64  `json:"after_heal_gap_ms"` // longest silence after the healing
	ProtectedAfterMS float64  `json:"protected_after_ms"`
	NoiseMS          float64  `json:"noise_ms"`     // longest silence in the quiet second before the fault
	PlainGapMS       float64  `json:"plain_gap_ms"` // of a client with the kernel's own time-outs
	KeptGapMS        float64  `json:"kept_gap_ms"`  // of a client that keeps one connection
	Decision         string   `json:"decision,omitempty"`
	Verdict          string   `json:"verdict"`
	Problems         []string `json:"problems,omitempty"`
}

func ms(d time.Duration) float64 {
	return float64(d.Round(100*time.Microsecond)) / float64(time.Millisecond)
}

// limits by which a Measurement is judged.
type limits struct {
	outage    time.Duration // failover
	planned   time.Duration // gap of a switchover
	still     time.Duration // gap where nothing may move
	afterHeal time.Duration
}

// limitsOf doubles the 99th percentile that the profile promises, because the machine may be busy with other things.
func limitsOf(profile string) limits {
	p99 := map[string]time.Duration{"fastest": 350, "fast": 500, "normal": 1000, "wan": 2500}[profile]
	if p99 == 0 {
		p99 = 1000 // auto: whatever the machine can keep
	}
	return limits{outage: 2 * p99 * time.Millisecond, planned: 300 * time.Millisecond, still: probe.Blink, afterHeal: 300 * time.Millisecond}
}

// protectedWithin is how long the cluster may take to be ready for the next fault.
const protectedWithin = 60 * time.Second

// measure lets one fault happen and judges it. The error says that it could not be measured, or that the cluster was
// not protected again afterwards; the measurement holds what was seen in the latter case.
func (p *product) measure(ctx context.Context, f Fault, lim limits) (m Measurement, err error) {
	m = Measurement{Name: f.Name, Title: f.Title}
	if err := p.waitProtected(ctx, protectedWithin); err != nil {
		return m, err
	}
	now := probe.Now()
	p.bed.coll.Forget(now.Add(-2 * time.Second))
	waiting, cancel := context.WithTimeout(ctx, 5*time.Second)
	last, err := p.bed.coll.Await(waiting, client, now, nil)
	cancel()
	if err != nil {
		return m, fmt.Errorf("before %s the service does not answer, though it is said to be protected: %w", f.Name, err)
	}
	s := &scene{product: p, active: last.Node, standby: otherNode(last.Node)}
	before, err := p.status(ctx)
	if err != nil {
		return m, err
	}
	m.EpochBefore = before.epoch()
	if f.prepare != nil {
		if err := f.prepare(ctx, s); err != nil {
			return m, fmt.Errorf("prepare %s: %w", f.Name, err)
		}
	}
	if err := sleep(ctx, 1100*time.Millisecond); err != nil { // the quiet second
		return m, err
	}
	fault, heal, err := p.act(ctx, f, s, &m)
	if err != nil {
		return m, err
	}
	protected := p.waitProtected(ctx, protectedWithin)
	m.ProtectedAfterMS = ms(probe.Now().Sub(heal))
	if err := sleep(ctx, time.Second); err != nil {
		return m, err
	}
	end := probe.Now()
	if err := p.bed.settled(ctx, end); err != nil {
		return m, err
	}
	p.bed.fill(&m, fault, heal, end)
	if after, err := p.status(ctx); err == nil {
		m.EpochAfter = max(m.EpochAfter, after.epoch())
	}
	m.judge(f, lim)
	if protected != nil {
		m.fail("%v", protected)
		return m, fmt.Errorf("after %s: %w", f.Name, protected)
	}
	return m, nil
}

// act injects and heals; in between it asks those who are well for the sentence.
func (p *product) act(ctx context.Context, f Fault, s *scene, m *Measurement) (fault, heal cluster.Instant, err error) {
	fault = probe.Now() // before the injecting command, so that its own time counts
	if f.inject != nil {
		if err := f.inject(ctx, s); err != nil {
			return fault, fault, fmt.Errorf("inject %s: %w", f.Name, err)
		}
	}
	if err := sleep(ctx, fault.Add(f.Watch).Sub(probe.Now())); err != nil {
		return fault, fault, err
	}
	well := []string{s.standby, s.active}
	if !f.Moves {
		well = []string{s.active, s.standby}
	}
	var why error
	if m.Decision, m.Explanation, why = p.explain(ctx, well...); why != nil {
		m.Explanation = "no explanation: " + why.Error()
	}
	if st, err := p.status(ctx, well[0]); err == nil {
		m.EpochAfter = st.epoch()
		if m.EpochAfter == m.EpochBefore && m.EpochAfter > 0 {
			m.Decision, m.Explanation = "", fmt.Sprintf("nothing was moved: %s stays active; %s", st.active(), st.outlook())
		}
	}
	heal = probe.Now()
	if f.heal != nil {
		if err := f.heal(ctx, s); err != nil {
			return fault, heal, fmt.Errorf("heal %s: %w", f.Name, err)
		}
	}
	return fault, heal, nil
}

// fill takes the figures from the clients' records.
func (b *bed) fill(m *Measurement, fault, heal, end cluster.Instant) {
	during := b.judge(probe.Window{Fault: fault, End: heal})
	after := b.judge(probe.Window{Fault: heal, End: end})
	whole := b.judge(probe.Window{Fault: fault, End: end})
	m.From, m.To, m.Moved, m.Recovered = during.Before, after.After, during.Moved, during.Served()
	m.OutageMS, m.GapMS, m.NoiseMS = ms(during.Outage), ms(during.Gap), ms(during.Noise)
	m.DualActiveMS, m.StaleAnswers = ms(whole.Dual), whole.Stale
	// The silence that began before the healing is the fault's; what is left is the healing's.
	m.AfterHealGapMS = ms(after.Gap)
	if !m.Recovered && after.GapAt < 0 {
		m.AfterHealGapMS = ms(after.Gap + after.GapAt)
	}
	m.EpochBefore = max(m.EpochBefore, during.EpochBefore)
	m.EpochAfter = max(m.EpochAfter, whole.EpochAfter)
	m.PlainGapMS = ms(probe.LongestSilence(b.coll.Since(probe.PlainName, fault.Add(-time.Second)), fault, end))
	m.KeptGapMS = ms(probe.LongestSilence(b.coll.Since(probe.KeptName, fault.Add(-time.Second)), fault, end))
}

func (m *Measurement) fail(format string, args ...any) {
	m.Problems = append(m.Problems, fmt.Sprintf(format, args...))
	m.Verdict = "fail"
}

// judge applies the rules: never two actives; where something must move it does so in time; where nothing must, nothing
// does; and nobody is hurt by the healing.
func (m *Measurement) judge(f Fault, lim limits) {
	m.Verdict = "pass"
	if m.DualActiveMS > 0 {
		m.fail("two nodes answered at the same time for %.1f ms", m.DualActiveMS)
	}
	if m.StaleAnswers > 0 {
		m.fail("%d answers came from an epoch that had been succeeded", m.StaleAnswers)
	}
	switch {
	case !m.Recovered:
		m.fail("the service did not answer again before the healing")
	case f.Moves && !m.Moved:
		m.fail("%s did not take over", otherNode(m.From))
	case f.Plan && m.GapMS > ms(lim.planned):
		m.fail("the gap of the switchover was %.1f ms, more than %v", m.GapMS, lim.planned)
	case f.Moves && m.OutageMS > ms(lim.outage):
		m.fail("the outage was %.1f ms, more than %v", m.OutageMS, lim.outage)
	case !f.Moves && m.Moved:
		m.fail("the service moved to %s, and there was no need to", otherNode(m.From))
	case !f.Moves && m.GapMS > max(ms(lim.still), 2*m.NoiseMS):
		m.fail("a gap of %.1f ms, more than %v, though nothing had to move", m.GapMS, lim.still)
	}
	if f.Moves && m.Moved && m.EpochBefore > 0 && m.EpochAfter <= m.EpochBefore {
		m.fail("the service moved, but its epoch did not grow: %d, then %d", m.EpochBefore, m.EpochAfter)
	}
	if m.AfterHealGapMS > max(ms(lim.afterHeal), 2*m.NoiseMS) {
		m.fail("a gap of %.1f ms after the healing, more than %v", m.AfterHealGapMS, lim.afterHeal)
	}
}

// Config is for Demo and Bench.
type Config struct {
	Hanode  string   // the node's binary
	Witness string   // the witness's; "" is the file witness beside Hanode
	Self    []string // argv prefix that leads to Child; nil is this binary with the word "demo"
	Dir     string   // for the hosts' state, which must not exist; "" chooses one
	Keep    bool     // leave Dir, to read the logs
	Profile string   // "" is fast for root and normal for others
	Faults  []string // names; nil: the usual ones
	Data    bool     // Demo: then the service with data
	Runs    int      // Bench: of each fault; default 5

	watch time.Duration // instead of the faults' own; tests are in a hurry

	Peers    []string // Bench: "keepalived", "pacemaker", with a mode of theirs after a colon if wanted
	PeersDir string   // their scripts
}

// session is a cluster that can be replaced when a fault has left it unusable.
type session struct {
	cfg  Config
	bed  *bed
	prod *product
}

func (s *session) open(ctx context.Context) (err error) { return s.openWith(ctx, nil) }

// openWith lets the caller change how the product is run before it is.
func (s *session) openWith(ctx context.Context, change func(*product)) (err error) {
	dir := s.cfg.Dir
	if s.bed, err = newBed(ctx, s.cfg.Self, dir, s.cfg.Keep, nil); err != nil {
		return err
	}
	s.prod = &product{bed: s.bed, hanode: s.cfg.Hanode, witness: s.cfg.Witness, profile: s.cfg.Profile}
	if change != nil {
		change(s.prod)
	}
	if err := s.prod.setup(ctx); err != nil {
		return fmt.Errorf("the cluster did not come up: %w", err)
	}
	if err := s.bed.startProbes(ctx); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := s.bed.coll.Await(waiting, client, 0, nil); err != nil {
		return fmt.Errorf("the cluster is said to be protected, but no client gets an answer from %s:%d: %w", VIP, Port, err)
	}
	return nil
}

func (s *session) close() error {
	if s.bed == nil {
		return nil
	}
	err := s.bed.close()
	s.bed, s.prod = nil, nil
	return err
}

// renew throws the cluster away and makes a new one.
func (s *session) renew(ctx context.Context) error {
	err := s.close()
	if s.cfg.Keep && s.cfg.Dir != "" {
		return errors.Join(errors.New("the cluster is left as it is, because its directory was to be kept"), err)
	}
	return errors.Join(err, s.open(ctx))
}

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/api"
)

// metrics are the figures for Prometheus. What counts is counted as it happens; everything else is read when it is asked for.
type metrics struct {
	registry *prometheus.Registry
	renew    prometheus.Histogram
	moves    *prometheus.CounterVec
}

// figures are those that are read. Each has a reason: an alert, or a graph that an operator looks at after a bad night.
type figures struct {
	info, role, protected, epoch, lease, remaining                   *prometheus.Desc
	leads, term, commit, applied, fsync                              *prometheus.Desc
	late, up, link, rtt, drops, alarms, quorum, loopDrops, malformed *prometheus.Desc
}

func newFigures() figures {
	return figures{
		info:      prometheus.NewDesc("hanode_info", "Always 1.", []string{"version", "node", "cluster", "profile"}, nil),
		role:      prometheus.NewDesc("hanode_service_role", "1 for the role that this node has for the service: active, standby or none.", []string{"service", "role"}, nil),
		protected: prometheus.NewDesc("hanode_service_protected", "1 if the service survives the next failure by itself, 0.5 if it serves and would not, 0 if nobody serves.", []string{"service"}, nil),
		epoch:     prometheus.NewDesc("hanode_service_epoch", "Epoch of the service, as this node knows it.", []string{"service"}, nil),
		lease:     prometheus.NewDesc("hanode_lease_seconds", "Length of a lease of the profile in force.", nil, nil),
		remaining: prometheus.NewDesc("hanode_lease_remaining_seconds", "Rest of the lease that this node holds.", []string{"service"}, nil),
		leads:     prometheus.NewDesc("hanode_raft_leader", "1 if this node leads the group.", nil, nil),
		term:      prometheus.NewDesc("hanode_raft_term", "Term of the group; it grows with every election.", nil, nil),
		commit:    prometheus.NewDesc("hanode_raft_commit_index", "Newest entry of the log that is committed, as this node knows it.", nil, nil),
		applied:   prometheus.NewDesc("hanode_raft_applied_index", "Newest entry of the log that was applied here.", nil, nil),
		fsync:     prometheus.NewDesc("hanode_raft_fsync_p99_seconds", "p99 of the last 512 writes to the log, each made durable.", nil, nil),
		late:      prometheus.NewDesc("hanode_lateness_p999_seconds", "p99.9 of how late the timer of the deciding loop rang in the last 5 minutes.", nil, nil),
		up:        prometheus.NewDesc("hanode_member_up", "1 if this node hears the member.", []string{"member", "role"}, nil),
		link:      prometheus.NewDesc("hanode_link_up", "1 if the path to the member works in both directions.", []string{"member", "address"}, nil),
		rtt:       prometheus.NewDesc("hanode_link_rtt_seconds", "Smoothed round trip on the path.", []string{"member", "address"}, nil),
		drops:     prometheus.NewDesc("hanode_gate_packets_total", "Packets that the kernel's gate has seen, by what became of them.", []string{"what"}, nil),
		alarms:    prometheus.NewDesc("hanode_alarms", "Alarms that stand on this node.", []string{"severity"}, nil),
		quorum:    prometheus.NewDesc("hanode_quorum", "1 if the voters that this node hears are a majority.", nil, nil),
		loopDrops: prometheus.NewDesc("hanode_frames_dropped_total", "Frames that were dropped because the deciding loop did not take them in time.", nil, nil),
		malformed: prometheus.NewDesc("hanode_frames_malformed_total", "Frames of members that could not be read.", nil, nil),
	}
}

func newMetrics(n *Node) *metrics {
	m := &metrics{registry: prometheus.NewRegistry(),
		renew: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "hanode_renew_round_trip_seconds", Help: "Time from the sending of a renewal to a voter's answer.",
			Buckets: []float64{.0002, .0005, .001, .002, .005, .01, .025, .05, .1, .25}}),
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hanode_service_moves_total", Help: "Grants of the service since this daemon started, by kind: failover, switchover, failback, start, return."},
			[]string{"service", "kind"})}
	m.registry.MustRegister(m.renew, m.moves, reader{n, newFigures()})
	return m
}

// granted counts a move that the log has told. It runs on the loop.
func (m *metrics) granted(service string, cmd *state.Command, o state.Outcome) {
	if cmd.Grant != nil && o.Result == lock.Accepted && cmd.Decision != nil {
		m.moves.WithLabelValues(service, cmd.Decision.Kind).Inc()
	}
}

// reader answers with the figures of now.
type reader struct {
	n *Node
	f figures
}

func (reader) Describe(ch chan<- *prometheus.Desc) {
	// Unchecked: the labels depend on the spec and the members.
}

func (r reader) Collect(ch chan<- prometheus.Metric) {
	n := r.n
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	yes := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	s := n.m.Group().Stats()
	gauge(r.f.leads, yes(s.State.Mine))
	gauge(r.f.term, float64(s.State.Term))
	gauge(r.f.commit, float64(s.Commit))
	gauge(r.f.applied, float64(s.Applied))
	gauge(r.f.fsync, s.FsyncP99.Seconds())
	late, _ := n.late.Quantile(n.m.Now(), 0.999)
	gauge(r.f.late, late.Seconds())
	for what, v := range n.gate.Stats() {
		count(r.f.drops, v, what)
	}
	drops, malformed := n.m.Drops()
	count(r.f.loopDrops, drops)
	count(r.f.malformed, malformed)
	st, err := backend{n}.Status(context.Background(), api.StatusQuery{Local: true})
	if err != nil {
		return // the daemon is ending
	}
	self := n.dir.Identity.Name
	gauge(r.f.info, 1, n.cfg.Version, self, st.Cluster.Name, st.Cluster.Profile)
	gauge(r.f.lease, st.Cluster.LeaseMs.D().Seconds())
	gauge(r.f.quorum, yes(st.Cluster.Quorum))
	for _, m := range st.Members {
		gauge(r.f.up, yes(m.Name == self || m.State != api.MemberSilent && m.State != api.MemberDown), m.Name, m.Role)
		for _, l := range m.Links {
			gauge(r.f.link, yes(l.State == "up"), m.Name, l.Address)
			gauge(r.f.rtt, l.RTTMs.D().Seconds(), m.Name, l.Address)
		}
	}
	for i := range st.Services {
		v := &st.Services[i]
		role := "none"
		switch self {
		case v.Active:
			role = "active"
		case v.Standby:
			role = "standby"
		}
		for _, one := range []string{"active", "standby", "none"} {
			gauge(r.f.role, yes(one == role), v.Name, one)
		}
		gauge(r.f.protected, map[string]float64{api.Protected: 1, api.Degraded: 0.5}[v.Protection], v.Name)
		gauge(r.f.epoch, float64(v.Epoch), v.Name)
		if role == "active" {
			gauge(r.f.remaining, v.LeaseRemainingMs.D().Seconds(), v.Name)
		}
	}
	bySeverity := map[string]int{"info": 0, "warn": 0, "crit": 0}
	for _, a := range st.Alarms {
		bySeverity[a.Severity]++
	}
	for severity, k := range bySeverity {
		gauge(r.f.alarms, float64(k), severity)
	}
}

// handler answers GET /metrics.
func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2, Timeout: 5 * time.Second})
}

// serveMetrics answers over HTTP on a loopback address, if one is configured: the figures tell much about the machine, and HTTP does not know
// who asks.
func (n *Node) serveMetrics(ctx context.Context) error {
	if n.cfg.Metrics == "" {
		return nil
	}
	l, err := net.Listen("tcp", n.cfg.Metrics)
	if err != nil {
		return fmt.Errorf("--metrics %s: %w", n.cfg.Metrics, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", n.metrics.handler())
	srv := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("--metrics %s: %w", n.cfg.Metrics, err)
	}
	return nil
}

// checkMetrics refuses an address that is not of this machine alone.
func checkMetrics(addr string) error {
	if addr == "" {
		return nil
	}
	ap, err := netip.ParseAddrPort(addr)
	if err != nil || !ap.Addr().IsLoopback() {
		return fmt.Errorf("--metrics %s: choose a loopback address and a port, as 127.0.0.1:9743; let a proxy with TLS in front of it serve others", addr)
	}
	return nil
}

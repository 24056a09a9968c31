package cluster

import (
	"fmt"
	"time"
)

// Timing is everything that a profile sets. Source: the table "Timings" of the protocol (docs/protocol.md, section 3);
// there is no other place for these numbers.
type Timing struct {
	Profile string
	TTL     time.Duration // how long a lease lasts from the sending of its renewal
	Renew   time.Duration // between two renewals, and between two beats
	Margin  time.Duration // m: added to the voters' wait
	Kick    time.Duration // silence after which the standby makes itself a candidate for the leadership
}

// DriftPercent is rho: how much faster or slower than real time a member's CLOCK_BOOTTIME may run.
const DriftPercent = 1

// MarginFor is m for a TTL: that of the slowest profile whose TTL is not below it. It grows with the TTL and is derived
// from nothing else, so that every voter computes the same wait from a TTL alone, whatever it knows of the spec.
func MarginFor(ttl time.Duration) time.Duration {
	for _, p := range profiles {
		if ttl <= p.TTL {
			return p.Margin
		}
	}
	return max(profiles[len(profiles)-1].Margin, ttl/30)
}

// Wait is P: how long a voter that acknowledged a renewal with this ttl must wait before it may promise its epoch away:
// TTL x (1+rho) + m.
func Wait(ttl time.Duration) time.Duration {
	return ttl + ttl*DriftPercent/100 + MarginFor(ttl)
}

// Wait is P for t.
func (t Timing) Wait() time.Duration { return Wait(t.TTL) }

// Suspend is the silence after which the active holds new writes: 60 % of the TTL.
func (t Timing) Suspend() time.Duration { return t.TTL * 60 / 100 }

// Freeze is the silence after which the application's cgroup is frozen: 84 % of the TTL.
func (t Timing) Freeze() time.Duration { return t.TTL * 84 / 100 }

// Profiles, fastest first.
var profiles = []Timing{
	{"fastest", 140 * time.Millisecond, 25 * time.Millisecond, 10 * time.Millisecond, 75 * time.Millisecond},
	{"fast", 250 * time.Millisecond, 50 * time.Millisecond, 20 * time.Millisecond, 150 * time.Millisecond},
	{"normal", 600 * time.Millisecond, 100 * time.Millisecond, 30 * time.Millisecond, 300 * time.Millisecond},
	{"wan", 1500 * time.Millisecond, 250 * time.Millisecond, 50 * time.Millisecond, 750 * time.Millisecond},
}

// ProfileNames lists the profiles, fastest first, without "auto".
func ProfileNames() []string {
	var out []string
	for _, p := range profiles {
		out = append(out, p.Profile)
	}
	return out
}

// Profile returns the timings of a named profile ("auto" is not one: it is resolved by measuring).
func Profile(name string) (Timing, error) {
	for _, p := range profiles {
		if p.Profile == name {
			return p, nil
		}
	}
	return Timing{}, fmt.Errorf("profile %q: choose one of %v", name, ProfileNames())
}

// WithLease returns t with another TTL, the other timings in the same proportion as in t. It refuses a TTL that t's
// own rules cannot carry.
func (t Timing) WithLease(ttl time.Duration) (Timing, error) {
	if ttl < 100*time.Millisecond || ttl > 60*time.Second {
		return t, fmt.Errorf("lease %v: choose 100ms to 60s", ttl)
	}
	scale := func(d time.Duration) time.Duration {
		return time.Duration(int64(d) * int64(ttl) / int64(t.TTL)).Round(time.Millisecond)
	}
	return Timing{Profile: t.Profile, TTL: ttl, Renew: scale(t.Renew), Margin: MarginFor(ttl), Kick: scale(t.Kick)}, nil
}

package link

import "sync/atomic"

// Counters is what an endpoint saw since it began. Everything below Datagrams* counts what was refused.
type Counters struct {
	DatagramsSent      uint64 `json:"datagrams_sent"` // copies, one per path
	DatagramsReceived  uint64 `json:"datagrams_received"`
	DatagramsMalformed uint64 `json:"datagrams_malformed"`
	DatagramsNoKey     uint64 `json:"datagrams_no_key"` // key unknown or too old
	DatagramsForged    uint64 `json:"datagrams_forged"` // authentication failed
	DatagramsReplayed  uint64 `json:"datagrams_replayed"`
	SendErrors         uint64 `json:"send_errors"`
	Handshakes         uint64 `json:"handshakes"`
	HandshakesFailed   uint64 `json:"handshakes_failed"` // TLS, certificate, malformed or slow hello
	HandshakesRefused  uint64 `json:"handshakes_refused"`
	Flooded            uint64 `json:"flooded"` // closed unread because too many handshakes were under way
	SecondRuns         uint64 `json:"second_runs"`
	Keyings            uint64 `json:"keyings"`
	LinkDowns          uint64 `json:"link_downs"`
	HandOvers          uint64 `json:"hand_overs"` // connections given to volume servers
	HandOversRefused   uint64 `json:"hand_overs_refused"`
	JoinsRefused       uint64 `json:"joins_refused"`
	JoinGuesses        uint64 `json:"join_guesses"`
}

// counters holds the live values.
type counters struct {
	sent, received, malformed, noKey, forged, replayed, sendErrors       atomic.Uint64
	handshakes, failed, refused, flooded, secondRuns, keyings, linkDowns atomic.Uint64
	joinsRefused, joinGuesses, handOvers, handOversRefused               atomic.Uint64
}

// Counters returns a snapshot.
func (e *Endpoint) Counters() Counters {
	c := &e.count
	return Counters{
		DatagramsSent: c.sent.Load(), DatagramsReceived: c.received.Load(), DatagramsMalformed: c.malformed.Load(),
		DatagramsNoKey: c.noKey.Load(), DatagramsForged: c.forged.Load(), DatagramsReplayed: c.replayed.Load(),
		SendErrors: c.sendErrors.Load(), Handshakes: c.handshakes.Load(), HandshakesFailed: c.failed.Load(),
		HandshakesRefused: c.refused.Load(), Flooded: c.flooded.Load(), SecondRuns: c.secondRuns.Load(),
		Keyings: c.keyings.Load(), LinkDowns: c.linkDowns.Load(), JoinsRefused: c.joinsRefused.Load(),
		JoinGuesses: c.joinGuesses.Load(), HandOvers: c.handOvers.Load(), HandOversRefused: c.handOversRefused.Load(),
	}
}

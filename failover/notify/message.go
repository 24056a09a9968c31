package notify

import (
	"encoding/json"
	"strings"
	"time"
	"unicode"
)

// maxText bounds each text of a message, in bytes.
const maxText = 1024

// Message is what a program reads on its stdin. Its keys are only ever added to.
type Message struct {
	State    string `json:"state"` // raised, repeated, over
	Code     string `json:"code"`
	Severity string `json:"severity"`
	Object   string `json:"object"`
	Text     string `json:"text"`
	Remedy   string `json:"remedy"`
	Since    string `json:"since,omitempty"` // RFC 3339
	Cluster  string `json:"cluster,omitempty"`
	Node     string `json:"node,omitempty"` // that tells
	Alert    string `json:"alert"`
}

// message makes the environment and the input of a call.
func message(cfg *Config, j *Job) (env []string, input []byte) {
	m := Message{State: j.State, Code: plain(j.Alarm.Code), Severity: plain(j.Alarm.Severity), Object: plain(j.Alarm.Object), Text: plain(j.Alarm.Text), Remedy: plain(j.Alarm.Remedy),
		Cluster: cfg.Cluster, Node: cfg.Node, Alert: j.Alert}
	if j.State == Over {
		m.Text = "over: " + m.Text
	}
	if !j.Alarm.Since.IsZero() {
		m.Since = j.Alarm.Since.Format(time.RFC3339Nano)
	}
	for _, kv := range [][2]string{{"STATE", m.State}, {"CODE", m.Code}, {"SEVERITY", m.Severity}, {"OBJECT", m.Object}, {"TEXT", m.Text}, {"REMEDY", m.Remedy}} {
		env = append(env, "HANODE_ALARM_"+kv[0]+"="+kv[1])
	}
	input, err := json.Marshal(m)
	if err != nil {
		panic("notify: " + err.Error()) // strings only
	}
	return env, append(input, '\n')
}

// plain makes a text fit for an environment (no NUL), a terminal and one line.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), 2*maxText)], "?"))
	return strings.ToValidUTF8(s[:min(len(s), maxText)], "")
}

// Package wire is the bytes of replicated memory: the messages between an application and the server of its service (app.go), and
// the frames between two members' servers (peer.go). It is pure; docs/memory.md describes the first for those who write a library for another
// language. Every length is checked against a bound before anything is allocated for it.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

var le = binary.LittleEndian

// Version is the version of the application's protocol.
const Version = 1

// AppHeader is the size of a message's header; MaxApp bounds a message.
const (
	AppHeader = 32
	MaxApp    = 64 << 10
)

// Kind is what a message is. An answer has the kind of the question with bit 15 set, and its id.
type Kind uint16

// Questions of the application, and notices of the server (Role, Image: id 0).
const (
	Hello      Kind = 1
	Open       Kind = 2
	Checkpoint Kind = 3
	Append     Kind = 4
	Grow       Kind = 5
	Take       Kind = 6
	Replay     Kind = 7
	Record     Kind = 8 // answers to Replay, before its own
	Close      Kind = 9
	Ready      Kind = 10
	Heartbeat  Kind = 11
	Fail       Kind = 12
	Role       Kind = 20
	Image      Kind = 21

	Answer Kind = 1 << 15
)

// Roles, as the deadline page has them.
const (
	Idle    uint16 = 0
	Standby uint16 = 1
	Active  uint16 = 2
	Fenced  uint16 = 4
)

// Flags of Open.
const (
	OpenDiscard   uint32 = 1 // begin with an empty region, whatever is held
	OpenAnyLayout uint32 = 2 // give the image also if its layout version is another one
	OpenBring     uint32 = 4 // the memory comes with the message: an application that goes on after the server's restart
)

// Status of an answer; its body is a sentence unless it is OK.
type Status uint32

const (
	OK        Status = 0
	Invalid   Status = 1 // the question makes no sense
	Foreign   Status = 2 // not a process of the service
	NotActive Status = 3 // fenced, standby, or the lease is over
	Busy      Status = 4 // the region belongs to another process, or is open already
	TooBig    Status = 5
	Layout    Status = 6
	Unknown   Status = 7 // no such region
	LogFull   Status = 8
	Broken    Status = 9 // the server cannot do it
	Ended     Status = 10
)

// App is a message.
type App struct {
	Kind   Kind
	Flags  uint16
	ID     uint64
	Region uint32
	Status Status
	Value  uint64
	Body   []byte
}

// AppendApp appends m's bytes to b:
//
//	 0  4  length of the whole message
//	 4  2  kind
//	 6  2  flags
//	 8  8  id of the question, chosen by the application; 0 in notices
//	16  4  region: the handle from Open
//	20  4  status
//	24  8  value
//	32     body
func AppendApp(b []byte, m *App) []byte {
	b = le.AppendUint32(b, uint32(AppHeader+len(m.Body)))
	b = le.AppendUint16(b, uint16(m.Kind))
	b = le.AppendUint16(b, m.Flags)
	b = le.AppendUint64(b, m.ID)
	b = le.AppendUint32(b, m.Region)
	b = le.AppendUint32(b, uint32(m.Status))
	b = le.AppendUint64(b, m.Value)
	return append(b, m.Body...)
}

// ParseApp reads one message, which is exactly b. Body is a part of b.
func ParseApp(b []byte, m *App) error {
	if len(b) < AppHeader {
		return fmt.Errorf("a message of %d bytes: at least %d", len(b), AppHeader)
	}
	if n := le.Uint32(b); int64(n) != int64(len(b)) {
		return fmt.Errorf("a message of %d bytes says that it has %d", len(b), n)
	}
	*m = App{Kind: Kind(le.Uint16(b[4:])), Flags: le.Uint16(b[6:]), ID: le.Uint64(b[8:]), Region: le.Uint32(b[16:]), Status: Status(le.Uint32(b[20:])), Value: le.Uint64(b[24:]), Body: b[AppHeader:]}
	return nil
}

// Opening is the body of Open: layout 4, flags 4, name. The message's value is the size.
type Opening struct {
	Layout uint32
	Flags  uint32
	Name   string
}

// Append see AppendApp.
func (o *Opening) Append(b []byte) []byte {
	b = le.AppendUint32(b, o.Layout)
	b = le.AppendUint32(b, o.Flags)
	return append(b, o.Name...)
}

// Parse see ParseApp.
func (o *Opening) Parse(b []byte) error {
	if len(b) < 8 || len(b) > 8+255 {
		return errors.New("the body of an open is 8 bytes and a name")
	}
	*o = Opening{Layout: le.Uint32(b), Flags: le.Uint32(b[4:]), Name: string(b[8:])}
	return nil
}

// Info is what the server says of a region: the body of the answers to Open, Take and Grow.
type Info struct {
	Epoch, Gen uint64 // of the newest image
	Number     uint64 // 0: there is none yet
	AgeNs      uint64 // since it was complete on this member
	Size       uint64 // of the region, in bytes
	Max        uint64 // most that it may grow to
	Stage      uint64 // size of the staging memory
	LogSeq     uint64 // the image contains the records up to here
	LastSeq    uint64 // the last record
	EveryNs    uint64 // timed only
	Layout     uint32 // of the image
	Mode       uint32 // 1 sync, 2 timed, 3 async
}

// InfoSize is the size of an Info.
const InfoSize = 10*8 + 8

// Append see AppendApp.
func (i *Info) Append(b []byte) []byte {
	for _, v := range [...]uint64{i.Epoch, i.Gen, i.Number, i.AgeNs, i.Size, i.Max, i.Stage, i.LogSeq, i.LastSeq, i.EveryNs} {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, i.Layout)
	return le.AppendUint32(b, i.Mode)
}

// Parse see ParseApp.
func (i *Info) Parse(b []byte) error {
	if len(b) < InfoSize {
		return fmt.Errorf("the description of a region has %d bytes: at least %d", len(b), InfoSize)
	}
	for k, p := range [...]*uint64{&i.Epoch, &i.Gen, &i.Number, &i.AgeNs, &i.Size, &i.Max, &i.Stage, &i.LogSeq, &i.LastSeq, &i.EveryNs} {
		*p = le.Uint64(b[8*k:])
	}
	i.Layout, i.Mode = le.Uint32(b[80:]), le.Uint32(b[84:])
	return nil
}

// Part is one region of a checkpoint: Blocks blocks that lie in its staging memory from Offset on: a table of 8 bytes per block (number of the
// block 4, zero 4; ascending), then, from the next page on, the blocks.
type Part struct {
	Region uint32
	Blocks uint32
	Offset uint64
}

// MaxParts bounds the parts of a checkpoint.
const MaxParts = 16

// AppendParts makes the body of Checkpoint.
func AppendParts(b []byte, parts []Part) []byte {
	for _, p := range parts {
		b = le.AppendUint32(b, p.Region)
		b = le.AppendUint32(b, p.Blocks)
		b = le.AppendUint64(b, p.Offset)
	}
	return b
}

// ParseParts reads the body of Checkpoint.
func ParseParts(b []byte, parts []Part) ([]Part, error) {
	if len(b) == 0 || len(b)%16 != 0 || len(b) > 16*MaxParts {
		return nil, fmt.Errorf("a checkpoint of %d bytes: 16 for each of 1 to %d regions", len(b), MaxParts)
	}
	for ; len(b) > 0; b = b[16:] {
		parts = append(parts, Part{le.Uint32(b), le.Uint32(b[4:]), le.Uint64(b[8:])})
	}
	return parts, nil
}

// Package replication holds the words of the data path: the operation on a volume, its record, and the history by which two
// copies find out where they parted. It is pure: no I/O, no clock, no goroutine.
//
// A record is the same bytes in the journal of the active, on the wire and in the journal of the standby, so that a standby
// appends what it received. See docs/replication.md, section 2.
package replication

import "fmt"

// FileID is the identity of an inode of a volume: given by the active, never used again, the same on every node, shown as
// st_ino. 0 is no inode.
type FileID uint64

// RootID is the id of each volume's root directory.
const RootID FileID = 1

// Kind says what an operation does. Values are part of the format.
type Kind uint8

const (
	Create    Kind = 1  // ID of type Mode (and Rdev, or Data as the target of a symbolic link) at (Parent, Name); Parent 0: without a name (O_TMPFILE), in limbo
	Link      Kind = 2  // ID gets the name (Parent, Name); FlagLimbo: its limbo name goes (linkat of an O_TMPFILE)
	Unlink    Kind = 3  // (Parent, Name), which is ID, goes; FlagOpen: ID is still open on the active and stays in limbo until Forget
	Rmdir     Kind = 4  // (Parent, Name), the empty directory ID, goes
	Rename    Kind = 5  // (Parent, Name), which is ID, becomes (NewParent, NewName), where Before was; Flags: RENAME_EXCHANGE (2), RENAME_WHITEOUT is not supported; FlagOpen: Before stays in limbo
	Write     Kind = 6  // Data at Off of ID
	SetAttr   Kind = 7  // the fields of ID that Valid names
	Fallocate Kind = 8  // fallocate(2) on ID with mode Flags at Off for Len
	SetXattr  Kind = 9  // Name = Data on ID
	DelXattr  Kind = 10 // Name goes from ID
	Forget    Kind = 11 // ID, unlinked and no longer open on the active, goes
	Mark      Kind = 12 // no effect on the tree: the first record of a new epoch or generation
)

var kindText = [...]string{Create: "create", Link: "link", Unlink: "unlink", Rmdir: "rmdir", Rename: "rename", Write: "write",
	SetAttr: "setattr", Fallocate: "fallocate", SetXattr: "setxattr", DelXattr: "delxattr", Forget: "forget", Mark: "mark"}

func (k Kind) String() string {
	if int(k) < len(kindText) && kindText[k] != "" {
		return kindText[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Flags of an operation beside those of the system call, which use the low 16 bits.
const (
	FlagOpen  uint32 = 1 << 16 // an inode that loses its last name is still open on the active
	FlagLimbo uint32 = 1 << 17
)

// Valid bits of SetAttr.
const (
	ValidMode  uint32 = 1 << 0
	ValidUID   uint32 = 1 << 1
	ValidGID   uint32 = 1 << 2
	ValidSize  uint32 = 1 << 3
	ValidAtime uint32 = 1 << 4
	ValidMtime uint32 = 1 << 5
)

// Op is one operation on one volume of a service. Which fields count depends on Kind.
type Op struct {
	Kind      Kind
	Volume    uint8 // index of the volume in the service, from 1
	ID        FileID
	Parent    FileID
	Name      string
	NewParent FileID
	NewName   string
	Before    FileID // the id that was at the target name before; 0: none
	Flags     uint32
	Valid     uint32
	Mode      uint32
	UID, GID  uint32
	Rdev      uint32
	Off       int64
	Len       int64 // Fallocate: length; SetAttr: the size
	Atime     int64 // ns since 1970
	Time      int64 // ns since 1970: mtime of what the operation changes (of the directories too, for namespace operations)
	Data      []byte
}

// MaxData bounds Op.Data.
const MaxData = 1 << 20

// MaxName bounds each name, as NAME_MAX (limits.h); an xattr's name is bounded alike.
const MaxName = 255

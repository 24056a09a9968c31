// Package volume is the FUSE file system of a volume: the directory that applications see. Each operation that changes something is
// gate → log → apply → answer; everything else is answered from the backing tree. It gives the kernel the file ids of the volume as
// node ids, so it keeps no tree of its own: what it remembers are open handles and the inodes that operations are at work on.
//
// It never orders operations by itself (the Log gives positions), never writes to the backing tree but by Tree.Apply, and never
// decides who is active: it is told by SetRole and asks the Gate at each request.
//
// # Why nothing is seen or acknowledged too early
//
// An operation is applied to the tree only after Log.Wait has returned nil: in mode sync, when the in-sync members have accepted it. Readers read
// the tree (through the server, or by passthrough from the backing file), so they see an operation only after that (D3). Writers bypass the
// kernel's page cache (FOPEN_DIRECT_IO): with a cached writer the kernel would show new bytes to readers before the server has answered.
// What is stored through a shared mapping is seen by others on this host at once, as memory is, and is acknowledged by msync or fsync.
// After the application the gate is asked again, so that nothing is acknowledged after the deadline.
//
// # Order
//
// Operations on one inode or directory are applied in the order in which the Log took them. Writes to one file overlap while they wait; a
// node's ticket counter lines up their application. Everything else holds its nodes exclusively from the first look to the answer; the kernel's
// own locks on directories mean that this costs no concurrency that it would allow. Nodes are locked in the order: directories by id, then other inodes by id;
// that cannot deadlock, because the kernel holds the locks of all directories concerned, ancestors first, while it waits for the answer.
//
// # How a file is opened (see modes.go)
//
// The kernel lets one inode be open either in passthrough or in cached mode, and lets a writer of a passthrough inode map the backing file past
// the server. So read-only opens are passed through unless a handle is open that could map the file for writing (O_RDWR); while such a handle is open,
// readers go through the kernel's cache, which direct writes invalidate.
//
// # The process that serves a volume must not use it
//
// A process that uses its own mount can deadlock the Go runtime. Tests re-execute themselves for the client's side.
package volume

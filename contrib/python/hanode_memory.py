"""Replicated memory for applications in Python: what is in a region when a checkpoint has returned is in the memory of the standby too.

    app = hanode_memory.App()                        # the service's socket, from HANODE_MEMORY
    calls = app.open("calls", 1 << 20)               # its content is the newest image
    app.wait_active()                                # a hot standby waits here, and takes each image as it arrives
    for req in requests:
        calls.mem[0:8] = apply(req)
        calls.checkpoint()                           # the standby holds it
        answer(req)

Standard library only, Linux only. One thread at a time per App. Write to a region only while active. docs/memory.md describes the protocol.
"""

import array
import ctypes
import fcntl
import mmap
import os
import select
import socket
import struct
import time

BLOCK = 4096
IDLE, STANDBY, ACTIVE, FENCED = 0, 1, 2, 4
OK, INVALID, FOREIGN, NOT_ACTIVE, BUSY, TOO_BIG, LAYOUT, UNKNOWN, LOG_FULL, BROKEN, AWAY, TIMEOUT = range(12)
DISCARD, ANY_LAYOUT = 1, 2
AUTO, KERNEL, DECLARED, COMPARE = range(4)

_HELLO, _OPEN, _CHECKPOINT, _APPEND, _GROW, _TAKE, _REPLAY, _RECORD, _CLOSE, _READY, _HEARTBEAT, _FAIL = range(1, 13)
_ROLE, _IMAGE, _ANSWER = 20, 21, 0x8000
_HEADER = struct.Struct("<IHHQIIQ")
_INFO = struct.Struct("<10QII")
_PART = struct.Struct("<IIQ")


class Error(Exception):
    """What a function could not do: status says which of the words above, the text names region and remedy."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def _room(blocks):
    return (blocks * 8 + BLOCK - 1) // BLOCK * BLOCK


def _blocks(size):
    return (size + BLOCK - 1) // BLOCK


class App:
    """A connection to the server of a service's memory."""

    def __init__(self, path=None):
        self.path = path or os.environ.get("HANODE_MEMORY", "")
        if not self.path:
            raise Error(BROKEN, "HANODE_MEMORY is not set: start this program as a process of a service that has memory, or name the socket")
        self._id, self._page, self._pending, self.regions, self._tickets, self.role, self._was = 0, None, 0, {}, {}, IDLE, IDLE
        self._connect()

    def _connect(self):
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._sock.connect(self.path)
        except OSError as e:
            self._sock.close()
            raise Error(AWAY, f"connect to the memory of the service at {self.path}: {e}") from e
        (_, _, role, _, _, _, self.epoch), body, fds = self._ask(_HELLO, value=1, body=b"python")
        self.role, self.service = role, body.decode()
        if fds and self._page is None:
            self._page = mmap.mmap(fds[0], 4096, mmap.MAP_SHARED, mmap.PROT_READ)
            if self._page[:8] != b"HANODEP1":
                raise Error(BROKEN, "the deadline page is not of this layout: use a library of the server's version")
        for fd in fds:
            os.close(fd)

    def redial(self):
        """After AWAY: connects again and brings the regions along."""
        self._sock.close()
        for t in self._tickets.values():
            t[0] = t[0] or (AWAY, 0, "the server is away")
        self._connect()
        role, self.role = self.role, IDLE
        if self._was == ACTIVE and role == STANDBY:  # what it holds may be older than this memory
            self._sock.close()
            raise Error(AWAY, "the new server does not lead yet: call redial again")
        for r in list(self.regions.values()):
            r._open(bring=True)
        self.role, self._was = role, IDLE
        self._settle()

    def _away(self, why):
        if self.role == ACTIVE:
            self._was = ACTIVE
        self.role = IDLE
        return Error(AWAY, f"service {getattr(self, 'service', '?')}: the server of its memory is away ({why}); the memory stands, call redial")

    def _send(self, kind, flags=0, region=0, value=0, body=b"", fd=None):
        self._id += 1
        b = _HEADER.pack(_HEADER.size + len(body), kind, flags, self._id, region, 0, value) + body
        try:
            if fd is None:
                self._sock.send(b)
            else:
                self._sock.sendmsg([b], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        except OSError as e:
            raise self._away(e) from e
        return self._id

    def _recv(self, timeout=None):
        if timeout is not None and not select.select([self._sock], [], [], timeout)[0]:
            return None
        try:
            b, fds, _, _ = socket.recv_fds(self._sock, 65536, 4)
        except OSError as e:
            raise self._away(e) from e
        if len(b) < _HEADER.size:
            raise self._away("it closed the connection")
        h = _HEADER.unpack_from(b)
        if h[0] != len(b):
            raise self._away("a message lies about its length")
        return h, b[_HEADER.size:], fds

    def _got(self, msg):
        (_, kind, flags, ident, _, status, value), body, fds = msg
        for fd in fds:
            os.close(fd)
        if kind == _ROLE:
            self.epoch = value
            if flags == ACTIVE and self.role != ACTIVE:
                self._pending |= 1  # not active before every region has the newest image
            else:
                self.role = flags
        elif kind == _IMAGE:
            self._pending |= 2
        elif kind == _CHECKPOINT | _ANSWER and ident in self._tickets:
            t = self._tickets[ident]
            t[0] = (status, value, body.decode(errors="replace"))
            if status:
                for r, ids, _ in t[1]:
                    r._owed.update(ids)
        elif ident == 0 and status:
            raise self._away(body.decode(errors="replace"))

    def _ask(self, kind, **question):
        ident = self._send(kind, **question)
        while True:
            msg = self._recv()
            if msg[0][3] == ident and msg[0][1] != _RECORD | _ANSWER:
                if msg[0][5]:
                    raise Error(msg[0][5], msg[1].decode(errors="replace"))
                return msg
            self._got(msg)

    def _settle(self):
        while self._pending:
            what, self._pending = self._pending, 0
            if self.role != ACTIVE:
                for r in list(self.regions.values()):
                    r._take(0)
            if what & 1:
                self.role = ACTIVE

    def fileno(self):
        """Readable: call poll."""
        return self._sock.fileno()

    def poll(self, timeout=0):
        """Takes notices: the role, and images while standby. False if there were none within the time (seconds)."""
        msg = self._recv(timeout)
        if msg is None:
            return False
        while msg is not None:
            self._got(msg)
            self._settle()
            msg = self._recv(0)
        return True

    def wait_active(self, timeout=None):
        """Waits until this process is active and every region has the newest image; the epoch."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            self._settle()
            if self.role == ACTIVE:
                return self.epoch
            if self.role == FENCED:
                raise Error(NOT_ACTIVE, f"service {self.service}: fenced in epoch {self.epoch}")
            if end is not None and time.monotonic() > end:
                raise Error(TIMEOUT, "not active within the time")
            self.poll(1 if end is None else max(0, min(1, end - time.monotonic())))

    def may_act(self):
        """Whether this process may act at this very moment. Ask before each act."""
        if self.role != ACTIVE:
            return False
        if self._page is None:
            return True
        for _ in range(100):
            n = self._page[16:24]
            at = 64 + 64 * (n[0] & 1)
            (deadline,), (state,) = struct.unpack_from("<q", self._page, at + 8), struct.unpack_from("<I", self._page, at + 32)
            if self._page[16:24] == n:
                return state == ACTIVE and time.clock_gettime_ns(time.CLOCK_BOOTTIME) < deadline
        return False

    def ready(self, epoch):
        """Tells the daemon that this process has taken its role in this epoch."""
        self._ask(_READY, value=epoch)
        self._settle()

    def heartbeat(self):
        """Tells the daemon that this process is well."""
        self._ask(_HEARTBEAT)
        self._settle()

    def fail(self, why):
        """Tells the daemon that this process cannot go on, and why."""
        self._ask(_FAIL, body=why.encode()[:1024])
        self._settle()

    def open(self, name, size, layout=0, flags=0, tracking=AUTO):
        """A region of the service; its content is the newest image, or zero."""
        r = Region(self, name, size, layout, flags, tracking)
        self.regions[r._no] = r
        self._settle()
        return r

    def start(self, *regions):
        """Makes one image of the regions as they are now, and returns at once a ticket for wait."""
        self._settle()
        if not any(t[0] is None for t in self._tickets.values()):
            for r in regions:
                r._used = 0
        done, parts = [], b""
        try:
            for r in regions:
                ids, off = r._copy()
                done.append((r, ids, off))
                parts += _PART.pack(r._no, len(ids), off)
            ident = self._send(_CHECKPOINT, body=parts)
        except Error:
            for r, ids, _ in done:
                r._owed.update(ids)
            raise
        self._tickets[ident] = [None, done]
        return ident

    def wait(self, ticket):
        """Returns when every member that takes part in protection holds the image, with its number."""
        try:
            while self._tickets[ticket][0] is None:
                self._got(self._recv())
        except Error:
            for r, ids, _ in self._tickets.pop(ticket)[1]:
                r._owed.update(ids)
            raise
        status, value, text = self._tickets.pop(ticket)[0]
        if status:
            raise Error(status, text)
        return value

    def checkpoint(self, *regions):
        """One image of several regions; returns when it is held."""
        return self.wait(self.start(*regions))

    def close(self):
        """Ends the connection. Regions must not be touched any more."""
        self._sock.close()
        for r in list(self.regions.values()):
            r._unmap()
        self.regions = {}


class Region:
    """A named piece of memory: mem is an mmap object of the most that it may have, size says how much of it counts."""

    def __init__(self, app, name, size, layout, flags, tracking):
        self.app, self.name, self.size, self._layout, self._flags = app, name, size, layout, flags
        self.mem = self._stage = self._kernel = None
        self._owed, self._marked, self._last, self._used = set(), set(), None, 0
        self._open()
        self._tracking = tracking
        if tracking in (AUTO, KERNEL):
            try:
                self._kernel = _Kernel(self.mem)
                self._tracking = KERNEL
            except OSError as e:
                if tracking == KERNEL:
                    raise Error(BROKEN, f"region {name}: the kernel cannot track changes (needs Linux 6.7 and userfaultfd): {e}; declare ranges, or compare") from e
                self._tracking = COMPARE
        self._clean()

    def _open(self, bring=False):
        flags = (self._flags & ANY_LAYOUT | 4) if bring else self._flags
        body = struct.pack("<II", self._layout, flags) + self.name.encode()
        h, b, fds = self.app._ask(_OPEN, value=self.size, body=body, fd=self._live if bring else None)
        self._no = h[4]
        self._info(b)
        if self._stage is not None:
            self._stage.close()
        self._stage, self._used = mmap.mmap(fds[1], self.stage_size), 0
        os.close(fds[1])
        if bring:
            os.close(fds[0])
            self._owed.update(range(_blocks(self.size)))  # what the server holds may be older
        else:
            self._live = fds[0]
            size = _blocks(self.max) * BLOCK
            self.mem = _map(self._live, size)

    def _info(self, b):
        v = _INFO.unpack_from(b)
        self.image, self.size, self.max, self.stage_size, self.layout = v[2], v[4], v[5], v[6], v[10]

    def _clean(self):
        self._marked.clear()
        n = _blocks(self.size) * BLOCK
        if self._kernel:
            self._kernel.protect(0, n)
        elif self._tracking == COMPARE:
            self._last = bytearray(self.mem[:n])

    def mark(self, off, n):
        """Declares that n bytes from off on were, or will be, written before the next checkpoint (DECLARED only)."""
        self._marked.update(range(off // BLOCK, (off + n - 1) // BLOCK + 1))

    def _changed(self):
        n = _blocks(self.size)
        if self._kernel:
            return self._kernel.scan(n)
        if self._tracking == DECLARED:
            ids, self._marked = self._marked, set()
            return ids
        ids = []
        for b in range(n):
            now = self.mem[b * BLOCK:(b + 1) * BLOCK]
            if now != self._last[b * BLOCK:(b + 1) * BLOCK]:
                self._last[b * BLOCK:(b + 1) * BLOCK] = now
                ids.append(b)
        return ids

    def _copy(self):
        owed, self._owed = self._owed, set()
        n = _blocks(self.size)
        ids = sorted(b for b in owed.union(self._changed()) if b < n)
        if not ids:
            return ids, 0
        need = _room(len(ids)) + len(ids) * BLOCK
        if self._used + need > self.stage_size:  # wait until all that lies there was taken
            for t in self.app._tickets.values():
                while t[0] is None:
                    self.app._got(self.app._recv())
            self._used = 0
        off = self._used
        self._used += need
        self._stage[off:off + 8 * len(ids)] = b"".join(struct.pack("<II", b, 0) for b in ids)
        at = off + _room(len(ids))
        for b in ids:
            self._stage[at:at + BLOCK] = self.mem[b * BLOCK:(b + 1) * BLOCK]
            at += BLOCK
        return ids, off

    def checkpoint(self):
        """Returns when every member that takes part in protection holds the region as it is now; the image's number."""
        return self.app.checkpoint(self)

    def start(self):
        """See App.start."""
        return self.app.start(self)

    def _take(self, every):
        _, b, _ = self.app._ask(_TAKE, flags=every, region=self._no)
        self._info(b)
        self._owed.clear()
        self._clean()

    def restore(self):
        """Throws away what was written since the newest image."""
        self._take(1)

    def grow(self, size):
        """Makes the region larger, where it is."""
        before = _blocks(self.size) * BLOCK
        _, b, _ = self.app._ask(_GROW, region=self._no, value=size)
        self._info(b)
        after = _blocks(self.size) * BLOCK
        if self._kernel and after > before:
            self._kernel.protect(before, after)
        elif self._tracking == COMPARE:
            self._last.extend(bytes(after - before))

    def append(self, record):
        """Adds a record to the message log beside the region; returns when it is held."""
        if len(record) > 32768:
            raise Error(TOO_BIG, f"region {self.name}: a record of {len(record)} bytes: at most 32768")
        self.app._ask(_APPEND, region=self._no, body=bytes(record))
        self.app._settle()

    def replay(self):
        """The records since the newest image. Call it when the process has become active."""
        ident = self.app._send(_REPLAY, region=self._no)
        out = []
        while True:
            msg = self.app._recv()
            if msg[0][3] != ident:
                self.app._got(msg)
            elif msg[0][1] == _RECORD | _ANSWER:
                out.append(msg[1])
            elif msg[0][5]:
                raise Error(msg[0][5], msg[1].decode(errors="replace"))
            else:
                return out

    def release(self):
        """Gives the region back."""
        self.app._ask(_CLOSE, region=self._no)
        self._unmap()

    def _unmap(self):
        self.app.regions.pop(self._no, None)
        if self._kernel:
            self._kernel.close()
        self._stage.close()
        os.close(self._live)
        self.mem = None


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


def _map(fd, size):
    """Memory as a writable memoryview: mmap.mmap refuses to map more than the file has, and a region grows into its mapping."""
    at = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    if at is None or at == ctypes.c_void_p(-1).value:
        raise Error(BROKEN, f"map {size} bytes: {os.strerror(ctypes.get_errno())}")
    mem = (ctypes.c_ubyte * size).from_address(at)
    return memoryview(mem).cast("B")


class _Kernel:
    """Tracking by the kernel; values from include/uapi/linux/userfaultfd.h and fs.h."""

    def __init__(self, mem):
        self._base, size = ctypes.addressof(mem.obj), len(mem)
        if os.uname().machine != "x86_64" or mmap.PAGESIZE != BLOCK:
            raise OSError("not for this machine")
        self._uffd = _libc.syscall(323, os.O_CLOEXEC | os.O_NONBLOCK | 1)  # userfaultfd
        if self._uffd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        self._pagemap = -1
        try:
            self._ioctl(self._uffd, 0xC018AA3F, struct.pack("<3Q", 0xAA, 1 << 0 | 1 << 12 | 1 << 13 | 1 << 15, 0))
            self._ioctl(self._uffd, 0xC020AA00, struct.pack("<4Q", self._base, size, 2, 0))
            self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._vec = (ctypes.c_uint64 * (3 * 512))()
            self.scan(1)
        except OSError:
            self.close()
            raise

    def _ioctl(self, fd, request, arg):
        b = bytearray(arg)
        n = fcntl.ioctl(fd, request, b, True)
        return n, b

    def protect(self, start, end):
        self._ioctl(self._uffd, 0xC018AA06, struct.pack("<3Q", self._base + start, end - start, 1))

    def scan(self, blocks):
        ids, at, end = [], self._base, self._base + blocks * BLOCK
        while at < end:
            n, b = self._ioctl(self._pagemap, 0xC0606610, struct.pack("<12Q", 96, 3, at, end, 0, ctypes.addressof(self._vec), 512, 0, 0, 2, 0, 2))
            for i in range(n):
                ids.extend(range((self._vec[3 * i] - self._base) // BLOCK, (self._vec[3 * i + 1] - self._base) // BLOCK))
            walked = struct.unpack_from("<Q", b, 32)[0]
            if walked <= at:
                raise OSError("PAGEMAP_SCAN makes no progress")
            at = walked
        return ids

    def close(self):
        os.close(self._uffd)
        if self._pagemap >= 0:
            os.close(self._pagemap)

"""Lets the conformance suite (replication/memory/conformance_test.go) speak to the Python library: one command a line, one answer a line."""

import struct
import sys
import time

import hanode_memory as hm

app, regions = None, {}


def do(cmd, name, args):
    global app
    if cmd == "dial":
        app = hm.App(name)
        return app.service
    if cmd == "open":
        size, layout, flags, track = map(int, args)
        regions[name] = app.open(name, size, layout, flags, track)
        return str(regions[name].size)
    r = regions.get(name)
    if cmd == "put":
        off, v = map(int, args)
        r.mem[off:off + 8] = struct.pack("<Q", v)
        r.mark(off, 8)
    elif cmd == "get":
        app.poll(0)
        return str(struct.unpack_from("<Q", r.mem, int(args[0]))[0])
    elif cmd == "checkpoint":
        app.checkpoint(r, *(regions[a] for a in args))
    elif cmd == "async":
        tickets = []
        for i in range(20):
            r.mem[0:8] = struct.pack("<Q", int(args[0]) + i)
            r.mark(0, 8)
            tickets.append(r.start())
        numbers = [app.wait(t) for t in tickets]
        if numbers != sorted(set(numbers)):
            raise hm.Error(hm.BROKEN, f"numbers {numbers}")
    elif cmd == "append":
        r.append(args[0].encode())
    elif cmd == "replay":
        return "".join(rec.hex() + "," for rec in r.replay())
    elif cmd == "grow":
        r.grow(int(args[0]))
    elif cmd == "restore":
        r.restore()
    elif cmd == "release":
        regions.pop(name).release()
    elif cmd == "role":
        app.poll(0.05)
        return f"{app.role} {app.epoch}"
    elif cmd == "active":
        app.wait_active(10)
    elif cmd == "mayact":
        return str(int(app.may_act()))
    elif cmd == "redial":
        for _ in range(500):
            try:
                app.redial()
                break
            except hm.Error as e:
                if e.status != hm.AWAY:
                    raise
            time.sleep(0.01)
    elif cmd == "ready":
        app.ready(app.epoch)
    elif cmd == "heartbeat":
        app.heartbeat()
    elif cmd == "fail":
        app.fail(name)
    else:
        raise hm.Error(0, f"unknown command {cmd}")
    return ""


for line in sys.stdin:
    words = line.split()
    if words[0] == "quit":
        break
    try:
        print("ok", do(words[0], (words + [""])[1], words[2:]), flush=True)
    except hm.Error as e:
        print("err", e.status, e, flush=True)

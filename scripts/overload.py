#!/usr/bin/env python3
"""Starts a server of the built-in model, finds what it can take, then sends four times as many requests for a while, at
random times and whether or not it answers. Fails if a refusal is not 429 or 503 with Retry-After, if one comes later than
50 ms after its request was sent, if goodput falls by more than a tenth, or memory grows.

    python3 scripts/overload.py --binary target/release/kvant --seconds 120

One thread sends all and adds little load of its own; the system's clock of each packet tells when an answer came, however
late this thread wakes up. Goodput is what the server generated after a second of warming up: whatever it takes, it answers
whole, and that is checked. The speed of a machine of others drifts, so overload comes in slices, each between two of just
as much as the server can take, and is compared with those. What other programs took is told: over 5 % goodput says little,
because their time is missing from it. Talks to 127.0.0.1 only. Prints one JSON object.
"""

import argparse
import collections
import json
import os
import random
import re
import select
import signal
import socket
import struct
import time

from soak import Server

SEQUENCES = 8
WAITING = 16
TOKENS = 400
TIMES = 4
SLICES = 6
BODY = json.dumps({"prompt": "The whale", "max_tokens": TOKENS, "ignore_eos": True})
REQUEST = (f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n"
           f"\r\n{BODY}").encode()
WHOLE = f'"completion_tokens":{TOKENS}'.encode()
SO_TIMESTAMPNS = 35  # Linux: a packet's arrival comes with its bytes
BOUND_SECONDS = 0.05
GENERATED = "vllm:generation_tokens_total"


class Client:
    """A connection with one request at a time."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.text, self.sent, self.took = b"", 0, None

    def send(self):
        self.text, self.took = b"", None
        self.sent = time.time_ns()
        self.socket.sendall(REQUEST)

    def read(self):
        """The status once the answer is whole, else none; an end before it is an error."""
        piece, extra, _, _ = self.socket.recvmsg(65536, 64)
        if not piece:
            raise ConnectionError(f"the connection ended within an answer: {self.text[:100]!r}")
        if self.took is None:
            came = time.time_ns()
            for level, kind, value in extra:
                if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                    seconds, part = struct.unpack("qq", value[:16])
                    came = seconds * 10**9 + part
            self.took = (came - self.sent) / 1e9
        self.text += piece
        head, end, rest = self.text.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not end or len(rest) < int(length.group(1)):
            return None
        return int(head.split(b" ", 2)[1])


class Load:
    """So many clients that ask again when they are answered, or so many requests a second."""

    def __init__(self, server, seconds, clients=0, rate=0.0):
        self.server, self.seconds, self.clients, self.rate = server, seconds, clients, rate
        self.poll = select.epoll()
        self.idle, self.busy = [], {}
        self.statuses, self.troubles, self.refusals, self.sizes = collections.Counter(), [], [], []
        self.late = 0.0

    def ask(self):
        client = self.idle.pop() if self.idle else None
        if client is None:
            client = Client(self.server.port)
            self.poll.register(client.socket, select.EPOLLIN)
        self.busy[client.socket.fileno()] = client
        client.send()

    def take(self, number):
        client = self.busy.get(number)
        if client is None:  # the server ends a silent connection
            gone = next(one for one in self.idle if one.socket.fileno() == number)
            self.idle.remove(gone)
            self.poll.unregister(gone.socket)
            return gone.socket.close()
        status = client.read()
        if status is None:
            return None
        del self.busy[number]
        self.idle.append(client)
        self.statuses[status] += 1
        if status in (429, 503) and b"\r\nretry-after: " in client.text.lower():
            self.refusals.append(client.took)
        elif status != 200 or WHOLE not in client.text:
            self.troubles.append(client.text[:300].decode(errors="replace"))
        return None

    def run(self):
        """Tokens a second, and what other programs took of the machine, in percent."""
        draw = random.Random(1)
        start = time.monotonic()
        warm, (machine, ours) = None, taken(self.server)
        end, due, look = start + self.seconds, start, start
        for _ in range(self.clients):
            self.ask()
        while (now := time.monotonic()) < end:
            while self.rate and due <= now:
                self.late = max(self.late, now - due)
                self.ask()
                due += draw.expovariate(self.rate)
            if warm is None and now > start + 1:
                warm = time.monotonic(), self.server.metric(GENERATED)
            if look <= now:
                self.sizes.append(self.server.rss())
                look = now + 0.5
            for number, _ in self.poll.poll(max(min(due if self.rate else end, look, end) - now, 0)):
                self.take(number)
            while self.clients > len(self.busy):
                self.ask()
        since, already = warm
        good = (self.server.metric(GENERATED) - already) / (time.monotonic() - since)
        machine, ours = (now - then for now, then in zip(taken(self.server), (machine, ours)))
        others = 100 * max(machine - ours, 0) / (time.monotonic() - start) / os.cpu_count()
        # What is under way ends with its connection.
        for client in [*self.busy.values(), *self.idle]:
            client.socket.close()
        return round(good), round(others, 1)


def taken(server):
    """Seconds that the machine has worked, and those of the server and of this program."""
    tick = os.sysconf("SC_CLK_TCK")
    with open("/proc/stat", encoding="ascii") as stat:
        user, nice, system, _, _, irq, soft, steal = map(int, stat.readline().split()[1:9])
    with open(f"/proc/{server.child.pid}/stat", encoding="ascii") as stat:
        ours = sum(map(int, stat.read().rpartition(")")[2].split()[11:13]))
    own = os.times()
    return (user + nice + system + irq + soft + steal) / tick, ours / tick + own.user + own.system


def settled(server):
    while server.metric("vllm:num_requests_running") or server.metric("vllm:num_requests_waiting"):
        time.sleep(0.05)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--seconds", type=float, default=120)
    options = arguments.parse_args()
    server = Server(options.binary, ["--sequences", str(SEQUENCES), "--set", f"scheduler.waiting_requests={WAITING}"])
    # Full, and not refused even where all answers end at once.
    clients, slice_seconds = SEQUENCES + WAITING // 4, options.seconds / SLICES
    short = max(slice_seconds / 2, 3)

    def run(load):
        done = load.run()
        settled(server)
        return done

    run(Load(server, short, clients))
    full = [run(Load(server, short, clients))]
    offered = TIMES * full[0][0] / TOKENS
    loads, over = [], []
    for _ in range(SLICES):
        loads.append(Load(server, slice_seconds, rate=offered))
        over.append(run(loads[-1]))
        full.append(run(Load(server, short, clients)))
    peaks = [(before[0] + after[0]) / 2 for before, after in zip(full, full[1:])]
    total = lambda field: [one for load in loads for one in getattr(load, field)]
    statuses, troubles = sum((load.statuses for load in loads), collections.Counter()), total("troubles")
    refusals = sorted(total("refusals"))
    at = lambda part: round(1e3 * refusals[min(int(len(refusals) * part), len(refusals) - 1)], 1) if refusals else None
    sizes = total("sizes")
    tenth = max(len(sizes) // 10, 1)
    mean = lambda part: sum(part) / len(part)
    report = {
        "requests_per_second": {"capacity": round(full[0][0] / TOKENS, 1), "offered": round(offered, 1)},
        "statuses": statuses,
        "troubles": troubles[:10],
        "refusal_ms": {"median": at(0.5), "p99": at(0.99), "most": at(1)},
        "refusals_over_50_ms": sum(took > BOUND_SECONDS for took in refusals),
        "tokens_per_second": {"full": [good for good, _ in full], "overload": [good for good, _ in over]},
        "goodput_of_peak": round(sum(good for good, _ in over) / sum(peaks), 3),
        "rss_change_percent": round(100 * (mean(sizes[-tenth:]) / mean(sizes[tenth:2 * tenth]) - 1), 2),
        "client_late_ms": round(1e3 * max(load.late for load in loads), 1),
        "taken_by_others_percent": max(others for _, others in full + over),
    }
    server.child.send_signal(signal.SIGTERM)
    report["exit_code"] = server.child.wait(timeout=60)
    report["passed"] = (not troubles and bool(refusals) and report["refusals_over_50_ms"] == 0
                        and report["goodput_of_peak"] >= 0.9 and abs(report["rss_change_percent"]) <= 5
                        and report["exit_code"] == 0)
    print(json.dumps(report, indent=1))
    raise SystemExit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()

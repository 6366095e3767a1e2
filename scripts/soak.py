#!/usr/bin/env python3
"""Starts a server of the built-in model and treats it badly for a while: clients that leave, bursts, prompts
that do not fit, readers that stall. Fails if a stream hangs, health is ever away, memory grows, or a page is lost.

    python3 scripts/soak.py --binary target/release/kvant --minutes 30

Talks to 127.0.0.1 only. Prints one JSON object.
"""

import argparse
import atexit
import collections
import http.client
import json
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

HUNG_SECONDS = 60  # keep-alive comments come every 15 s
WORDS = "the whale was upon the sea and all the men in it looked over a long grey wave ".split()


def installed(package):
    """The program of a Python package, put into target/PACKAGE if it is not there."""
    place = pathlib.Path(__file__).resolve().parent.parent / "target" / package
    program = place / "venv" / "bin" / package
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
        subprocess.run([program.with_name("pip"), "install", "--quiet", "--disable-pip-version-check", package], check=True)
    return program


class Server:
    def __init__(self, binary, flags):
        command = [binary, "serve", "--model", "tiny", "--port", "0", "--log-level", "warn", *flags]
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        atexit.register(self.child.kill)
        line = self.child.stdout.readline()
        match = re.match(r"listening on http://127\.0\.0\.1:(\d+)", line)
        if not match:
            raise SystemExit(f"the server does not listen: {line!r}")
        self.port = int(match.group(1))

    def rss(self):
        with open(f"/proc/{self.child.pid}/status", encoding="ascii") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) * 1024

    def threads(self):
        return len(list(pathlib.Path(f"/proc/{self.child.pid}/task").iterdir()))

    def get(self, path, timeout=10):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metric(self, name):
        _, page = self.get("/metrics")
        return float(re.search(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", page, re.M).group(1))


class Soak:
    def __init__(self, server, end, seed):
        self.server, self.end, self.seed = server, end, seed
        self.counts = collections.Counter()
        self.troubles = []
        self.lock = threading.Lock()

    def note(self, what):
        with self.lock:
            self.counts[what] += 1

    def trouble(self, what):
        with self.lock:
            self.counts["trouble"] += 1
            if len(self.troubles) < 20:
                self.troubles.append(what)

    def open(self, body, buffer=None):
        text = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        stream = socket.socket()
        if buffer:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        stream.settimeout(HUNG_SECONDS)
        stream.connect(("127.0.0.1", self.server.port))
        stream.sendall(head.encode() + text)
        return stream

    def read(self, stream, bytes_max=None):
        """The status, and whether the answer came to its end."""
        got = b""
        while bytes_max is None or len(got) < bytes_max:
            piece = stream.recv(65536)
            if not piece:
                break
            got += piece
        status = int(got.split(b" ", 2)[1]) if got.startswith(b"HTTP/1.1 ") else 0
        return status, b"[DONE]" in got or b"\"finish_reason\":\"" in got

    def body(self, draw, tokens, stream, n=1):
        prompt = " ".join(draw.choices(WORDS, k=draw.randint(1, 200)))
        return {"prompt": prompt, "max_tokens": tokens, "stream": stream, "n": n, "temperature": 1, "ignore_eos": True}

    def complete(self, draw, stream):
        with self.open(self.body(draw, draw.randint(1, 120), stream, draw.choice([1, 1, 1, 4]))) as connection:
            status, whole = self.read(connection)
        self.note(f"{'stream' if stream else 'plain'} {status}")
        if status == 200 and not whole:
            self.trouble("an answer of 200 is not whole")
        elif status not in (200, 429):
            self.trouble(f"a good request got {status}")

    def leave(self, draw):
        stream = draw.random() < 0.7
        with self.open(self.body(draw, 1500, stream, draw.choice([1, 4]))) as connection:
            if stream:
                self.read(connection, draw.randint(1, 20000))
            else:
                time.sleep(draw.random())
        self.note("left")

    def oversize(self, draw):
        with self.open(self.body(draw, 5000, draw.random() < 0.5)) as connection:
            status, _ = self.read(connection)
        self.note(f"oversize {status}")
        if status != 400 and status != 429:
            self.trouble(f"a prompt that does not fit got {status}")

    def slow(self, draw):
        body = self.body(draw, 1200, True) | {"logprobs": 20}
        with self.open(body, buffer=4096) as connection:
            for _ in range(draw.randint(2, 6)):
                connection.recv(2000)
                time.sleep(draw.uniform(0.5, 3))
        self.note("slow reader")

    def burst(self, draw):
        bodies = [self.body(draw, 8, False) for _ in range(40)]
        streams = [self.open(body) for body in bodies]
        for stream in streams:
            with stream:
                status, _ = self.read(stream)
            self.note(f"burst {status}")
            if status not in (200, 429):
                self.trouble(f"a request of a burst got {status}")

    def work(self, number):
        draw = random.Random(self.seed * 1000 + number)
        kinds = [(self.complete, 35, (False,)), (self.complete, 30, (True,)), (self.leave, 20, ()),
                 (self.oversize, 5, ()), (self.slow, 7, ()), (self.burst, 3, ())]
        while time.monotonic() < self.end:
            act, _, more = draw.choices(kinds, weights=[weight for _, weight, _ in kinds])[0]
            try:
                act(draw, *more)
            except TimeoutError:
                self.trouble(f"{act.__name__}: nothing came for {HUNG_SECONDS} s")
            except OSError as error:
                self.trouble(f"{act.__name__}: {error}")
            time.sleep(draw.uniform(0, 0.2))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--minutes", type=float, default=30)
    arguments.add_argument("--clients", type=int, default=6)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    server = Server(options.binary, ["--set", "scheduler.waiting_requests=32", "--set", "limits.write_seconds=5"])
    start = time.monotonic()
    seconds = options.minutes * 60
    soak = Soak(server, start + seconds, options.seed)
    threads = [threading.Thread(target=soak.work, args=(number,)) for number in range(options.clients)]
    for thread in threads:
        thread.start()
    sizes, health = [], []
    while any(thread.is_alive() for thread in threads):
        asked = time.monotonic()
        status, _ = server.get("/health")
        health.append(time.monotonic() - asked)
        if status != 200:
            soak.trouble(f"health is {status}")
        sizes.append((asked - start, server.rss()))
        if asked - start > seconds + 2 * HUNG_SECONDS:
            soak.trouble("clients do not end")
            break
        time.sleep(1)
    held = "kvant:pages_used"
    until = time.monotonic() + 5
    while server.metric(held) > 0 and time.monotonic() < until:
        time.sleep(0.05)
    tenth = max(len(sizes) // 10, 1)
    mean = lambda part: sum(size for _, size in part) / len(part)
    # The first tenth warms up: buffers and pools take what they need.
    early, late = mean(sizes[tenth:2 * tenth]), mean(sizes[-tenth:])
    health.sort()
    report = {
        "minutes": round((time.monotonic() - start) / 60, 1),
        "counts": dict(sorted(soak.counts.items())),
        "troubles": soak.troubles,
        "rss_mb": {"early": round(early / 1e6, 1), "late": round(late / 1e6, 1), "most": round(max(s for _, s in sizes) / 1e6, 1)},
        "rss_change_percent": round(100 * (late / early - 1), 2),
        "threads": server.threads(),
        "health_ms": {"median": round(1e3 * health[len(health) // 2], 1), "p99": round(1e3 * health[len(health) * 99 // 100], 1)},
        "pages_left": server.metric(held),
        "slow_readers_cut": server.metric("kvant:slow_readers_total"),
    }
    server.child.send_signal(signal.SIGTERM)
    report["exit_code"] = server.child.wait(timeout=60)
    good = not soak.troubles and abs(report["rss_change_percent"]) <= 5 and report["pages_left"] == 0
    report["passed"] = good and report["exit_code"] == 0
    print(json.dumps(report, indent=1))
    raise SystemExit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Starts a server of the built-in model, finds the load that it can take, then sends four times as many clients for
a while. Fails if a refusal is not 429 or 503 with Retry-After, is slow, if goodput falls, or memory grows.

    python3 scripts/overload.py --binary target/release/kvant --seconds 120

Talks to 127.0.0.1 only. Prints one JSON object.
"""

import argparse
import collections
import http.client
import json
import signal
import threading
import time

from soak import Server

SEQUENCES = 8
WAITING = 8
TOKENS = 100
BODY = json.dumps({"prompt": "The whale", "max_tokens": TOKENS, "ignore_eos": True}).encode()


class Load:
    """So many clients, each with one request at a time; one that is refused waits a little and comes again."""

    def __init__(self, server, clients, seconds):
        self.server, self.end = server, time.monotonic() + seconds
        self.lock = threading.Lock()
        self.statuses, self.troubles, self.refusals, self.tokens = collections.Counter(), [], [], 0
        self.threads = [threading.Thread(target=self.work) for _ in range(clients)]

    def run(self):
        start = time.monotonic()
        sizes = []
        for thread in self.threads:
            thread.start()
        while any(thread.is_alive() for thread in self.threads):
            sizes.append(self.server.rss())
            time.sleep(0.5)
        return self.tokens / (time.monotonic() - start), sizes

    def work(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
        while time.monotonic() < self.end:
            asked = time.monotonic()
            try:
                connection.request("POST", "/v1/completions", BODY, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
            except OSError as error:
                with self.lock:
                    self.troubles.append(repr(error))
                connection.close()
                continue
            took = time.monotonic() - asked
            with self.lock:
                self.statuses[answer.status] += 1
                if answer.status == 200:
                    self.tokens += json.loads(text)["usage"]["completion_tokens"]
                elif answer.status in (429, 503) and answer.headers["retry-after"]:
                    self.refusals.append(took)
                else:
                    self.troubles.append(f"{answer.status} {dict(answer.headers)}")
            if answer.status != 200:
                time.sleep(0.2)  # a rude client: Retry-After says a second


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--seconds", type=float, default=120)
    options = arguments.parse_args()
    server = Server(options.binary, ["--sequences", str(SEQUENCES), "--set", f"scheduler.waiting_requests={WAITING}"])
    capacity = SEQUENCES + WAITING
    Load(server, capacity, 3).run()
    peak, _ = Load(server, capacity, max(options.seconds / 6, 3)).run()
    load = Load(server, 4 * capacity, options.seconds)
    goodput, sizes = load.run()
    again, _ = Load(server, capacity, max(options.seconds / 6, 3)).run()
    refusals = sorted(load.refusals)
    at = lambda part: round(1e3 * refusals[min(int(len(refusals) * part), len(refusals) - 1)], 1) if refusals else None
    tenth = max(len(sizes) // 10, 1)
    mean = lambda part: sum(part) / len(part)
    report = {
        "clients": {"capacity": capacity, "overload": 4 * capacity},
        "statuses": load.statuses,
        "troubles": load.troubles[:10],
        "refusal_ms": {"median": at(0.5), "p99": at(0.99), "most": at(1)},
        "tokens_per_second": {"peak": round(peak), "overload": round(goodput), "after": round(again)},
        "goodput_of_peak": round(goodput / max(peak, again), 3),
        "rss_change_percent": round(100 * (mean(sizes[-tenth:]) / mean(sizes[tenth:2 * tenth]) - 1), 2),
    }
    server.child.send_signal(signal.SIGTERM)
    server.child.wait(timeout=60)
    report["passed"] = (not load.troubles and bool(refusals) and at(0.99) < 50 and report["goodput_of_peak"] >= 0.9
                        and abs(report["rss_change_percent"]) <= 5)
    print(json.dumps(report, indent=1))
    raise SystemExit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()

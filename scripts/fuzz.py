#!/usr/bin/env python3
"""Sends a server of the built-in model, each drawn from a seed, damaged JSON bodies and bodies that ask for what an
answer is to be like: schemas, expressions, grammars. Fails at a 5xx, a panic, an answer that does not come or is not JSON
under a schema, an engine whose heartbeat is late by a second, or a page that is held at the end.

    python3 scripts/fuzz.py --binary target/release/kvant --bodies 10000 --guides 2000

Talks to 127.0.0.1 only. Prints one JSON object.
"""

import argparse
import collections
import copy
import http.client
import json
import random
import signal
import threading
import time

import guides
from soak import Server

CLIENTS = 4
ROUTES = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/v1/responses", "/v1/messages",
          "/v1/embeddings"]
MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
GOOD = {
    "/v1/chat/completions": {
        "model": "", "messages": MESSAGES, "n": 1, "stop": ["x"], "logit_bias": {"7": 1.5}, "max_tokens": 2,
        "logprobs": True, "top_logprobs": 2, "stream": True, "stream_options": {"include_usage": True}, "seed": 7,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "auto", "response_format": {"type": "text"}, "guided_regex": None, "temperature": 0.5},
    "/v1/completions": {
        "prompt": [40, 41], "max_tokens": 1, "echo": True, "logprobs": 1, "top_k": 3, "temperature": 0.5, "n": 2,
        "min_p": 0.1, "stop_token_ids": [3], "repetition_penalty": 1.1, "suffix": None, "best_of": 2},
    "/tokenize": {"prompt": "the sea", "return_token_strs": True, "messages": None},
    "/detokenize": {"tokens": [1, 2, 3]},
    "/v1/responses": {"input": "x", "max_output_tokens": 2, "instructions": "y", "tools": [], "stream": False},
    "/v1/messages": {"model": "", "messages": MESSAGES, "max_tokens": 2, "system": "x", "stop_sequences": ["y"]},
    "/v1/embeddings": {"model": "", "input": ["x", "y"], "encoding_format": "float"},
}
VALUES = [None, True, False, 0, -1, 1e308, -1e308, 2**63, 2**64, 0.1, "", "\u0000", "\ud83d\ude00", "x" * 3000, [], {},
          [[]], [{}], {"a": {}}, [1, "x"], ["x"] * 300, {"type": "x"}, {"type": []}]
PIECES = [b"null", b"-1", b"1e999", b"[]", b"{}", b'""', b"99999999999999999999", b",", b"\xff", b"\\u0000", b"[[[[["]


def places(value, path=()):
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, path + (key,))


def damaged(draw, route):
    body = json.loads(json.dumps(GOOD[route]))
    for _ in range(draw.randint(0, 3)):
        path = draw.choice(list(places(body)))
        if not path:
            continue
        part = body
        for key in path[:-1]:
            part = part[key]
        if draw.random() < 0.2:
            del part[path[-1]]
        else:
            part[path[-1]] = copy.deepcopy(draw.choice(VALUES))
    if draw.random() < 0.05:
        body = {"messages": body.get("messages"), "prompt": draw.choice(VALUES)} | {f"x{n}": n for n in range(50)}
    text = json.dumps(body).encode()
    if draw.random() < 0.4:
        for _ in range(draw.randint(1, 3)):
            start = draw.randrange(len(text) + 1)
            text = text[:start] + draw.choice(PIECES) + text[start + draw.randrange(4):]
    return text


def broken_body(draw):
    route = draw.choice(ROUTES)
    return route, damaged(draw, route), False


def guided_body(draw):
    route, body, is_json = guides.body(draw)
    return route, json.dumps(body).encode(), is_json


def not_json(answer):
    """The first choice that has ended by itself and is not JSON."""
    for choice in answer["choices"]:
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        if choice["finish_reason"] == "stop":
            try:
                json.loads(text)
            except ValueError:
                return text
    return None


class Fuzz:
    """A few clients that send what they draw, one body at a time each, and somebody who asks for the health."""

    def __init__(self, server, seed):
        self.server, self.seed = server, seed
        self.lock = threading.Lock()
        self.troubles, self.late, self.slowest = [], [], 0
        self.over = threading.Event()

    def watch(self):
        while not self.over.wait(0.05):
            status, text = self.server.get("/health", timeout=60)
            if status != 200:
                self.late.append(text)

    def one(self, connection, route, body, is_json):
        """The status, 599 if none came, and what is wrong with the answer."""
        try:
            connection.request("POST", route, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return 599, repr(error)
        if answer.status >= 500 or b"panic: " in text:
            return answer.status, text[:200]
        if answer.status == 200 and b'"error"' in text and b"server_error" in text:
            return 500, text[-200:]
        if answer.status == 200 and is_json and not text.startswith(b"data: "):
            if (wrong := not_json(json.loads(text))) is not None:
                return 200, f"not JSON: {wrong[:200]!r}"
        return answer.status, None

    def work(self, draw_body, numbers, statuses):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        for number in numbers:
            route, body, is_json = draw_body(random.Random(self.seed * 1_000_003 + number))
            asked = time.monotonic()
            status, wrong = self.one(connection, route, body, is_json)
            with self.lock:
                statuses[route][status] += 1
                self.slowest = max(self.slowest, time.monotonic() - asked)
                if wrong is not None:
                    self.troubles.append(f"seed {self.seed}, number {number}: {route} {status} {body[:1000]!r} {wrong}")

    def send(self, draw_body, count):
        """How so many bodies were answered, by route."""
        statuses = collections.defaultdict(collections.Counter)
        shares = [range(first, count, CLIENTS) for first in range(CLIENTS)]
        threads = [threading.Thread(target=self.work, args=(draw_body, share, statuses)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {route: dict(sorted(counts.items())) for route, counts in sorted(statuses.items())}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--bodies", type=int, default=10_000)
    arguments.add_argument("--guides", type=int, default=2_000)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    # A heartbeat that is late by a second turns /health to 503.
    server = Server(options.binary, ["--set", "scheduler.stall_seconds=1", "--set", "scheduler.context_tokens=512"])
    fuzz = Fuzz(server, options.seed)
    watching = threading.Thread(target=fuzz.watch, daemon=True)
    watching.start()
    report = {
        "bodies": fuzz.send(broken_body, options.bodies),
        "guides": fuzz.send(guided_body, options.guides),
        "slowest_seconds": round(fuzz.slowest, 2),
    }
    held = "kvant:pages_used"
    until = time.monotonic() + 5
    while server.metric(held) > 0 and time.monotonic() < until:
        time.sleep(0.05)
    fuzz.over.set()
    watching.join()
    report |= {
        "troubles": len(fuzz.troubles),
        "examples": fuzz.troubles[:10],
        "late_heartbeats": fuzz.late[:10],
        "panics": server.metric("kvant:panics_total"),
        "pages_left": server.metric(held),
    }
    server.child.send_signal(signal.SIGTERM)
    report["exit_code"] = server.child.wait(timeout=60)
    sound = not fuzz.troubles and not fuzz.late and report["panics"] == 0 and report["pages_left"] == 0
    report["passed"] = sound and report["exit_code"] == 0
    print(json.dumps(report, indent=1))
    raise SystemExit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()

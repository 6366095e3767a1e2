#!/usr/bin/env python3
"""Sends damaged JSON bodies to a server of the built-in model, each drawn from a seed. Fails at a 5xx, a panic, an
answer that does not come, or an engine whose heartbeat is late.

    python3 scripts/fuzz-bodies.py --binary target/release/kvant --count 10000

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

from soak import Server

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


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--count", type=int, default=10_000)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    # A heartbeat that is late by a second turns /health to 503.
    server = Server(options.binary, ["--set", "scheduler.stall_seconds=1", "--set", "scheduler.context_tokens=512"])
    over = threading.Event()
    sick = []

    def watch():
        while not over.wait(0.05):
            status, text = server.get("/health")
            if status != 200:
                sick.append(text)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    statuses = {route: collections.Counter() for route in ROUTES}
    troubles = []
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for number in range(options.count):
        draw = random.Random(options.seed * 1_000_003 + number)
        route = draw.choice(ROUTES)
        body = damaged(draw, route)
        try:
            connection.request("POST", route, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            status = answer.status
            if status == 200 and b'"error"' in text and b"server_error" in text:
                status = 500
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            status, text = 599, repr(error).encode()
        statuses[route][status] += 1
        if status >= 500:
            troubles.append(f"seed {options.seed}, number {number}: {route} {status} {body[:200]!r} {text[:200]!r}")
    over.set()
    watching.join()
    report = {
        "bodies": options.count,
        "statuses": {route: dict(sorted(counts.items())) for route, counts in statuses.items()},
        "troubles": troubles[:10],
        "late_heartbeats": sick[:10],
        "panics": server.metric("kvant:panics_total"),
        "pages_left": server.metric("kvant:pages_used"),
    }
    server.child.send_signal(signal.SIGTERM)
    report["exit_code"] = server.child.wait(timeout=60)
    report["passed"] = not troubles and not sick and report["panics"] == 0 and report["exit_code"] == 0
    print(json.dumps(report, indent=1))
    raise SystemExit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()

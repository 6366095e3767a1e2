#!/usr/bin/env python3
"""Two servers of the built-in model behind the SMG gateway (PyPI `smg`, put into target/smg at the first run): chats and
streams pass; one replica is killed under load, then another is asked to go down. Fails if a request is lost before its
first byte, if SIGTERM loses any request at all, or if a metric's name that Kubernetes' Gateway API Inference Extension
reads is missing.

    python3 scripts/replicas.py --binary target/release/kvant

Talks to 127.0.0.1 and, to install, a Python package registry. Prints one JSON object.
"""

import argparse
import atexit
import collections
import http.client
import json
import signal
import socket
import subprocess
import threading
import time

from soak import Server, installed

# What pickers of endpoints read: load, room, and the shape of the cache.
NAMES = ["vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:cache_config_info"]
FLAGS = ["--set", "server.owned_by=vllm", "--set", "server.drain_seconds=60"]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "the whale"}], "max_tokens": 60, "ignore_eos": True}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ask(port, stream, timeout=60):
    """How an answer ended: `whole`, `refused …`, `lost before its first byte`, `cut`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    begun = False
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(CHAT | {"stream": stream}),
                           {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            return f"refused {answer.status}"
        text = b""
        while piece := answer.read1(65536):
            begun, text = True, text + piece
        if stream:
            return "whole" if text.rstrip().endswith(b"data: [DONE]") and b'"error"' not in text else "cut"
        return "whole" if json.loads(text)["usage"]["completion_tokens"] == CHAT["max_tokens"] else "cut"
    except (OSError, http.client.HTTPException, ValueError):
        return "cut" if begun else "lost before its first byte"
    finally:
        connection.close()


def under_load(port, act, seconds=8, clients=8):
    """Counts of how requests end while something is done in their middle."""
    ends, lock, until = collections.Counter(), threading.Lock(), time.monotonic() + seconds

    def work(number):
        turn = number
        while time.monotonic() < until:
            turn += 1
            end = ask(port, stream=turn % 2 == 0)
            with lock:
                ends[f"{'stream' if turn % 2 == 0 else 'plain'} {end}"] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 3)
    act()
    for thread in threads:
        thread.join()
    return dict(sorted(ends.items()))


class Gateway:
    def __init__(self, binary, replicas):
        self.port = free_port()
        urls = [f"http://127.0.0.1:{replica.port}" for replica in replicas]
        command = [binary, "launch", "--worker-urls", *urls, "--policy", "round_robin", "--host", "127.0.0.1",
                   "--port", str(self.port), "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
        self.child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        atexit.register(self.child.kill)
        until = time.monotonic() + 60
        while ask(self.port, stream=False) != "whole":
            if time.monotonic() > until:
                raise SystemExit("the gateway passes no chat within a minute")
            time.sleep(0.2)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", required=True)
    options = arguments.parse_args()
    smg = installed("smg")
    replicas = [Server(options.binary, FLAGS) for _ in range(2)]
    _, page = replicas[0].get("/metrics")
    missing = [name for name in NAMES if f"\n{name}{{" not in page]
    gateway = Gateway(smg, replicas)
    quiet = under_load(gateway.port, lambda: None)
    killed = under_load(gateway.port, replicas[0].child.kill)
    gateway.child.kill()
    fresh = Server(options.binary, FLAGS)
    gateway = Gateway(smg, [fresh, replicas[1]])
    ended = under_load(gateway.port, lambda: fresh.child.send_signal(signal.SIGTERM))
    report = {
        "missing_names": missing,
        "quiet": quiet,
        "after_kill_9": killed,
        "after_sigterm": ended,
        "sigterm_exit_code": fresh.child.wait(timeout=60),
    }
    only_whole = lambda ends: all(name.endswith("whole") for name in ends)
    # Answers that had begun on the killed one are cut; that is all that may be.
    begun = lambda name: name.endswith(("whole", "cut"))
    report["passed"] = (not missing and only_whole(quiet) and all(begun(name) for name in killed)
                        and only_whole(ended) and report["sigterm_exit_code"] == 0)
    print(json.dumps(report, indent=1))
    raise SystemExit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()

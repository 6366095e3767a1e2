#!/usr/bin/env python3
"""Stops the engine's thread of a running server, and nothing else of it, as a hanging device would: /health and /ready
say so, the watchdog ends the server with its exit code in its time, and not where it is told never to; then the engine
goes on and the answer is whole. A server that was stopped as a whole is not ended for it.

    python3 scripts/watchdog.py --binary target/release/kvant

Linux only, by ptrace. Talks to 127.0.0.1 only. Prints one JSON object.
"""

import argparse
import ctypes
import http.client
import json
import os
import pathlib
import signal
import threading
import time

from soak import Server

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
ALL = 0x40000000  # waits for threads too
CODE = 71
SECONDS = 2
PATIENCE = 60
FLAGS = ["--set", "scheduler.stall_seconds=1", "--set", f"server.watchdog_exit_code={CODE}"]
BODY = {"prompt": "The whale", "max_tokens": 1500, "ignore_eos": True, "stream": True}


def ptrace(request, thread):
    library = ctypes.CDLL(None, use_errno=True)
    library.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if library.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request} of thread {thread}")


def freeze(server):
    """Stops the engine's thread while it is at work."""
    tasks = pathlib.Path(f"/proc/{server.child.pid}/task")
    thread = next(int(task.name) for task in tasks.iterdir() if (task / "comm").read_text().strip() == "engine")
    ptrace(SEIZE, thread)
    ptrace(INTERRUPT, thread)
    os.waitpid(thread, ALL)
    return thread


def wait_for(what, seconds=PATIENCE):
    """Seconds until something is so."""
    start = time.monotonic()
    while not what():
        if time.monotonic() - start > seconds:
            raise SystemExit("what was waited for did not come")
        time.sleep(0.02)
    return round(time.monotonic() - start, 2)


class Stream:
    """A long answer, read by a thread of its own."""

    def __init__(self, server):
        self.text, self.server = "", server
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()
        wait_for(lambda: server.metric("vllm:num_requests_running") > 0)

    def read(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=600)
        try:
            connection.request("POST", "/v1/completions", json.dumps(BODY))
            self.text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            self.text = "cut"

    def is_whole(self):
        self.thread.join(timeout=600)
        return self.text.rstrip().endswith("data: [DONE]") and '"error"' not in self.text


def told(server):
    """What the two answers about health are."""
    return [server.get(path)[0] for path in ("/health", "/ready")]


def ended_in_time(binary):
    server = Server(binary, [*FLAGS, "--set", f"server.watchdog_seconds={SECONDS}"])
    Stream(server)
    thread = freeze(server)
    frozen = time.monotonic()
    wait_for(lambda: told(server) == [503, 503])
    # The end of a thread that is traced must be taken before the end of its process is told.
    wait_for(lambda: os.waitpid(thread, ALL | os.WNOHANG)[0] == thread)
    code = server.child.wait(timeout=PATIENCE)
    return {"exit_code": code, "after_seconds": round(time.monotonic() - frozen, 1)}


def left_alone(binary):
    server = Server(binary, [*FLAGS, "--set", "server.watchdog_seconds=0"])
    stream = Stream(server)
    thread = freeze(server)
    stalled = wait_for(lambda: told(server) == [503, 503])
    time.sleep(2 * SECONDS)
    lives = server.child.poll() is None
    ptrace(DETACH, thread)
    back = wait_for(lambda: told(server) == [200, 200])
    return {"lives": lives, "stalled_after": stalled, "back_after": back, "whole": stream.is_whole()}


def paused(binary):
    """Stopped as a whole, several times: nobody can have looked in between."""
    server = Server(binary, [*FLAGS, "--set", f"server.watchdog_seconds={SECONDS}"])
    stream = Stream(server)
    for _ in range(5):
        if stream.text:
            break
        server.child.send_signal(signal.SIGSTOP)
        time.sleep(1.5 * SECONDS)
        server.child.send_signal(signal.SIGCONT)
        time.sleep(0.3)
    return {"lives": server.child.poll() is None, "whole": stream.is_whole()}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", required=True)
    options = arguments.parse_args()
    report = {act.__name__: act(options.binary) for act in (ended_in_time, left_alone, paused)}
    ended, alone, stopped = report.values()
    report["passed"] = (ended["exit_code"] == CODE and SECONDS - 1 <= ended["after_seconds"] <= SECONDS + 10
                        and alone["lives"] and alone["whole"] and stopped["lives"] and stopped["whole"])
    print(json.dumps(report, indent=1))
    raise SystemExit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()

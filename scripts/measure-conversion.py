#!/usr/bin/env python3
"""What a long prompt costs a stream that is decoding: the gaps between its tokens while a prompt of 4,000 tokens is
computed, with a 16-bit cache (nothing is converted) and with packed ones, in turns.

usage: measure-conversion.py KVANT MODEL [PRESET ...]      (default presets: f16 auto tq8 tq4)
"""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request

PROMPT_TOKENS = 4000
ROUNDS = 3


def post(address, body):
    request = urllib.request.Request(
        address + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    return urllib.request.urlopen(request, timeout=600)


def prompt(tokens, salt):
    return [(at * 131 + salt * 977) % 20000 + 100 for at in range(tokens)]


def stream(address, times):
    body = {"prompt": prompt(64, 1), "max_tokens": 3000, "ignore_eos": True, "stream": True, "temperature": 0}
    with post(address, body) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                times.append(time.monotonic())


def percentile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(part * len(values)))]


def measure(kvant, model, preset, salt):
    server = subprocess.Popen(
        [kvant, "serve", "--model", model, "--port", "0", "--kv-cache", preset, "--context-tokens", "8192"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )
    try:
        address = re.search(r"http://\S+", server.stdout.readline()).group()
        times = []
        threading.Thread(target=stream, args=(address, times), daemon=True).start()
        while len(times) < 100:
            time.sleep(0.01)
        began = time.monotonic()
        body = {"prompt": prompt(PROMPT_TOKENS, salt), "max_tokens": 1, "temperature": 0}
        post(address, body).read()
        ended = time.monotonic()
        gaps = [b - a for a, b in zip(times, times[1:]) if began <= b <= ended]
        alone = [b - a for a, b in zip(times, times[1:]) if b < began]
        metrics = urllib.request.urlopen(address + "/metrics").read().decode()
        seconds = float(re.search(r"^kvant:conversion_seconds_total\S* (\S+)", metrics, re.M).group(1))
        return alone[20:], gaps, ended - began, seconds
    finally:
        server.kill()
        server.wait()


def main():
    kvant, model, *presets = sys.argv[1:]
    presets = presets or ["f16", "auto", "tq8", "tq4"]
    results = {preset: ([], [], [], []) for preset in presets}
    for turn in range(ROUNDS):
        for preset in presets:
            alone, gaps, took, seconds = measure(kvant, model, preset, turn)
            kept = results[preset]
            kept[0].extend(alone)
            kept[1].extend(gaps)
            kept[2].append(took)
            kept[3].append(seconds)
    base = percentile(results[presets[0]][1], 0.99)
    print("| cache | alone, median ms | during the prompt, median ms | p99 ms | over f16 | prompt s | converting s |")
    print("|---|---|---|---|---|---|---|")
    for preset, (alone, gaps, took, seconds) in results.items():
        p99 = percentile(gaps, 0.99)
        print(
            f"| {preset} | {1000 * percentile(alone, 0.5):.1f} | {1000 * percentile(gaps, 0.5):.1f} "
            f"| {1000 * p99:.1f} | {p99 / base:.2f} | {sum(took) / len(took):.2f} "
            f"| {sum(seconds) / len(seconds):.3f} |"
        )


main()

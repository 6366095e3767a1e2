#!/usr/bin/env python3
"""NVIDIA's AIPerf (PyPI `aiperf`, put into target/aiperf at the first run) drives chats against a server of the built-in
model, as streams and whole. Fails if a request does, or if what AIPerf has scraped of /metrics lacks a metric or counts
other tokens than its clients were told.

    python3 scripts/aiperf.py --binary target/release/kvant

Talks to 127.0.0.1 and, to install, a Python package registry; the tokenizer is the built-in model's folder. Prints one
JSON object.
"""

import argparse
import json
import pathlib
import re
import shutil
import signal
import subprocess

from soak import Server, installed

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLACE = ROOT / "target" / "aiperf"
PROFILE = ["--endpoint-type", "chat", "--tokenizer", str(ROOT / "models" / "tiny-llama-1m"), "--random-seed", "1",
           "--synthetic-input-tokens-mean", "200", "--synthetic-input-tokens-stddev", "50", "--output-tokens-mean", "60",
           "--output-tokens-stddev", "10", "--ui", "none", "--no-gpu-telemetry"]


def profile(program, server, options, stream):
    """One profile; what it says, and what is wrong with it."""
    place = PLACE / ("stream" if stream else "whole")
    shutil.rmtree(place, ignore_errors=True)
    before = {name: server.metric(name) for name in ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")}
    command = [program, "profile", "-m", "tiny", "--url", f"http://127.0.0.1:{server.port}", *PROFILE,
               "--concurrency", str(options.concurrency), "--request-count", str(options.requests),
               "--artifact-dir", place, *(["--streaming"] if stream else [])]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    if ended.returncode != 0:
        return {}, [f"aiperf ended with {ended.returncode}: {ended.stdout[-2000:]}"]
    told = json.loads((place / "profile_export_aiperf.json").read_text(encoding="utf-8"))
    page = json.loads((place / "server_metrics_export.json").read_text(encoding="utf-8"))
    figure = lambda name: told.get(name, {}).get("avg")
    troubles = [str(error) for error in told["error_summary"]]
    if told["was_cancelled"] or figure("request_error_rate") != 0 or figure("request_count") != options.requests:
        troubles.append(f"{figure('request_count')} of {options.requests} requests, {figure('request_error_rate')} % errors")
    if page["summary"]["endpoints_successful"] != [f"http://127.0.0.1:{server.port}/metrics"]:
        troubles.append("aiperf has not scraped /metrics")
    _, ours = server.get("/metrics")
    # AIPerf drops the ending that counters have.
    names = {re.sub("_total$", "", name) for name in re.findall(r"^# TYPE (\S+)", ours, re.M)}
    if missing := sorted(names - set(page["metrics"])):
        troubles.append(f"aiperf's page of the server lacks {missing}")
    for name, usage in (("vllm:prompt_tokens", "prompt"), ("vllm:generation_tokens", "completion")):
        scraped = sum(one["stats"]["total"] for one in page["metrics"].get(name, {}).get("series", []))
        counted = server.metric(f"{name}_total") - before[f"{name}_total"]
        clients = figure(f"total_usage_{usage}_tokens")
        if not scraped == counted == clients:
            troubles.append(f"{name}: scraped {scraped}, counted {counted}, told to clients {clients}")
    figures = {name: round(figure(name), 1) for name in
               ("request_count", "request_throughput", "output_token_throughput", "time_to_first_token",
                "inter_token_latency", "request_latency") if figure(name) is not None}
    return figures | {"metrics_scraped": len(page["metrics"])}, troubles


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--requests", type=int, default=200)
    arguments.add_argument("--concurrency", type=int, default=16)
    options = arguments.parse_args()
    program = installed("aiperf")
    server = Server(options.binary, [])
    report, troubles = {"aiperf": subprocess.check_output([program, "--version"], text=True).strip()}, []
    for stream in (True, False):
        report["stream" if stream else "whole"], found = profile(program, server, options, stream)
        troubles += found
    report |= {"troubles": troubles, "pages_left": server.metric("kvant:pages_used")}
    server.child.send_signal(signal.SIGTERM)
    report["exit_code"] = server.child.wait(timeout=60)
    report["passed"] = not troubles and report["pages_left"] == 0 and report["exit_code"] == 0
    print(json.dumps(report, indent=1))
    raise SystemExit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()

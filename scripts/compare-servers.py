#!/usr/bin/env python3
"""Measure prefill and decode speed of OpenAI-compatible servers, side by side, by one hand.

usage: compare-servers.py NAME=http://127.0.0.1:PORT [NAME=URL ...] [--loads 1x128,1x1024,8x128]
                          [--output 64] [--repeat 3] [--vocab 40000]
       compare-servers.py --kvant BINARY --llama BINARY --gguf FILE [--gguf FILE ...] [--threads N] [--context 2048]
                          [--kvant-flags "..."] [--llama-flags "..."] [--out FILE.md] [and the above]
needs: python3 only, and /proc for the second form. The servers must be otherwise idle.

With URLs, the servers run already and hold the same model file. With --gguf, each server is started for each file, one
at a time, and repeated: from exec to the first token of a prompt of 32; then the loads; then its peak memory (VmHWM: with
the pages of the file that it mapped) and the part of its memory that is no file (RssAnon). The table has medians, versions
and flags.

A load is STREAMSxPROMPT. Every request is a list of token ids (random by a fixed seed, so no prefix can be reused), greedy,
end tokens ignored. For S streams started at once: prefill tokens/s = S * prompt / (start to the last first token); decode tokens/s =
tokens that arrive after the last first token / that time. Servers alternate within each repetition, because the
machine is noisy; the table shows medians and the ratio of each server to the last one named.
"""
import argparse, http.client, json, os, pathlib, random, shlex, socket, statistics, subprocess, sys, threading, time
import urllib.parse


def one(url, prompt, output, times, barrier):
    """Streams one completion; appends the arrival time of every token event."""
    place = urllib.parse.urlparse(url)
    body = json.dumps({"model": "", "prompt": prompt, "max_tokens": output, "temperature": 0, "stream": True,
                       "ignore_eos": True, "cache_prompt": False})
    link = http.client.HTTPConnection(place.hostname, place.port, timeout=600)
    barrier.wait()
    link.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = link.getresponse()
    if answer.status != 200:
        raise SystemExit(f"{url}: {answer.status} {answer.read()[:300]!r}")
    for line in answer:
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:]).get("choices") or []
            if choices and not choices[0].get("finish_reason"):
                times.append(time.perf_counter())
    link.close()


def run(url, streams, length, output, draw, vocab):
    """One load; returns prefill and decode tokens a second."""
    rows, threads, barrier = [], [], threading.Barrier(streams + 1)
    for _ in range(streams):
        times, prompt = [], [draw.randrange(100, vocab) for _ in range(length)]
        rows.append(times)
        threads.append(threading.Thread(target=one, args=(url, prompt, output, times, barrier)))
        threads[-1].start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    if any(len(times) < output // 2 for times in rows):
        raise SystemExit(f"{url}: a stream gave only {min(map(len, rows))} of {output} tokens")
    last_first = max(times[0] for times in rows)
    end = max(times[-1] for times in rows)
    later = sum(1 for times in rows for at in times if at > last_first)
    return streams * length / (last_first - start), later / (end - last_first)


def first_token(port, server, vocab, patience=600):
    """Asks for one token until there is one; a server that still loads refuses or says 503."""
    draw = random.Random(11)
    body = json.dumps({"model": "", "prompt": [draw.randrange(100, vocab) for _ in range(32)], "max_tokens": 1,
                       "temperature": 0, "stream": True, "ignore_eos": True})
    end = time.perf_counter() + patience
    while time.perf_counter() < end and server.poll() is None:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=patience)
        try:
            link.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = link.getresponse()
            if answer.status == 200 and any(line.startswith(b"data: {") for line in answer):
                return time.perf_counter()
            if answer.status not in (200, 503):
                raise SystemExit(f"port {port}: {answer.status} {answer.read()[:300]!r}")
        except (ConnectionError, http.client.HTTPException):
            pass
        finally:
            link.close()
        time.sleep(0.002)
    raise SystemExit(f"{shlex.join(server.args)}: no token within {patience} s; it ended with {server.poll()}")


def memory(server):
    """VmHWM and RssAnon in MiB."""
    lines = pathlib.Path(f"/proc/{server.pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return [int(found[key].split()[0]) / 1024 for key in ("VmHWM", "RssAnon")]


def started(command, port, args, loads):
    """One server from exec to end: seconds to the first token, memory, and the report of every load."""
    begin = time.perf_counter()
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        figures = {"exec to first token, s": first_token(port, server, args.vocab) - begin}
        draw = random.Random(7)
        for streams, length in loads:
            prefill, decode = run(f"http://127.0.0.1:{port}", streams, length, args.output, draw, args.vocab)
            figures[f"{streams} × {length}: prefill t/s"] = prefill
            figures[f"{streams} × {length}: decode t/s"] = decode
        figures["peak memory, MiB"], figures["of it no file, MiB"] = memory(server)
        return figures
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def version(binary):
    done = subprocess.run([binary, "--version"], capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def compare_files(args):
    threads = ["--threads", str(args.threads)]
    loads = args.loads
    most = str(max(streams for streams, _ in loads))
    # llama.cpp divides its context among the slots; ours is of one sequence.
    context = {"kvant": args.context, "llama.cpp": args.context * int(most)}
    flags = {"kvant": ["--sequences", most, "--context-tokens", str(context["kvant"]), *threads,
                       *shlex.split(args.kvant_flags)],
             "llama.cpp": ["-np", most, "-c", str(context["llama.cpp"]), *threads, *shlex.split(args.llama_flags)]}
    begin = {"kvant": [args.kvant, "serve", "--model"], "llama.cpp": [args.llama, "--model"]}
    rows = []
    for gguf in args.gguf:
        seen = {name: [] for name in flags}
        for _ in range(args.repeat):
            for name in flags:
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    port = free.getsockname()[1]
                command = [*begin[name], gguf, "--port", str(port), *flags[name]]
                seen[name].append(started(command, port, args, loads))
        for key in seen["kvant"][0]:
            mid = {name: statistics.median(figures[key] for figures in runs) for name, runs in seen.items()}
            ratio = f"{mid['kvant'] / mid['llama.cpp']:.2f}" if mid["llama.cpp"] else "-"
            cells = [os.path.basename(gguf), key, *(f"{value:.2f}" for value in mid.values()), ratio]
            rows.append("| " + " | ".join(cells) + " |")
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    lines = [f"- {name}: {version(begin[name][0])}; flags `{shlex.join(flags[name])}`" for name in flags]
    lines += [f"- {cpu}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; medians of {args.repeat} starts each",
              f"- S × L: S streams at once, each a prompt of L random token ids and {args.output} tokens out", "",
              "| model | figure | " + " | ".join(flags) + " | ratio |", "|---|---|--:|--:|--:|", *rows]
    text = "\n".join(lines) + "\n"
    pathlib.Path(args.out).write_text(text) if args.out else sys.stdout.write(text)


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("servers", nargs="*")
    parse.add_argument("--gguf", action="append", default=[])
    parse.add_argument("--threads", type=int, default=os.cpu_count())
    parse.add_argument("--context", type=int, default=2048)
    for name in ["kvant", "llama", "out"]:
        parse.add_argument(f"--{name}")
    for name in ["kvant-flags", "llama-flags"]:
        parse.add_argument(f"--{name}", default="")
    parse.add_argument("--loads", default="1x128,1x1024,8x128")
    for name, default in [("output", 64), ("repeat", 3), ("vocab", 40000)]:
        parse.add_argument(f"--{name}", type=int, default=default)
    args = parse.parse_args()
    args.loads = [tuple(map(int, load.split("x"))) for load in args.loads.split(",")]
    if args.gguf:
        if args.servers or not (args.kvant and args.llama):
            parse.error("--gguf needs --kvant and --llama, and no URLs")
        return compare_files(args)
    if not args.servers:
        parse.error("give NAME=URL of servers, or --gguf with --kvant and --llama")
    servers = dict(server.split("=", 1) for server in args.servers)
    reference = list(servers)[-1]
    draw = random.Random(7)
    for url in servers.values():
        run(url, 1, 32, 8, draw, args.vocab)
    print("| streams | prompt | " + " | ".join(f"{name}: prefill t/s | decode t/s" for name in servers)
          + " | " + " | ".join(f"{name} / {reference}: prefill | decode" for name in servers if name != reference) + " |")
    print("|---" * (2 + 2 * len(servers) + 2 * (len(servers) - 1)) + "|")
    for streams, length in args.loads:
        seen = {name: [] for name in servers}
        for _ in range(args.repeat):
            for name, url in servers.items():
                seen[name].append(run(url, streams, length, args.output, draw, args.vocab))
        mid = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in seen.items()}
        cells = [f"{value:.1f}" for name in servers for value in mid[name]]
        cells += [f"{mid[name][i] / mid[reference][i]:.2f}" for name in servers if name != reference for i in (0, 1)]
        print(f"| {streams} | {length} | " + " | ".join(cells) + " |", flush=True)


main()

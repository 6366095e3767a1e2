#!/usr/bin/env python3
"""Measure prefill and decode speed of OpenAI-compatible servers, side by side, by one hand.

usage: compare-servers.py NAME=http://127.0.0.1:PORT [NAME=URL ...] [--streams 1,8] [--prompt 128,1024]
                          [--output 64] [--repeat 3] [--vocab 40000]
needs: python3 only. The servers must hold the same model file and be otherwise idle.

Every request is a list of token ids (random by a fixed seed, so no prefix can be reused), greedy, end tokens ignored.
For S streams started at once: prefill tokens/s = S * prompt / (start to the last first token); decode tokens/s =
tokens that arrive after the last first token / that time. Servers alternate within each repetition, because the
machine is noisy; the table shows medians and the ratio of each server to the last one named.
"""
import argparse, http.client, json, random, statistics, threading, time, urllib.parse


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


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("servers", nargs="+")
    for name, default in [("streams", "1,8"), ("prompt", "128,1024")]:
        parse.add_argument(f"--{name}", default=default)
    for name, default in [("output", 64), ("repeat", 3), ("vocab", 40000)]:
        parse.add_argument(f"--{name}", type=int, default=default)
    args = parse.parse_args()
    servers = dict(server.split("=", 1) for server in args.servers)
    reference = list(servers)[-1]
    draw = random.Random(7)
    for url in servers.values():
        run(url, 1, 32, 8, draw, args.vocab)
    print("| streams | prompt | " + " | ".join(f"{name}: prefill t/s | decode t/s" for name in servers)
          + " | " + " | ".join(f"{name} / {reference}: prefill | decode" for name in servers if name != reference) + " |")
    print("|---" * (2 + 2 * len(servers) + 2 * (len(servers) - 1)) + "|")
    for streams in map(int, args.streams.split(",")):
        for length in map(int, args.prompt.split(",")):
            seen = {name: [] for name in servers}
            for _ in range(args.repeat):
                for name, url in servers.items():
                    seen[name].append(run(url, streams, length, args.output, draw, args.vocab))
            mid = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in seen.items()}
            cells = [f"{value:.1f}" for name in servers for value in mid[name]]
            cells += [f"{mid[name][i] / mid[reference][i]:.2f}" for name in servers if name != reference for i in (0, 1)]
            print(f"| {streams} | {length} | " + " | ".join(cells) + " |", flush=True)


main()

#!/usr/bin/env python3
"""Measure the shape of Llama 3.1 8B on one NVIDIA GPU: Kvant beside torch and transformers, ratios of one run.

usage: compare-gpu.py [--kvant target/release/kvant] [--parts capacity,torch,bench,slope,serve,hf] [--out FOLDER]
                      [--cases 1x1024/256,64x1024/256,32x8192/256,16x32768/128] [--presets f16,k8v4,tq4]
                      [--serve-cases 64x1024/256:f16,64x1024/256:tq4,32x8192/256:tq4,16x32768/128:tq4] [--limits bench=300,hf=200]
                      [--weights dummy|file|like-vllm]
needs: for torch and hf: torch with CUDA; for hf: transformers. Prompts are token ids, weights are made up. At a GPU's limit of power the
numbers in them decide too: --weights dummy has those of --load-format dummy, whose activations keep their size; file has a normal
distribution of 0.02, norms too, as hf here (torch's norms are around 1); like-vllm is uniform in ±0.001, norms too, as vLLM's
load_format=dummy has them, and so fit to stand beside its figures. The last two lie in a file in FOLDER, which is written first, so
that starts are those of a model on disk, as far as the system has it in memory.

A case is STREAMSxPROMPT/OUTPUT. Parts, in the order given, each within its own limit of seconds (what runs longer is ended and
named; the rest goes on):
  capacity  kvant inspect: KV tokens that fit into 0.9 of the free memory, by preset and case (staging takes a case's context), with and
            without the rule of protected layers
  torch     a decode step of plain torch in one CUDA graph: static 16-bit cache, cuBLAS, flash attention; context in the middle of
            the output
  bench     kvant bench: step time while all streams decode, every preset
  slope     kvant bench, 8 streams over contexts: milliseconds a step per 1000 tokens of context, over the 16-bit cache's. A case's
            output must outlast the prompts: 8 of 128k are 128 steps of 8,192 tokens, so 8x98304/256, 8x130816/256
  serve     kvant serve and kvant bench serve on the same machine: all requests at time 0; output tokens/s to the last token
  hf        transformers' continuous batching, attention paged|sdpa, on --hf-cases, and each with an eighth of the output
The table goes to stdout and FOLDER/compare-gpu.md, everything measured to FOLDER/compare-gpu.json after every step of it. A JSON that is
there is added to, so that parts may come from several calls; --fresh begins anew. `--shape tiny --device cpu` tries the script itself.
"""
import argparse, array, json, math, os, pathlib, queue, random, shlex, signal, statistics, subprocess, sys, threading, time, urllib.request

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 4096,
         "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
         "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
         "rope_theta": 500000.0, "hidden_act": "silu", "bos_token_id": 128000, "eos_token_id": 128001,
         "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                          "original_max_position_embeddings": 8192}}
TINY = LLAMA | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "head_dim": 32, "vocab_size": 2048, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 8192}
SHAPES = {"8b": LLAMA, "tiny": TINY}
PARTS = ["capacity", "torch", "bench", "slope", "serve", "hf"]
LIMITS = {"capacity": 120, "torch": 120, "bench": 400, "slope": 400, "serve": 400, "hf": 300}


class Case:
    def __init__(self, text):
        streams, rest = text.split("x")
        self.streams, (self.prompt, self.output) = int(streams), map(int, rest.split("/"))

    def __str__(self):
        return f"{self.streams}x{self.prompt}/{self.output}"

    def mid(self):
        return self.prompt + self.output // 2


def cases(text):
    return [Case(part) for part in text.split(",") if part]


# ---------------------------------------------------------------- torch and transformers, each in a process of its own


def tell(**found):
    print("FOUND " + json.dumps(found), flush=True)


def torch_steps(config, device, wanted):
    """Decode steps of plain torch. On a GPU the whole step is one CUDA graph."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    hidden, wide, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q_heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    gpu = device != "cpu"

    def weight(*shape):
        return torch.empty(*shape, device=device, dtype=torch.bfloat16).normal_(0, 0.02)

    layers = [{"qkv": weight((q_heads + 2 * kv_heads) * dim, hidden), "out": weight(hidden, q_heads * dim),
               "gate_up": weight(2 * wide, hidden), "down": weight(hidden, wide), "norm": weight(hidden) + 1,
               "mlp_norm": weight(hidden) + 1} for _ in range(config["num_hidden_layers"])]
    embedding, head, last_norm = weight(vocab, hidden), weight(vocab, hidden), weight(hidden) + 1
    turns = 1 / config["rope_theta"] ** (torch.arange(0, dim, 2, device=device).float() / dim)

    def turned(x, cos, sin):
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def step(tokens, positions, slot, caches):
        angle = positions.float()[:, None, None] * turns
        cos, sin = angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)
        rows = len(tokens)
        x = F.embedding(tokens, embedding)
        for layer, (keys, values) in zip(layers, caches):
            normed = F.rms_norm(x, (hidden,), layer["norm"], 1e-5)
            q, k, v = F.linear(normed, layer["qkv"]).view(rows, -1, dim).split((q_heads, kv_heads, kv_heads), 1)
            keys.index_copy_(2, slot, turned(k, cos, sin)[:, :, None])
            values.index_copy_(2, slot, v[:, :, None])
            # Query heads of one key head are rows of one query, so that keys are read once.
            q = turned(q, cos, sin).reshape(rows, kv_heads, q_heads // kv_heads, dim)
            x = x + F.linear(F.scaled_dot_product_attention(q, keys, values).reshape(rows, -1), layer["out"])
            gate, up = F.linear(F.rms_norm(x, (hidden,), layer["mlp_norm"], 1e-5), layer["gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        return F.linear(F.rms_norm(x, (hidden,), last_norm, 1e-5), head).argmax(-1)

    def times(run):
        found = []
        for _ in range(23):
            if gpu:
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                run()
                end.record()
                end.synchronize()
                found.append(begin.elapsed_time(end))
            else:
                begin = time.perf_counter()
                run()
                found.append((time.perf_counter() - begin) * 1e3)
        return statistics.median(found[3:])

    if gpu:
        source, target = torch.empty(2, 1 << 30, device=device, dtype=torch.int32)
        tell(copy_tb_s=2 * source.nbytes / times(lambda: target.copy_(source)) / 1e9, gpu=torch.cuda.get_device_name(),
             torch=torch.__version__)
        del source, target
        torch.cuda.empty_cache()
    for case in wanted:
        caches = graph = None
        try:
            shape = (case.streams, kv_heads, case.mid(), dim)
            caches = [(weight(*shape), weight(*shape)) for _ in layers]
            arguments = (torch.randint(0, vocab, (case.streams,), device=device),
                         torch.full((case.streams,), case.mid() - 1, device=device),
                         torch.tensor([case.mid() - 1], device=device), caches)
            with torch.no_grad(), sdpa_kernel([SDPBackend.FLASH_ATTENTION] if gpu else [SDPBackend.MATH]):
                if not gpu:
                    ms = times(lambda: step(*arguments))
                else:
                    beside = torch.cuda.Stream()
                    beside.wait_stream(torch.cuda.current_stream())
                    with torch.cuda.stream(beside):
                        step(*arguments)
                    torch.cuda.synchronize()
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph):
                        step(*arguments)
                    ms = times(graph.replay)
            tell(case=str(case), context=case.mid(), ms=ms)
        except Exception as error:
            tell(case=str(case), error=repr(error)[:300])
        arguments = caches = graph = None
        if gpu:
            torch.cuda.empty_cache()


def hf_batching(config, device, wanted):
    """transformers' continuous batching; a short run first, so that there is a figure if the whole one takes too long."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, LlamaConfig

    keys = {key: value for key, value in config.items() if key not in ("architectures", "model_type", "torch_dtype", "rope_theta",
                                                                       "rope_scaling", "bos_token_id", "eos_token_id")}
    rope = config["rope_scaling"] | {"rope_theta": config["rope_theta"]}
    shape = LlamaConfig(**keys, rope_parameters=rope, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, attn_implementation="paged|sdpa")
    model = model.to_empty(device=device).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    # Its buffers are not filled by to_empty.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    draw = torch.Generator().manual_seed(0)
    for case in wanted:
        prompts = [torch.randint(10, config["vocab_size"] - 10, (case.prompt,), generator=draw).tolist() for _ in range(case.streams)]
        for output in sorted({max(2, case.output // 8), case.output}):
            # The scheduler holds back a fifth of the blocks.
            blocks = 2 * case.streams * -(-(case.prompt + output) // 256) + 64
            batching = ContinuousBatchingConfig(max_batch_tokens=4096, allow_block_sharing=False, num_blocks=blocks)
            generation = GenerationConfig(max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0)
            begin = time.perf_counter()
            with torch.no_grad():
                answers = model.generate_batch(prompts, generation_config=generation, continuous_batching_config=batching,
                                               progress_bar=False)
            took = time.perf_counter() - begin
            tokens = sum(len(answer.generated_tokens) for answer in answers.values())
            tell(case=str(Case(f"{case.streams}x{case.prompt}/{output}")), seconds=took, tokens=tokens, tokens_s=tokens / took,
                 transformers=transformers.__version__)


# ---------------------------------------------------------------- children


class Late(Exception):
    pass


class Failed(Exception):
    pass


def last_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def pass_on(stream, lines):
    """Lines as they come; None at the end."""
    for line in stream:
        lines.put(line)
    lines.put(None)


def end(child):
    """Ends a child, with what it has started, if it still runs: it is a process group of its own."""
    if child.poll() is not None:
        return
    for name in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, name)
            child.wait(15)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            child.wait()
            return


NUMBERS = {"file": lambda draw: draw.gauss(0, 0.02), "like-vllm": lambda draw: draw.uniform(-0.001, 0.001)}


def write_weights(config, path, number):
    """A file of made-up weights in bf16: one block of numbers, over and over, of an odd length, so that rows differ."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    heads, keys = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    ends = [("model.embed_tokens", (config["vocab_size"], hidden)), ("lm_head", (config["vocab_size"], hidden)), ("model.norm", (hidden,))]
    layer = [("self_attn.q_proj", (heads, hidden)), ("self_attn.k_proj", (keys, hidden)), ("self_attn.v_proj", (keys, hidden)),
             ("self_attn.o_proj", (hidden, heads)), ("mlp.gate_proj", (wide, hidden)), ("mlp.up_proj", (wide, hidden)),
             ("mlp.down_proj", (hidden, wide)), ("input_layernorm", (hidden,)), ("post_attention_layernorm", (hidden,))]
    layers = [(f"model.layers.{index}.{name}", shape) for index in range(config["num_hidden_layers"]) for name, shape in layer]
    head, end = {}, 0
    for name, shape in ends + layers:
        begin, end = end, end + 2 * math.prod(shape)
        head[name + ".weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    draw = random.Random(0)
    wide_numbers = array.array("f", (number(draw) for _ in range((1 << 20) + 7))).tobytes()
    block = bytearray(len(wide_numbers) // 2)
    block[0::2], block[1::2] = wide_numbers[2::4], wide_numbers[3::4]
    fresh = path.with_suffix(".new")
    with open(fresh, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, end, len(block)):
            file.write(block[:end - begin])
    fresh.replace(path)


def write_tokenizer(config, path):
    """A token for each id, without which a model in a file is not served."""
    vocab = {f"Ġ{number}": number for number in range(config["vocab_size"])}
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": bytes_of, "decoder": bytes_of,
                                "model": {"type": "BPE", "vocab": vocab, "merges": []}}))


class Work:
    """What is measured, and until when the part that runs may take."""

    def __init__(self, args):
        self.args = args
        self.folder = pathlib.Path(args.out)
        self.file = self.folder / "compare-gpu.json"
        old = not args.fresh and self.file.is_file()
        self.found = json.loads(self.file.read_text()) if old else {}
        self.found.setdefault("failed", {})
        weights = self.found.setdefault("weights", args.weights)
        if weights != args.weights:
            sys.exit(f"{self.file} has figures of --weights {weights}; take another --out, or --fresh")
        self.model = self.folder / f"llama-{args.shape}-{weights}"
        self.model.mkdir(parents=True, exist_ok=True)
        shape, file = SHAPES[args.shape], self.model / "model.safetensors"
        (self.model / "config.json").write_text(json.dumps(shape, indent=1))
        if weights in NUMBERS and not file.is_file():
            write_tokenizer(shape, self.model / "tokenizer.json")
            write_weights(shape, file, NUMBERS[weights])
        self.until = 0.0

    def save(self):
        fresh = self.file.with_suffix(".new")
        fresh.write_text(json.dumps(self.found, indent=1))
        fresh.replace(self.file)

    def part(self, name):
        return self.found.setdefault(name, {})

    def fail(self, part, what, why):
        print(f"{part}: {what}: {why}", file=sys.stderr, flush=True)
        self.found["failed"][f"{part} {what}".strip()] = why
        self.save()

    def succeed(self, part, what):
        self.found["failed"].pop(f"{part} {what}".strip(), None)
        self.save()

    def left(self):
        left = self.until - time.monotonic()
        if left <= 0:
            raise Late("no time is left; raise its --limits")
        return left

    def run(self, command):
        """A command to its end: stdout."""
        print("+ " + shlex.join(command), file=sys.stderr, flush=True)
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                 start_new_session=True)
        try:
            out, err = child.communicate(timeout=self.left())
        except subprocess.TimeoutExpired:
            raise Late("took longer than its limit") from None
        finally:
            end(child)
        if child.returncode:
            raise Failed(last_line(err))
        return out

    def kvant(self, *command, preset=None):
        """Flags of every command that has a model."""
        args = self.args
        load = "auto" if args.weights in NUMBERS else "dummy"
        flags = [args.kvant, *command, str(self.model), "--load-format", load, "--device", args.device,
                 "--memory-fraction", str(args.memory_fraction), *shlex.split(args.kvant_flags)]
        return flags + (["--kv-cache", preset] if preset else [])

    def worker(self, name, wanted):
        """A part of this script in a process of its own; every line that it tells, as it comes."""
        command = [sys.executable, __file__, "--worker", name, "--shape", self.args.shape, "--device", self.args.device,
                   "--cases", ",".join(map(str, wanted))]
        print("+ " + shlex.join(command), file=sys.stderr, flush=True)
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                 start_new_session=True)
        lines, said = queue.Queue(), []
        threading.Thread(target=pass_on, args=(child.stdout, lines), daemon=True).start()
        listener = threading.Thread(target=lambda: said.extend(child.stderr), daemon=True)
        listener.start()
        try:
            while (line := lines.get(timeout=self.left())) is not None:
                if line.startswith("FOUND "):
                    yield json.loads(line[6:])
            if child.wait(30):
                listener.join(5)
                raise Failed(last_line("".join(said)))
        except queue.Empty:
            raise Late("took longer than its limit") from None
        finally:
            end(child)


def steps(work, preset):
    """Prompt tokens of a step, and sequences: flags of everything that decodes."""
    return work.kvant("bench", preset=preset) + ["--step-tokens", str(work.args.step_tokens)]


# ---------------------------------------------------------------- parts


def capacity(work):
    for case in work.args.cases:
        context = ["--context-tokens", str(case.prompt + case.output), "--sequences", str(case.streams)]
        for protect in ("true", "false"):
            for preset in work.args.presets:
                command = work.kvant("inspect", preset=preset) + ["--json", *context, "--set", f"cache.protect={protect}"]
                plan = json.loads(work.run(command))["memory_plan"]
                work.part("capacity")[f"{preset} {case} protect={protect}"] = plan
                work.save()


def torch(work):
    for found in work.worker("torch", work.args.cases):
        if "case" not in found:
            work.part("machine").update(found)
        elif "error" in found:
            work.fail("torch", found["case"], found["error"])
        else:
            work.part("torch")[found["case"]] = found
            work.succeed("torch", found["case"])
        work.save()


def bench_cases(work, part, wanted, presets):
    """One process for all cases of a preset, so that weights are made once; if it fails, one for each case."""
    for preset in presets:
        groups = [wanted]
        while groups:
            group = groups.pop(0)
            what = f"{preset} {','.join(map(str, group))}"
            try:
                out = work.run(steps(work, preset) + ["--cases", ",".join(map(str, group)), "--json"])
            except Failed as error:
                if len(group) > 1:
                    groups = [[case] for case in group] + groups
                    continue
                work.fail(part, what, str(error))
                continue
            table = json.loads(out)
            for case, row in zip(group, table["rows"]):
                work.part(part).setdefault(preset, {})[str(case)] = row
                if row["step_ms_p50"] is None:
                    work.fail(part, f"{preset} {case}", "its streams never decode all at once; ask for more output")
                else:
                    work.succeed(part, f"{preset} {case}")
            work.part("starts").setdefault(f"bench {preset}", []).append(table["start_s"])
            work.part("machine")["kvant"] = table["device"]
            work.save()


def bench(work):
    bench_cases(work, "bench", work.args.cases, work.args.presets)


def slope(work):
    bench_cases(work, "slope", work.args.slope_cases, work.args.slope_presets)


def serve(work):
    by_preset = {}
    for case, preset in work.args.serve_cases:
        by_preset.setdefault(preset, []).append(case)
    for preset, wanted in by_preset.items():
        try:
            served(work, preset, wanted)
        except Failed as error:
            work.fail("serve", preset, str(error))


def served(work, preset, wanted):
    """A server for all cases of a preset."""
    args = work.args
    context = max(case.prompt + case.output for case in wanted)
    command = work.kvant("serve", preset=preset) + [
        "--port", "0", "--step-tokens", str(args.step_tokens), "--sequences", str(max(case.streams for case in wanted)),
        "--context-tokens", str(context)]
    print("+ " + shlex.join(command), file=sys.stderr, flush=True)
    log = work.folder / f"serve-{preset}.log"
    with open(log, "w") as err:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, text=True,
                                  start_new_session=True)
    lines = queue.Queue()
    threading.Thread(target=pass_on, args=(server.stdout, lines), daemon=True).start()
    try:
        try:
            line = lines.get(timeout=work.left())
        except queue.Empty:
            raise Late("the server did not listen within the limit") from None
        if not (line or "").startswith("listening on "):
            raise Failed(last_line(log.read_text()))
        ready = [line for line in log.read_text().splitlines() if "ready in " in line]
        if ready:
            seconds = float(ready[-1].split("ready in ")[1].split()[0])
            work.part("starts").setdefault(f"serve {preset}", []).append(seconds)
        url = line.removeprefix("listening on ").strip()
        try:
            with urllib.request.urlopen(f"{url}/admin/status", timeout=10) as status:
                work.part("machine").setdefault("kvant", json.load(status)["model"]["device"])
        except OSError as error:
            raise Failed(f"the server does not tell its device: {error}") from None
        # Not measured: the engine learns how many tokens a step may have.
        first = wanted[0]
        few = Case(f"{min(first.streams, -(-2 * args.step_tokens // first.prompt))}x{first.prompt}/2")
        load(work, url, few, 1)
        for number, case in enumerate(wanted):
            report = load(work, url, case, 2 + number)
            if report["errors"] or report["short"]:
                work.fail("serve", f"{preset} {case}", f"{report['errors']} failed, {report['short']} short: {report['error_kinds']}")
                continue
            work.part("serve").setdefault(preset, {})[str(case)] = report
            work.succeed("serve", f"{preset} {case}")
    finally:
        end(server)


def load(work, url, case, seed):
    vocab = SHAPES[work.args.shape]["vocab_size"]
    counts = ["--concurrency", str(case.streams), "--requests", str(case.streams), "--input-tokens", str(case.prompt),
              "--output-tokens", str(case.output), "--vocab", str(vocab), "--seed", str(seed)]
    return json.loads(work.run([work.args.kvant, "bench", "serve", "--url", url, *counts, "--json"]))


def hf(work):
    for found in work.worker("hf", work.args.hf_cases):
        work.part("hf")[found["case"]] = found
        work.save()


# ---------------------------------------------------------------- the table


def cell(value, digits=2):
    return "-" if value is None else f"{value:.{digits}f}"


def grade(points):
    """Least squares: milliseconds a step per 1000 tokens of context."""
    middle = [statistics.mean(column) for column in zip(*points)]
    over = sum((x - middle[0]) * (y - middle[1]) for x, y in points)
    return 1e3 * over / sum((x - middle[0]) ** 2 for x, _ in points)


def rows_of(title, heads, rows):
    return [f"### {title}", "", "| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|",
            *("| " + " | ".join(row) + " |" for row in rows), ""]


def markdown(found):
    machine = found.get("machine", {})
    copy = f"; copies at {machine['copy_tb_s']:.2f} TB/s" if "copy_tb_s" in machine else ""
    gpu = machine.get("gpu") or machine.get("kvant", "device not known")
    lines = [f"{gpu}{copy}. Weights: {found['weights']}. A case is streams x prompt / output.", ""]
    graph, table = found.get("torch", {}), found.get("bench", {})
    names = list(dict.fromkeys([*graph, *(case for rows in table.values() for case in rows)]))
    if names:
        rows = []
        for case in names:
            torch_ms = graph.get(case, {}).get("ms")
            row = [case, cell(torch_ms)]
            for preset in table:
                found_row = table[preset].get(case, {})
                ms = found_row.get("step_ms_p50")
                ratio = f" ({ms / torch_ms:.2f})" if ms and torch_ms else ""
                row.append(f"{cell(ms)}{ratio} / {cell(found_row.get('step_ms_mean'))}")
            rows.append(row)
        heads = ["case", "torch's graph", *(f"{preset}: median (over torch) / mean" for preset in table)]
        lines += rows_of("Milliseconds of a step while all streams decode", heads, rows)
        calls = found.get("calls", {})
        if graph and table and calls.get("torch") != calls.get("bench"):
            lines += ["torch and bench were measured in different calls: the ratios are not of one run.", ""]
        if table:
            tokens = [[case, *(f"{cell(row.get('output_tokens_per_s'), 0)} / {cell(row.get('prefill_tokens_per_s'), 0)}"
                               for row in (table[preset].get(case, {}) for preset in table))] for case in names]
            lines += rows_of("Output tokens/s over the whole run, and prefill tokens/s, offline", ["case", *table], tokens)
    if "serve" in found:
        rows = []
        for preset, reports in found["serve"].items():
            for case, report in reports.items():
                ttft, itl = report["ttft_ms"], report["itl_ms"] or {}
                rows.append([case, preset, cell(report["output_tokens_per_s"], 0), cell(report["duration_s"]), cell(ttft["p50"], 0),
                             cell(ttft["max"], 0), cell(itl.get("p50")), cell(itl.get("p99"))])
        heads = ["case", "cache", "output tokens/s", "s", "TTFT p50, ms", "TTFT max", "ITL p50, ms", "ITL p99"]
        lines += rows_of("Over HTTP, all requests at time 0", heads, rows)
    for case, row in found.get("hf", {}).items():
        lines += [f"transformers {row['transformers']}, continuous batching, {case}: {row['tokens_s']:.0f} output tokens/s "
                  f"({row['seconds']:.1f} s).", ""]
    if "slope" in found:
        grades = {}
        for preset, cases_of in found["slope"].items():
            points = [(Case(case).mid(), row["step_ms_p50"]) for case, row in cases_of.items() if row["step_ms_p50"]]
            if len(points) > 1:
                grades[preset] = grade(points)
        dense = grades.get("f16")
        rows = [[preset, cell(value, 4), cell(value / dense if dense else None)] for preset, value in grades.items()]
        lines += rows_of("Milliseconds a step per 1000 tokens of context", ["cache", "ms", "over f16"], rows)
    if "capacity" in found:
        plans = found["capacity"]
        rows = []
        for name, plan in plans.items():
            dense = plans.get(f"f16 {name.split()[1]} protect=true", {}).get("fit_tokens")
            rows.append([name, str(plan["fit_tokens"]), cell(plan["fit_tokens"] / dense if dense else None)])
        lines += rows_of("KV tokens that fit, by what one sequence may have", ["cache", "tokens", "over f16"], rows)
    if found.get("starts"):
        rows = [[name, ", ".join(cell(value, 1) for value in values)] for name, values in found["starts"].items()]
        lines += rows_of("Seconds to start, one after the other", ["command", "s"], rows)
    lines += [f"Failed: {what}: {why}" for what, why in found["failed"].items()]
    return "\n".join(lines).rstrip() + "\n"


def arguments():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--kvant", default="target/release/kvant")
    parse.add_argument("--kvant-flags", default="", help="more flags of kvant bench, serve and inspect")
    parse.add_argument("--parts", default="capacity,torch,bench,serve")
    parse.add_argument("--out", default="target/compare-gpu")
    parse.add_argument("--fresh", action="store_true")
    parse.add_argument("--cases", type=cases, default="1x1024/256,64x1024/256,32x8192/256,16x32768/128")
    parse.add_argument("--presets", default="f16,k8v4,tq4")
    parse.add_argument("--slope-cases", type=cases, default="8x1024/64,8x16384/64,8x65536/64")
    parse.add_argument("--slope-presets", default="f16,tq8,k8v4,tq4")
    parse.add_argument("--serve-cases", default="64x1024/256:f16,64x1024/256:tq4,32x8192/256:tq4,16x32768/128:tq4")
    parse.add_argument("--hf-cases", type=cases, default="64x1024/256")
    parse.add_argument("--step-tokens", type=int, default=8192)
    parse.add_argument("--memory-fraction", type=float, default=0.9)
    parse.add_argument("--limits", default="", help="PART=SECONDS, separated by commas")
    parse.add_argument("--weights", choices=["dummy", *NUMBERS], default="dummy")
    parse.add_argument("--device", default="cuda")
    parse.add_argument("--shape", choices=SHAPES, default="8b")
    parse.add_argument("--worker", choices=["torch", "hf"], help=argparse.SUPPRESS)
    args = parse.parse_args()
    args.parts = [part for part in args.parts.split(",") if part]
    args.presets, args.slope_presets = args.presets.split(","), args.slope_presets.split(",")
    pairs = [pair.split(":") for pair in args.serve_cases.split(",") if pair]
    args.serve_cases = [(Case(case), preset) for case, preset in pairs]
    limits = dict(pair.split("=") for pair in args.limits.split(",") if pair)
    for name in [*args.parts, *limits]:
        if name not in PARTS:
            parse.error(f"no part {name}; there are {', '.join(PARTS)}")
    args.limits = LIMITS | {name: float(seconds) for name, seconds in limits.items()}
    return args


def main():
    args = arguments()
    if args.worker:
        work = torch_steps if args.worker == "torch" else hf_batching
        return work(SHAPES[args.shape], args.device, args.cases)
    work = Work(args)
    call = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    parts = {"capacity": capacity, "torch": torch, "bench": bench, "slope": slope, "serve": serve, "hf": hf}
    for name in args.parts:
        work.until = time.monotonic() + args.limits[name]
        begin = time.monotonic()
        work.part("calls")[name] = call
        try:
            parts[name](work)
            work.succeed(name, "")
        except (Late, Failed, OSError, ValueError, KeyError) as error:
            work.fail(name, "", f"{type(error).__name__}: {error}" if not isinstance(error, (Late, Failed)) else str(error))
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    text = markdown(work.found)
    (work.folder / "compare-gpu.md").write_text(text)
    sys.stdout.write(text)
    return 1 if work.found["failed"] else 0


sys.exit(main())

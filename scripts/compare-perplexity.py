#!/usr/bin/env python3
"""Compare Kvant's perplexity with llama.cpp's, on the same GGUF files and the same windows of a text.

usage: compare-perplexity.py --kvant BIN --llama-perplexity BIN --text FILE --gguf FILE [--gguf FILE ...]
                             [--windows 8] [--threads N] [--reference] [--out FILE.md]
needs: python3 only; with --reference also pip install torch "transformers==4.*" accelerate gguf sentencepiece

Windows are of 512 tokens, one after the other, of which the last 255 are predicted; each begins with the token that
begins a text, if the model wants one. Both keep keys and values in 16 bits. Prints a Markdown table with versions and
flags, and ends with 1 if a ratio is more than 1 % from 1, or if the two did not predict the same number of tokens.

--reference adds the transformers library in float32, weights dequantized from the same file, on token ids of its own.
"""
import argparse, json, math, os, pathlib, re, subprocess, sys

CONTEXT = 512
FROM = CONTEXT // 2
LIMIT = 0.01


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done


def kvant_flags(args):
    return ["--context", str(CONTEXT), "--windows", str(args.windows), "--batch", "1", "--presets", "f16",
            "--needles", "0"] + (["--threads", str(args.threads)] if args.threads else [])


def llama_flags(args):
    return ["-c", str(CONTEXT), "-b", str(CONTEXT), "--chunks", str(args.windows), "-ctk", "f16", "-ctv", "f16"] + (
        ["-t", str(args.threads)] if args.threads else [])


def kvant(args, path):
    """Perplexity and the number of predicted tokens."""
    done = run([args.kvant, "eval", path, "--text", args.text, "--json", *kvant_flags(args)])
    row = json.loads(done.stdout)["quality"][0]["rows"][0]
    return row["perplexity"], row["positions"]


def llama(args, path):
    done = run([args.llama_perplexity, "-m", path, "-f", args.text, *llama_flags(args)])
    said = done.stdout + done.stderr
    final = re.search(r"Final estimate: PPL = ([0-9.]+) \+/- ([0-9.]+)", said)
    chunks = re.findall(r"\[(\d+)\][0-9.]+,", said)
    if not final or not chunks:
        raise SystemExit(f"{args.llama_perplexity} printed no estimate: {said.strip()[-500:]}")
    return float(final[1]), float(final[2]), int(chunks[-1]) * (CONTEXT - FROM - 1)


def reference(args, path):
    """The transformers library; the ids are those of its own reading of the file's vocabulary."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = os.path.split(os.path.abspath(path))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    ids = tokenizer(pathlib.Path(args.text).read_text(encoding="utf-8"))["input_ids"]
    begin = tokenizer.bos_token_id if ids[0] == tokenizer.bos_token_id else None
    loss = 0.0
    for at in range(args.windows):
        window = ids[at * CONTEXT:][:CONTEXT]
        if begin is not None:
            window[0] = begin
        with torch.inference_mode():
            logits = model(torch.tensor([window])).logits[0, FROM:-1].double()
        targets = torch.tensor(window[FROM + 1:])
        loss += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return math.exp(loss / (args.windows * (CONTEXT - FROM - 1)))


def version(binary):
    done = run([binary, "--version"])
    return (done.stdout + done.stderr).strip().splitlines()[0].removeprefix("version: ")


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--kvant", "--llama-perplexity", "--text"):
        parse.add_argument(flag, required=True)
    parse.add_argument("--gguf", required=True, action="append")
    parse.add_argument("--windows", type=int, default=8)
    parse.add_argument("--threads", type=int)
    parse.add_argument("--reference", action="store_true")
    parse.add_argument("--out")
    args = parse.parse_args()

    lines = [f"- kvant: {version(args.kvant)}, `eval FILE --text TEXT {' '.join(kvant_flags(args))}`",
             f"- llama.cpp: {version(args.llama_perplexity)}, `llama-perplexity -m FILE -f TEXT "
             f"{' '.join(llama_flags(args))}`"]
    head = ["file", "tokens", "kvant", "llama.cpp", "its standard error", "kvant / llama.cpp"]
    if args.reference:
        import transformers
        lines.append(f"- transformers {transformers.__version__}, float32")
        head += ["transformers", "kvant / transformers", "llama.cpp / transformers"]
    lines += ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    wrong = []
    for path in args.gguf:
        (own, positions), (other, error, others) = kvant(args, path), llama(args, path)
        if positions != others:
            wrong.append(f"{path}: kvant predicted {positions} tokens, llama.cpp {others}")
        if not abs(own / other - 1) <= LIMIT:
            wrong.append(f"{path}: the ratio {own / other:.4f} is more than {LIMIT:.0%} from 1")
        row = [os.path.basename(path), str(positions), f"{own:.4f}", f"{other:.4f}", f"{error:.2f}", f"{own / other:.4f}"]
        if args.reference:
            exact = reference(args, path)
            row += [f"{exact:.4f}", f"{own / exact:.4f}", f"{other / exact:.4f}"]
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.out:
        pathlib.Path(args.out).write_text(text, encoding="utf-8")
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

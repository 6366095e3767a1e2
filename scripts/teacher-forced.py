#!/usr/bin/env python3
"""Check a running Kvant against the transformers library on the same weights, teacher-forced.

usage: teacher-forced.py http://127.0.0.1:PORT MODEL [--tokens 64]      (MODEL: a .gguf file, or a folder of safetensors)
needs: pip install torch "transformers==4.*" accelerate gguf sentencepiece

Kvant continues 20 prompts greedily. transformers (float32, weights dequantized from the same file) then reads each
prompt with Kvant's continuation and is asked, at every position, what it would have said: top-1 agreement, and the
mean absolute difference of the log-probabilities of Kvant's tokens. Fails under 99 %.
"""
import argparse, json, os, sys, urllib.request

PROMPTS = [
    "What is the capital of France?", "Explain why the sky is blue in one paragraph.", "Write a haiku about the sea.",
    "Name three uses of a paperclip.", "How do I boil an egg?", "Translate 'good morning' into Spanish and Italian.",
    "What is 17 times 23? Show the steps.", "Tell me a short story about a lighthouse keeper.", "What is photosynthesis?",
    "Give me a recipe for pancakes.", "Who wrote Pride and Prejudice?", "Write a Python function that reverses a list.",
    "What are the planets of the solar system?", "Summarise the plot of Romeo and Juliet.", "What is a prime number?",
    "How does a bicycle stay upright?", "List five animals that live in the desert.", "What causes tides?",
    "Describe the taste of a lemon to someone who has never had one.", "Why do leaves change colour in autumn?",
]


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("url")
    parse.add_argument("model")
    parse.add_argument("--tokens", type=int, default=64)
    args = parse.parse_args()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging
    logging.set_verbosity_error()
    folder, files = os.path.abspath(args.model), {}
    if not os.path.isdir(folder):
        folder, files["gguf_file"] = os.path.split(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, **files)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **files)

    def complete(prompt):
        body = {"prompt": prompt, "max_tokens": args.tokens, "temperature": 0, "ignore_eos": True, "logprobs": 5,
                "return_token_ids": True}
        ask = urllib.request.Request(args.url + "/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(ask, timeout=600))["choices"][0]

    same = positions = 0
    gaps = []
    for text in PROMPTS:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        choice = complete(prompt)
        output = choice["token_ids"]
        assert len(output) == args.tokens, f"{len(output)} tokens for {text!r}"
        with torch.no_grad():
            logits = model(torch.tensor([prompt + output])).logits[0, len(prompt) - 1:-1]
        agree = logits.argmax(-1).tolist()
        same += sum(a == b for a, b in zip(agree, output))
        positions += len(output)
        likely = torch.log_softmax(logits.double(), -1)
        for row, token, ours in zip(likely, output, choice["logprobs"]["token_logprobs"]):
            gaps.append(abs(row[token].item() - ours))
    print(f"positions {positions}; top-1 agreement {100 * same / positions:.2f} %; "
          f"mean |difference of log-probability| {sum(gaps) / len(gaps):.4f}, largest {max(gaps):.4f}")
    sys.exit(0 if same >= 0.99 * positions else 1)


main()

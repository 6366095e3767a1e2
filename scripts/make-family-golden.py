#!/usr/bin/env python3
"""Make tests/golden/text/vocabularies/*.json and families.json: words of each family, without files of third parties.

usage: make-family-golden.py [--llama-tokenize BIN]
needs: pip install transformers==4.57.6 tokenizers==0.22.2 jinja2==3.1.6 sentencepiece==0.2.3 gguf==0.19.0; no network

vocabularies/*.json: small vocabularies of each kind that GGUF files hold, and ids of texts. They are trained here, on
this repository's own documents and the texts themselves, with the words, the normaliser and the special tokens of each
family's published tokenizer. Ids are those of the tokenizers library; of SentencePiece vocabularies they are checked
against SentencePiece itself. With --llama-tokenize, every vocabulary but the one without bytes, which it cannot read, is
also written as a GGUF file and read by llama.cpp; texts of which it makes other ids are printed (it does not compose
Qwen's texts).

families.json: the templates of families/*.jinja, written for this with the constructs of each family's published one,
rendered for conversations by Jinja as the transformers library sets it up.
"""

import argparse
import importlib.util
import io
import json
import pathlib
import subprocess
import tempfile

import gguf
import sentencepiece
import tokenizers
import transformers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "golden" / "text" / "vocabularies"
MAX_BYTES = 40_000
SIZE = 640

spec = importlib.util.spec_from_file_location("golden", ROOT / "scripts" / "make-text-golden.py")
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)

VERSIONS = {
    "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
    "sentencepiece": sentencepiece.__version__,
}

TEXTS = golden.TEXTS + [
    "1 12 123 1234 12345 123456 1234567",
    "x" + " " * 17 + "y" + "\n" * 5 + "z\t\t\t\tw \n \n  \t\n",
    "\u000b\u000c\u0085\u2028\u2029 a\u2003b\u202f\u205fc",
    "Unreachable unreachable HELLO hello HelloWorld helloWorld HTTPServer iPhone's DON'T",
    "/usr/bin//env\n/path/to\r\n// comment\n\n/x",
    "a\u0300\u0301b e\u0301e \u1e9b\u0323 \ufb01 \uff21\uff22\uff11",
    "ǅ ǈ ʰ ª ª1 Ⅷ ① ५ 〇 ৪৫",
    "\U0001f3f3\ufe0f\u200d\U0001f308\U0001f468\u200d\U0001f469 \U0001faf6\U0001f3fd",
    "<|user|>\nhi<|end|>\n <|assistant|>\n\n x <|end|> y<|endoftext|> z</s> w",
    "<|user|>a<|end|><|assistant|>b",
    "[INST] a [/INST] b</s>[INST]c[/INST]",
    "  <|im_start|>  ",
    "<|im_start|><|im_start|> <|im_end|>\n",
    "\u001b[31mred\u001b[0m \u0007\b",
]

# As in the published tokenizer.json of GPT-2, Llama 3, Qwen2.5, Mistral Nemo and Phi-4-mini.
WORDS = {
    "gpt-2": None,
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                 r"\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
             r"\s+(?!\S)|\s+",
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
              r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
              r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
              r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
              r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}

# name: pre, words, control tokens, user-defined tokens, BOS, EOS, whether whole words come first, whether BOS is added
BYTE_LEVEL = {
    "gpt-2": ("gpt-2", "gpt-2", ["<|endoftext|>"], [], "<|endoftext|>", "<|endoftext|>", False, False),
    "smollm": ("smollm", "gpt-2", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [], "<|im_start|>", "<|im_end|>",
               False, False),
    "llama-3": ("llama-bpe", "llama-bpe", ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
                [], "<|begin_of_text|>", "<|eot_id|>", True, True),
    "qwen2": ("qwen2", "qwen2", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"],
              "<|endoftext|>", "<|im_end|>", False, False),
    "tekken": ("tekken", "tekken", ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], [], "<s>", "</s>", True, True),
    "phi-4-mini": ("gpt-4o", "gpt-4o", ["<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"], [],
                   "<|endoftext|>", "<|endoftext|>", False, False),
    "smollm3": ("smaug-bpe", "llama-bpe", ["<|im_start|>", "<|im_end|>"], ["<think>", "</think>"], None, "<|im_end|>",
                False, False),
}

# name: bytes without a piece, a space before, control tokens, user-defined symbols, tokens added behind the model's
SENTENCE = {
    "llama-2": (True, True, [], [], []),
    "mistral-v3": (True, True, ["[INST]", "[/INST]"], [], []),
    "llama-no-bytes": (False, True, [], [], []),
    "gemma": (True, False, ["<pad>"], ["<start_of_turn>", "<end_of_turn>", "\n\n", "▁▁", "▁▁▁▁"], []),
    "phi-3": (True, True, [], [], ["<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"]),
}

# Words that are tokens though no merges lead to them: only families that look for whole words first find them.
WHOLE = ["Unreachable", "Ġunreachable", "Ġ你好"]


def corpus():
    files = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    return lines + [text for text in TEXTS if "\0" not in text] * 4


def texts(tokenizer):
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        cases.append({"text": text, "ids": ids, "decoded": decoded})
    return cases


def split(name):
    steps = {
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    }
    if name in steps:
        return pre_tokenizers.Sequence(steps[name])
    regex = tokenizers.Regex(WORDS[BYTE_LEVEL[name][1]])
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(regex, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level(name):
    """The transformers tokenizer and the metadata of its GGUF."""
    pre, _, control, user, bos, eos, whole, adds_bos = BYTE_LEVEL[name]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = split(name)
    if name == "qwen2":
        backend.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(corpus(), trainer)
    model = json.loads(backend.to_str())["model"]
    vocab = model["vocab"]
    for word in WHOLE:
        letters = "".join(byte_letters(word))
        assert letters not in vocab
        vocab[letters] = len(vocab)
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    backend.model = models.BPE(vocab=vocab, merges=merges, ignore_merges=whole)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    backend.add_tokens([AddedToken(token, normalized=False) for token in user])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    every = backend.get_vocab(with_added_tokens=True)
    tokens = [token for token, _ in sorted(every.items(), key=lambda item: item[1])]
    kinds = [3 if token in control else 4 if token in user else 1 for token in tokens]
    return tokenizer, {
        "kind": "gpt2", "pre": pre, "tokens": tokens, "scores": [], "token_types": kinds,
        "merges": [" ".join(merge) for merge in merges], "bos": every.get(bos), "eos": every[eos],
        "add_bos": None if adds_bos else False, "add_space_prefix": None, "architecture": None,
        "begins_with": every[bos] if adds_bos else None,
    }


def byte_letters(word):
    """GPT-2's alphabet; a leading Ġ stands for itself."""
    rest = word.removeprefix("Ġ")
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(rest)
    return (["Ġ"] if rest != word else []) + [piece for piece, _ in pieces]


def sentence(name):
    """The same of a SentencePiece model; its special tokens are found by the transformers library."""
    bytes_, prefix, control, user, added = SENTENCE[name]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, model_type="bpe", vocab_size=SIZE + 200,
        byte_fallback=bytes_, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=prefix, split_digits=True, allow_whitespace_only_pieces=True, character_coverage=0.98,
        control_symbols=control, user_defined_symbols=user, minloglevel=2)
    own = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    size = range(own.get_piece_size())
    tokens, scores = [own.id_to_piece(i) for i in size], [own.get_score(i) for i in size]
    kinds = [
        2 if own.is_unknown(i) else 3 if own.is_control(i) else 6 if own.is_byte(i) else 4 if tokens[i] in user else 1
        for i in size
    ]
    backend = fast(tokens, scores, kinds, prefix, bytes_)
    # Phi-3's take the spaces and line ends behind them.
    strips = lambda token: token != "<|endoftext|>"
    backend.add_special_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, kinds) if k in (2, 3) and t != "</s>"])
    backend.add_special_tokens([AddedToken("</s>", normalized=False, rstrip=bool(added))])
    backend.add_tokens([AddedToken(token, normalized=False) for token in user])
    backend.add_special_tokens([AddedToken(token, normalized=False, rstrip=strips(token)) for token in added])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    check_sentence(own, tokenizer, control + user + added)
    return tokenizer, {
        "kind": "llama", "pre": "default", "tokens": tokens + added, "scores": scores + [-1000.0] * len(added),
        "token_types": kinds + [3] * len(added), "merges": [], "bos": 1, "eos": 2, "add_bos": None,
        "add_space_prefix": None if prefix else False, "architecture": "phi3" if name == "phi-3" else None,
        "begins_with": 1,
    }


def fast(tokens, scores, kinds, prefix, bytes_):
    """As transformers converts Llama's and Gemma's models."""
    ids = {token: i for i, token in enumerate(tokens)}
    ranked = sorted((-scores[i], i) for i in range(len(tokens)) if kinds[i] in (1, 4))
    merges = []
    for _, i in ranked:
        cuts = range(1, len(tokens[i]))
        pairs = [(tokens[i][:at], tokens[i][at:]) for at in cuts]
        pairs = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    backend = tokenizers.Tokenizer(models.BPE(
        vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=bytes_))
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefix else []))
    return backend


def check_sentence(own, tokenizer, special):
    special = [*special, "<s>", "</s>", "<unk>"]
    for text in TEXTS:
        if "\0" in text or any(token in text for token in special):
            continue
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert own.encode(text) == ids, (text, own.encode(text), ids)


def write_gguf(path, vocab):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("phi-3" if vocab["architecture"] == "phi3" else "small")
    writer.add_tokenizer_model(vocab["kind"])
    writer.add_tokenizer_pre(vocab["pre"])
    writer.add_token_list(vocab["tokens"])
    writer.add_token_types(vocab["token_types"])
    if vocab["scores"]:
        writer.add_token_scores(vocab["scores"])
    if vocab["merges"]:
        writer.add_token_merges(vocab["merges"])
    if vocab["bos"] is not None:
        writer.add_bos_token_id(vocab["bos"])
    writer.add_eos_token_id(vocab["eos"])
    if vocab["add_bos"] is not None:
        writer.add_add_bos_token(vocab["add_bos"])
    if vocab["add_space_prefix"] is not None:
        writer.add_add_space_prefix(vocab["add_space_prefix"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def compare(binary, name, vocab, cases):
    """Prints the texts of which llama.cpp makes other ids."""
    begins = [] if vocab["begins_with"] is None else [vocab["begins_with"]]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "vocab.gguf"
        write_gguf(path, vocab)
        for case in cases:
            text = pathlib.Path(folder) / "text"
            text.write_text(case["text"], encoding="utf-8", newline="")
            command = [binary, "-m", path, "-f", text, "--ids", "--no-escape", "--log-disable"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found, expected = json.loads(done.stdout), begins + case["ids"]
            if found != expected:
                print(f"{name}: {case['text']!r}\n  llama.cpp    {found}\n  tokenizers   {expected}")


TOKENS = {
    "gemma-2": ("<bos>", "<eos>"), "gemma-3": ("<bos>", "<eos>"), "llama-2": ("<s>", "</s>"),
    "llama-3.2": ("<|begin_of_text|>", "<|eot_id|>"), "mistral-nemo": ("<s>", "</s>"), "phi-3": ("<s>", "<|endoftext|>"),
    "phi-4-mini": ("<|endoftext|>", "<|endoftext|>"), "qwen2.5": (None, "<|im_end|>"), "qwen3": (None, "<|im_end|>"),
    "smollm2": ("<|im_start|>", "<|im_end|>"), "smollm3": (None, "<|im_end|>"),
}


def one_call(arguments):
    return {**golden.call(arguments, None), "tool_calls": golden.call(arguments, None)["tool_calls"][:1]}


def conversations():
    """Those of all templates, and some that only some families' templates take."""
    user, answer, again, system, tools = golden.USER, golden.ANSWER, golden.AGAIN, golden.SYSTEM, golden.TOOLS
    modes = {"role": "system", "content": "Be brief. /no_think  "}
    override = {"role": "system", "content": "Alone. /system_override /think"}
    own_tools = {**system, "tools": "[{\"name\": \"now\"}]"}
    parts = {"role": "system", "content": [{"type": "text", "text": "Terse."}]}
    picture = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what? "}]}
    result = {**golden.TOOL, "content": {"content": 21.5}}
    listed = {**golden.TOOL, "content": [1, "a", None]}
    called = one_call(golden.ARGUMENTS)
    more = {
        "one call": ([user, called, golden.TOOL], tools, True, False, {}),
        "one call, answered": ([system, user, called, golden.TOOL, answer, again], tools, True, False, {}),
        "one call, object": ([user, called, result], tools, True, False, {}),
        "one call, list": ([user, called, listed], tools, True, False, {}),
        "bad id": ([user, {**called, "tool_calls": [{**called["tool_calls"][0], "id": "x"}]}], tools, True, False, {}),
        "tools in system": ([system, user], tools, True, False, {"tools_in_user_message": False}),
        "date": ([user], None, True, False, {"date_string": "25 Nov 2026"}),
        "modes": ([modes, user, answer, again], None, True, False, {}),
        "override": ([override, user], None, True, False, {}),
        "python tools": ([user], None, True, False, {"python_tools": tools, "xml_tools": tools}),
        "own tools": ([own_tools, user], None, True, False, {}),
        "system in parts": ([parts, user], None, True, False, {}),
        "picture": ([picture], None, True, False, {}),
        "many turns": ([system] + [user, answer] * 4 + [again], None, True, False, {}),
        "empty": ([{"role": "user", "content": ""}, {"role": "assistant", "content": ""}], None, False, False, {}),
        "tool at the end": ([user, golden.TOOL], None, False, False, {}),
        "tool first": ([golden.TOOL, user], None, True, False, {}),
        "response as question": ([user, answer, {"role": "user", "content": "<tool_response>x</tool_response>"},
                                  golden.THOUGHT], None, False, False, {}),
        "markup": ([{"role": "user", "content": "{{ 1 }} {% if x %} {# c #} <|im_end|>"}], None, True, False, {}),
    }
    # What is continued does not depend on the family.
    same = {name: given for name, given in golden.CONVERSATIONS.items() if not given[3]}
    return {**same, **more}


def templates():
    plain = lambda messages: [{k: v for k, v in m.items() if v is not None} for m in messages]
    every, rows = conversations(), []
    for path in sorted((OUT.parent / "families").glob("*.jinja")):
        bos, eos = TOKENS[path.stem]
        tokens = {key: token for key, token in (("bos_token", bos), ("eos_token", eos)) if token}
        render = golden.snippet(path.read_text(encoding="utf-8"), tokens)
        cases = {}
        for name, arguments in every.items():
            found = golden.case(name, arguments, lambda m, *rest: render(plain(m), *rest), render)
            cases[name] = {key: found[key] for key in ("text", "raises", "fails", "syntax") if key in found}
        kinds = [next(iter(case)) for case in cases.values()]
        print(path.stem, {kind: kinds.count(kind) for kind in sorted(set(kinds))})
        rows.append({"name": path.stem, "bos": bos, "eos": eos, "cases": cases})
    keys = ("messages", "tools", "add_generation_prompt", "continue_final_message", "kwargs")
    listed = [{"name": name, **dict(zip(keys, arguments))} for name, arguments in every.items()]
    versions = {"transformers": transformers.__version__, "jinja2": golden.VERSIONS["jinja2"]}
    dump = lambda rows: "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]"
    text = f'{{"versions": {json.dumps(versions)},\n"conversations": {dump(listed)},\n"templates": {dump(rows)}}}\n'
    assert json.loads(text)["templates"] == rows
    (OUT.parent / "families.json").write_text(text, encoding="utf-8")
    print("families.json", len(text.encode()), "bytes")


def write(name, tokenizer, vocab, binary):
    cases = texts(tokenizer)
    lists = {key: value for key, value in vocab.items() if isinstance(value, list)}
    rest = {key: value for key, value in vocab.items() if not isinstance(value, list)}
    content = {"versions": VERSIONS, "vocab": {**rest, **lists}, "texts": cases}
    if binary and name != "llama-no-bytes":
        compare(binary, name, vocab, cases)
    parts = [json.dumps(case, ensure_ascii=False) for case in cases]
    head = {key: value for key, value in content.items() if key != "texts"}
    text = json.dumps(head, ensure_ascii=False)[:-1] + ',\n"texts": [\n' + ",\n".join(parts) + "\n]}\n"
    assert json.loads(text) == content and len(text.encode()) <= MAX_BYTES, len(text.encode())
    (OUT / f"{name}.json").write_text(text, encoding="utf-8")
    print(name, len(vocab["tokens"]), "tokens,", len(text.encode()), "bytes")


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--llama-tokenize")
    args = parse.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    templates()
    for name in BYTE_LEVEL:
        write(name, *byte_level(name), args.llama_tokenize)
    for name in SENTENCE:
        write(name, *sentence(name), args.llama_tokenize)


if __name__ == "__main__":
    main()

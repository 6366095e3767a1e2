#!/usr/bin/env python3
"""What users of openai-python rely on, against a started Kvant server.

usage: openai_client.py http://127.0.0.1:PORT MODEL [overload]
needs: the openai package. With `overload` the server must be started with few sequences and a short queue.
The last line says how many checks passed and failed; the exit code is 1 if any failed.
"""
import base64, concurrent.futures, json, struct, sys

import checks
import openai

ADDRESS, MODEL = sys.argv[1], sys.argv[2]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CLIENT = openai.OpenAI(base_url=f"{ADDRESS}/v1", api_key="none", max_retries=0, timeout=300)


def chat(**options):
    options = {"model": MODEL, "messages": QUESTION, "max_tokens": 24, "temperature": 0} | options
    return CLIENT.chat.completions.create(**options)


def refused(kind, status, **options):
    try:
        chat(**options)
    except kind as error:
        assert error.status_code == status, error
        assert error.body["message"] and error.body["type"], error.body
        return error
    raise AssertionError(f"no {kind.__name__} for {options}")


def plain_chat():
    answer = chat()
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.model == MODEL, answer
    assert choice.message.role == "assistant" and choice.message.content.strip(), choice
    assert choice.finish_reason in ("stop", "length"), choice
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    assert 0 < usage.completion_tokens <= 24, usage
    if MODEL.startswith("smollm2"):
        assert "Paris" in choice.message.content, choice.message.content


def streamed_chat_says_the_same():
    whole = chat().choices[0]
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    pieces = [c.choices[0] for c in chunks if c.choices]
    assert "".join(p.delta.content or "" for p in pieces) == whole.message.content
    assert [p.finish_reason for p in pieces if p.finish_reason] == [whole.finish_reason]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0, chunks[-1]
    assert len({c.id for c in chunks}) == 1


def leaving_a_stream_early():
    stream = chat(stream=True, max_tokens=500)
    next(iter(stream))
    stream.close()
    assert chat(max_tokens=2).choices


def two_answers():
    answer = chat(n=2, temperature=1.0, seed=7)
    assert [c.index for c in answer.choices] == [0, 1]
    assert all(c.message.content for c in answer.choices)
    again = chat(n=2, temperature=1.0, seed=7)
    assert [c.message.content for c in again.choices] == [c.message.content for c in answer.choices]
    seen = {chunk.choices[0].index for chunk in chat(n=2, stream=True) if chunk.choices}
    assert seen == {0, 1}, seen


def log_probabilities():
    content = chat(logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content
    assert 1 <= len(content) <= 4, content
    for entry in content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3, entry
        best = [top.logprob for top in entry.top_logprobs]
        assert best == sorted(best, reverse=True) and entry.logprob == best[0], entry
        assert entry.bytes is None or bytes(entry.bytes).decode(errors="replace") == entry.token, entry


def stop_strings():
    whole = chat(max_tokens=16).choices[0].message.content
    stop = whole.strip()[2:4]
    cut = chat(max_tokens=16, stop=[stop]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)], (whole, stop, cut)
    assert cut.finish_reason == "stop", cut


def length_is_a_finish_reason():
    answer = chat(max_tokens=1, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length", answer
    assert answer.usage.completion_tokens == 1, answer.usage


def text_completion():
    options = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    answer = CLIENT.completions.create(**options)
    assert answer.object == "text_completion" and answer.choices[0].text, answer
    pieces = [c.choices[0].text for c in CLIENT.completions.create(stream=True, **options) if c.choices]
    assert "".join(pieces) == answer.choices[0].text, pieces
    echoed = CLIENT.completions.create(echo=True, logprobs=2, **options).choices[0]
    assert echoed.text == options["prompt"] + answer.choices[0].text, echoed
    assert echoed.logprobs.token_logprobs[0] is None, echoed.logprobs


def concurrent_streams_are_what_each_is_alone():
    def text(seed):
        return chat(seed=seed, temperature=1.0, max_tokens=8 + seed).choices[0].message.content

    alone = [text(seed) for seed in range(16)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(text, range(16))) == alone


def models():
    assert MODEL in [model.id for model in CLIENT.models.list()]
    assert CLIENT.models.retrieve(MODEL).id == MODEL


def unknown_names_are_not_found():
    refused(openai.NotFoundError, 404, model="no-such-model")
    try:
        CLIENT.models.retrieve("no-such-model")
    except openai.NotFoundError:
        return
    raise AssertionError("no NotFoundError")


def wrong_values_are_bad_requests():
    for options in [
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"top_p": 1.5},
        {"messages": []},
        {"n": 0},
        {"logprobs": True, "top_logprobs": 1000},
    ]:
        refused(openai.BadRequestError, 400, **options)


def a_prompt_past_the_context_says_so():
    long = [{"role": "user", "content": "word " * 20000}]
    error = refused(openai.BadRequestError, 400, messages=long)
    assert error.code == "context_length_exceeded", error.body


def tool(name, *cities):
    properties = {"city": {"type": "string", "enum": list(cities)}}
    parameters = {"type": "object", "properties": properties, "required": ["city"], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "Of a city.", "parameters": parameters}}


TOOLS = [tool("get_weather", "Paris", "Rome"), tool("get_time", "Oslo")]


def called(calls, *names):
    """Checks calls against the schemas of TOOLS and returns their names."""
    cities = {t["function"]["name"]: t["function"]["parameters"]["properties"]["city"]["enum"] for t in TOOLS}
    for call in calls:
        assert call.type == "function" and call.id.startswith("call_"), call
        arguments = json.loads(call.function.arguments)
        assert list(arguments) == ["city"] and arguments["city"] in cities[call.function.name], call
    assert len({call.id for call in calls}) == len(calls) > 0, calls
    assert {call.function.name for call in calls} <= set(names), calls


def tools_are_called_as_asked():
    def ask(choice, **more):
        return chat(tools=TOOLS, tool_choice=choice, max_tokens=300, **more)

    named = {"type": "function", "function": {"name": "get_time"}}
    every = ["get_weather", "get_time"]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    for choice, names in [("required", every), (named, ["get_time"]), (allowed, ["get_time"])]:
        answer = ask(choice, parallel_tool_calls=False).choices[0]
        assert answer.finish_reason == "tool_calls", answer
        assert answer.message.content is None and len(answer.message.tool_calls) == 1, answer
        called(answer.message.tool_calls, *names)
        with CLIENT.chat.completions.stream(
            model=MODEL, messages=QUESTION, temperature=0, max_tokens=300, tools=TOOLS,
            tool_choice=choice, parallel_tool_calls=False,
        ) as stream:
            final = stream.get_final_completion().choices[0]
        assert final.finish_reason == "tool_calls", final
        same = [(call.function.name, call.function.arguments) for call in final.message.tool_calls]
        assert same == [(c.function.name, c.function.arguments) for c in answer.message.tool_calls], final
    none = ask("none").choices[0]
    assert none.message.tool_calls is None and none.message.content == chat(max_tokens=300).choices[0].message.content
    auto = ask("auto").choices[0]
    assert auto.finish_reason in ("stop", "length", "tool_calls") and auto.message.role == "assistant", auto


def results_of_tools_are_read():
    call = chat(tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=300).choices[0].message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "sunny"}
    answer = chat(tools=TOOLS, messages=[*QUESTION, call, result])
    assert answer.choices[0].message.role == "assistant", answer
    assert answer.usage.prompt_tokens > chat(tools=TOOLS).usage.prompt_tokens, answer.usage


def wrong_tools_are_named():
    for options, param in [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
    ]:
        error = refused(openai.BadRequestError, 400, **options)
        assert error.param == param, error.body


def overload_is_a_rate_limit():
    def ask(_):
        try:
            chat(max_tokens=600, extra_body={"ignore_eos": True})
            return None
        except openai.APIStatusError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        errors = [error for error in pool.map(ask, range(24)) if error]
    assert errors and len(errors) < 24, f"{len(errors)} of 24 were refused"
    for error in errors:
        assert isinstance(error, openai.RateLimitError), error
        assert int(error.response.headers["retry-after"]) >= 1, error.response.headers
    assert chat(max_tokens=2).choices


WEATHER = [{"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
                   "required": ["city"], "additionalProperties": False}}}]


def tools_by_every_choice():
    for choice in ["none", "auto", "required", {"type": "function", "function": {"name": "get_weather"}}]:
        options = {"tools": WEATHER, "tool_choice": choice, "max_tokens": 64}
        whole = chat(**options).choices[0]
        called = whole.message.tool_calls or []
        if choice == "none":
            assert not called, whole
        if choice not in ("none", "auto"):
            assert [call.function.name for call in called][:1] == ["get_weather"], whole
            if whole.finish_reason == "tool_calls":
                assert set(json.loads(called[0].function.arguments)) == {"city"}, called
        names, arguments, end = [], "", None
        for chunk in chat(stream=True, **options):
            for piece in chunk.choices:
                end = piece.finish_reason or end
                for call in piece.delta.tool_calls or []:
                    names += [call.function.name] if call.function.name else []
                    arguments += call.function.arguments or ""
        assert end == whole.finish_reason, (end, whole)
        assert names == [call.function.name for call in called], (choice, names, whole)
        assert arguments == "".join(call.function.arguments for call in called), (choice, arguments)


def parse_with_a_json_schema():
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "big": {"type": "boolean"}},
              "required": ["city", "big"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    answer = json.loads(chat(response_format=form, max_tokens=600).choices[0].message.content)
    assert answer["city"] in ("Paris", "Rome") and isinstance(answer["big"], bool), answer


def ask(**options):
    options = {"model": MODEL, "input": "What is the capital of France?", "max_output_tokens": 24, "temperature": 0} | options
    return CLIENT.responses.create(**options)


def responses():
    whole = ask(instructions="Be brief.", metadata={"a": "b"})
    assert whole.object == "response" and whole.status in ("completed", "incomplete"), whole
    assert whole.store is False and whole.metadata == {"a": "b"}, whole
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens, whole.usage
    events = list(ask(instructions="Be brief.", metadata={"a": "b"}, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"], kinds
    assert kinds[-1] == f"response.{whole.status}", kinds
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == whole.output_text == events[-1].response.output_text, (said, whole)
    chat_says = ask(input=[{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}])
    assert chat_says.output_text == ask(input="Hello").output_text
    turns = [{"role": "user", "content": "Weather?"},
             {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
             {"type": "function_call_output", "call_id": "c1", "output": "sunny"}]
    if not MODEL.startswith("tiny"):
        assert ask(input=turns).status in ("completed", "incomplete")
    for wrong, param in [({"previous_response_id": "resp_1"}, "previous_response_id"),
                         ({"input": []}, "input"), ({"background": True}, "background"),
                         ({"truncation": "auto"}, "truncation")]:
        try:
            ask(**wrong)
        except openai.BadRequestError as error:
            assert error.param == param, error
        else:
            raise AssertionError(f"{wrong} was taken")


def embeddings():
    texts = ["the whale", "the sea", "the whale"]
    answer = CLIENT.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    vectors = [entry.embedding for entry in answer.data]
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    assert vectors[0] == vectors[2] != vectors[1]
    assert all(abs(sum(x * x for x in vector) - 1) < 1e-4 for vector in vectors)
    packed = CLIENT.embeddings.create(model=MODEL, input=texts, encoding_format="base64")
    for entry, vector in zip(packed.data, vectors):
        raw = base64.b64decode(entry.embedding)
        floats = struct.unpack(f"<{len(raw) // 4}f", raw)
        assert all(abs(a - b) < 1e-6 for a, b in zip(floats, vector)) and len(floats) == len(vector)
    assert answer.usage.total_tokens > 0
    whole = len(vectors[0])
    assert len(CLIENT.embeddings.create(model=MODEL, input="a", dimensions=whole, encoding_format="float").data[0].embedding) == whole
    for wrong in [{"dimensions": whole - 1}, {"input": ""}, {"input": []}, {"input": [-1]}, {"encoding_format": "hex"}]:
        try:
            CLIENT.embeddings.create(**({"model": MODEL, "input": "a"} | wrong))
        except openai.BadRequestError as error:
            assert error.param == next(iter(wrong)), error
        else:
            raise AssertionError(f"{wrong} was taken")


def unknown_fields_are_told():
    raw = CLIENT.chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, max_tokens=1, extra_body={"top_q": 1, "stop_word": "x"})
    names = set(raw.headers["x-kvant-unknown-fields"].split(", "))
    assert names == {"top_q", "stop_word"}, raw.headers
    refused(openai.BadRequestError, 400, store=True)


def best_of_and_prompt_logprobs():
    options = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 4, "seed": 3}
    drawn = CLIENT.completions.create(n=4, logprobs=0, **options).choices
    mean = {choice.text: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs) for choice in drawn
            if choice.logprobs.token_logprobs}
    best = CLIENT.completions.create(n=1, best_of=4, **options).choices
    assert len(best) == 1 and best[0].logprobs is None, best
    assert best[0].text == max(mean, key=mean.get), (best, mean)
    told = CLIENT.completions.create(extra_body={"prompt_logprobs": 2}, **options).choices[0].prompt_logprobs
    assert told[0] is None and len(told) > 1, told
    assert all(2 <= len(entry) <= 3 for entry in told[1:]), told
    assert all(one["logprob"] <= 0 and one["decoded_token"] for entry in told[1:] for one in entry.values())


def a_client_tries_again():
    client = CLIENT.with_options(max_retries=2)
    answer = client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION, max_tokens=1)
    assert answer.retries_taken == 0 and answer.headers["x-request-id"], answer.headers


CHECKS = [
    plain_chat, streamed_chat_says_the_same, leaving_a_stream_early, two_answers, log_probabilities,
    stop_strings, length_is_a_finish_reason, text_completion, models,
    concurrent_streams_are_what_each_is_alone, unknown_names_are_not_found,
    tools_by_every_choice, parse_with_a_json_schema, responses, embeddings, unknown_fields_are_told,
    best_of_and_prompt_logprobs, a_client_tries_again, wrong_values_are_bad_requests, a_prompt_past_the_context_says_so, tools_are_called_as_asked,
    results_of_tools_are_read, wrong_tools_are_named,
]
if sys.argv[3:] == ["overload"]:
    CHECKS = [overload_is_a_rate_limit]

sys.exit(checks.run(CHECKS))

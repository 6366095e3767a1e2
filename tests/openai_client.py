#!/usr/bin/env python3
"""What users of openai-python rely on, against a started Kvant server.

usage: openai_client.py http://127.0.0.1:PORT MODEL [overload]
needs: the openai package. With `overload` the server must be started with few sequences and a short queue.
The last line says how many checks passed and failed; the exit code is 1 if any failed.
"""
import concurrent.futures, sys, traceback

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


CHECKS = [
    plain_chat, streamed_chat_says_the_same, leaving_a_stream_early, two_answers, log_probabilities,
    stop_strings, length_is_a_finish_reason, text_completion, models,
    concurrent_streams_are_what_each_is_alone, unknown_names_are_not_found,
    wrong_values_are_bad_requests, a_prompt_past_the_context_says_so,
]
if sys.argv[3:] == ["overload"]:
    CHECKS = [overload_is_a_rate_limit]

failed = 0
for check in CHECKS:
    try:
        check()
        print(f"ok      {check.__name__}")
    except Exception:
        failed += 1
        print(f"FAILED  {check.__name__}")
        traceback.print_exc()
print(f"{len(CHECKS) - failed} passed, {failed} failed")
sys.exit(failed > 0)

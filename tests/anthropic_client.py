#!/usr/bin/env python3
"""What users of anthropic-python rely on, against a started Kvant server.

usage: anthropic_client.py http://127.0.0.1:PORT MODEL
needs: the anthropic package. The exit code is 1 if any check failed.
"""
import sys

import anthropic
import checks

ADDRESS, MODEL = sys.argv[1], sys.argv[2]
CLIENT = anthropic.Anthropic(base_url=ADDRESS, api_key="none", max_retries=0, timeout=300)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def options(**more):
    return {"model": MODEL, "messages": QUESTION, "max_tokens": 24, "extra_body": {"temperature": 0}} | more


def plain():
    message = CLIENT.messages.create(**options(system="Be brief."))
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL), message
    assert message.stop_reason in ("end_turn", "max_tokens"), message
    assert message.content[0].type == "text" and message.content[0].text.strip(), message
    assert message.usage.input_tokens > 0 and 0 < message.usage.output_tokens <= 24, message.usage
    if MODEL.startswith("smollm2"):
        assert "Paris" in message.content[0].text, message


def streamed_says_the_same():
    whole = CLIENT.messages.create(**options())
    with CLIENT.messages.stream(**options()) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop", kinds
    for kind in ["content_block_start", "content_block_delta", "content_block_stop", "message_delta"]:
        assert kind in kinds, kinds
    assert final.content[0].text == whole.content[0].text, (final, whole)
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def stop_sequences():
    whole = CLIENT.messages.create(**options(max_tokens=16)).content[0].text
    stop = whole.strip()[2:4]
    cut = CLIENT.messages.create(**options(max_tokens=16, stop_sequences=[stop]))
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop), cut
    assert "".join(block.text for block in cut.content) == whole[: whole.index(stop)], (whole, cut)


def counted_tokens_are_those_of_the_answer():
    asked = {"model": MODEL, "messages": QUESTION, "system": "Be brief."}
    counted = CLIENT.messages.count_tokens(**asked).input_tokens
    assert counted == CLIENT.messages.create(max_tokens=1, **asked).usage.input_tokens


def blocks_are_text():
    blocks = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    same = [CLIENT.messages.create(**options(messages=messages)).content[0].text for messages in (QUESTION, blocks)]
    assert same[0] == same[1], same


def tools_are_called():
    tool = {"name": "get_weather", "description": "Weather of a city", "input_schema": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"],
        "additionalProperties": False}}
    message = CLIENT.messages.create(**options(tools=[tool], tool_choice={"type": "any"}, max_tokens=64))
    calls = [block for block in message.content if block.type == "tool_use"]
    assert calls and calls[0].name == "get_weather", message
    if message.stop_reason == "tool_use":
        assert set(calls[0].input) == {"city"}, message


def errors_have_their_shape():
    for wrong, kind in [({"model": "no-such"}, anthropic.NotFoundError), ({"max_tokens": 0}, anthropic.BadRequestError),
                        ({"messages": []}, anthropic.BadRequestError)]:
        try:
            CLIENT.messages.create(**options(**wrong))
        except kind as error:
            assert error.body["type"] == "error" and error.body["error"]["message"], error.body
        else:
            raise AssertionError(f"{wrong} was taken")


CHECKS = [
    plain, streamed_says_the_same, stop_sequences, counted_tokens_are_those_of_the_answer, blocks_are_text,
    tools_are_called, errors_have_their_shape,
]
sys.exit(checks.run(CHECKS))

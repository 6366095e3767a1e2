#!/usr/bin/env python3
"""Events of streams against the schemas of OpenAI's description, which has none for those of completions.

usage: api_streams.py http://127.0.0.1:PORT DESCRIPTION.json
needs: the jsonschema-rs package, which schemathesis brings.
"""
import json, sys, urllib.error, urllib.request

import jsonschema_rs



def told_null(node):
    """The document says `nullable`, which its own version of schemas has no word for."""
    if isinstance(node, list):
        return [told_null(one) for one in node]
    if not isinstance(node, dict):
        return node
    node = {key: told_null(value) for key, value in node.items()}
    return {"anyOf": [node, {"type": "null"}]} if node.get("nullable") is True else node


ADDRESS, DOCUMENT = sys.argv[1], told_null(json.load(open(sys.argv[2])))
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"],
                                    "additionalProperties": False}}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 24, "stream": True}
ASK = {"model": "tiny", "input": "Hello", "max_output_tokens": 24, "stream": True}
CASES = [
    ("/chat/completions", "CreateChatCompletionStreamResponse", CHAT),
    ("/chat/completions", "CreateChatCompletionStreamResponse",
     CHAT | {"n": 2, "logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True}}),
    ("/chat/completions", "CreateChatCompletionStreamResponse",
     CHAT | {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"}),
    ("/responses", "ResponseStreamEvent", ASK),
    ("/responses", "ResponseStreamEvent", ASK | {"tools": [{"type": "function", "strict": True} | TOOL], "tool_choice": "required"}),
]

failed = 0
for path, name, body in CASES:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    validator = jsonschema_rs.Draft202012Validator(schema)
    request = urllib.request.Request(f"{ADDRESS}/v1{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        lines = urllib.request.urlopen(request).read().decode().splitlines()
    except urllib.error.HTTPError as error:
        sys.exit(f"FAILED  {path}: {error.read().decode()}")
    events = [line[6:] for line in lines if line.startswith("data: ")]
    events = [json.loads(event) for event in events if event != "[DONE]"]
    wrong = [(event, error) for event in events for error in validator.iter_errors(event)]
    print(f"{'FAILED' if wrong or not events else 'ok':8}{path} {len(events)} events")
    for event, error in wrong[:5]:
        print(f"    {error.message[:300]} in {json.dumps(event)[:600]}")
    failed += bool(wrong) or not events
sys.exit(failed > 0)

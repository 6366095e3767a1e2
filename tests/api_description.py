#!/usr/bin/env python3
"""OpenAI's description with what it leaves out: the refusals of every operation, and no key, which a server need not ask for.

usage: api_description.py DESCRIPTION.json >OUT
"""
import json, sys

SERVED = ["/chat/completions", "/completions", "/embeddings", "/models", "/models/{model}", "/responses"]
STATUSES = ["400", "404", "405", "408", "413", "415", "429", "503"]
TEXT = {"type": ["string", "null"]}
ERROR = {"type": "object", "required": ["message", "type", "param", "code"], "properties": {
    "message": {"type": "string"}, "type": {"type": "string"}, "param": TEXT, "code": TEXT}}

document = json.load(open(sys.argv[1]))
document["paths"] = {path: {method: operation for method, operation in methods.items() if path != "/models/{model}" or method == "get"}
                     for path, methods in document["paths"].items() if path in SERVED}
document.pop("security", None)
refusal = {"description": "refused", "content": {"application/json": {
    "schema": {"type": "object", "required": ["error"], "properties": {"error": ERROR}}}}}
for methods in document["paths"].values():
    for operation in methods.values():
        operation["responses"] |= {status: refusal for status in STATUSES}
json.dump(document, sys.stdout)

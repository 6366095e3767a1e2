#!/usr/bin/env python3
"""OpenAI's description with what it leaves out: the refusals of every operation, no key, which a server need not ask for, and
the one model that is served, without which most of what is sent would end in a 404.

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
schemas = document["components"]["schemas"]
model = {"type": "string", "enum": ["tiny"]}
schemas["ModelIdsShared"] = schemas["ModelIdsResponses"] = model
for name in ["CreateCompletionRequest", "CreateEmbeddingRequest"]:
    schemas[name]["properties"]["model"] = model
# A message without `type`, as OpenAI's own examples have it, is two of these.
schemas["InputItem"]["anyOf"] = schemas["InputItem"].pop("oneOf")
# `encoding_format` says base64, the answer's schema forgets it.
vector = schemas["Embedding"]["properties"]
vector["embedding"] = {"anyOf": [vector["embedding"], {"type": "string"}]}
# A request without a model is the served one's, and what is null is absent: typed languages send it so.
for name in ["CreateChatCompletionRequest", "CreateCompletionRequest", "CreateEmbeddingRequest", "CreateResponse"]:
    for part in [schemas[name], *schemas[name].get("allOf", [])]:
        part["required"] = [field for field in part.get("required", []) if field != "model"]
        for field, value in part.get("properties", {}).items():
            if field not in part["required"]:
                part["properties"][field] = {"anyOf": [value, {"type": "null"}]}
refusal = {"description": "refused", "content": {"application/json": {
    "schema": {"type": "object", "required": ["error"], "properties": {"error": ERROR}}}}}
for methods in document["paths"].values():
    for operation in methods.values():
        operation["responses"] |= {status: refusal for status in STATUSES}
json.dump(document, sys.stdout)

"""What an answer is to be like, drawn at random: schemas, expressions, grammars and choices; some of them damaged, some of
them hostile, in every field that takes one."""

import json

NAMES = ["a", "b", "name", "x y", "é", "", "$ref", "__proto__", "a" * 60]
FORMATS = ["date", "date-time", "time", "email", "uuid", "ipv4", "uri", "nonsense"]
CHARS = list("ab01 -_.,;/") + ["\\d", "\\w", "\\s", "\\S", ".", "[a-z]", "[^x]", "[0-9a-fA-F]", "é", "\u4e00", "\\.", "\\n",
                               "\\p{L}", "\\x41", "\\u0041", "\U0001f600", "[[:alpha:]]"]
ENDS = ["*", "+", "?", "{2}", "{1,3}", "{0,100}", "{3,}", "*?", "+?", "{2,1}", "{1000}"]
ODD = ["^", "$", "\\b", "(?=a)", "(?!a)", "(?<=a)b", "(a)\\1", "(?i)abc", "(?P<n>a)", "(?:", ")", "[", "[z-a]", "\\", "{", "(((((", "a**",
       "(a+)+b", "(a|aa)*", "(x{0,50}){0,50}", "(.*.*.*)*=", "\\p{No}", "\\c", "\\9"]
LARK = ["start: \"x\" rest\nrest: /[a-z]{1,9}/", "start: (\"a\" | \"b\")+", "start: NUM (\",\" NUM)*\nNUM: /[0-9]+/",
        "start: start \"a\" | \"b\"", "start: missing", "start: %json {\"type\": \"integer\"}", "start: a\na: b\nb: a",
        "start[max_tokens=3]: /.*/", "start: \"a\"~3..5", "start: %regex {\"substring_words\": \"a b c\"}", "start:", "x: \"y\"",
        "start: \"\" | start start"]
GBNF = ["root ::= \"(\" root \")\" | \"x\"", "root ::= [a-z]+ (\" \" [a-z]+)*", "root ::= \"a\"{2,5}", "root ::= missing",
        "root ::= root root | \"\"", "root ::= item+\nitem ::= \"- \" [^\\n]* \"\\n\"", "root ::= [", "root ::= \"\\x41\" | \"é\"",
        "root ::= a a a\na ::= b b b\nb ::= \"x\" | \"y\""]


def schema(draw, depth=0):
    """A schema; most are valid, not all can be promised."""
    kinds = ["string", "integer", "number", "boolean", "null", "const", "enum", "odd"]
    if depth < 4:
        kinds += ["object"] * 4 + ["array"] * 2 + ["anyOf", "oneOf", "allOf", "ref", "not", "types"]
    kind = draw.choice(kinds)
    inner = lambda: schema(draw, depth + 1)
    count = lambda: draw.choice([0, 1, 2, 3, 5, 20, 1000, -1])
    some = lambda parts, chance=0.3: {key: part for key, part in parts.items() if draw.random() < chance}
    if kind == "string":
        return {"type": kind} | some({"minLength": count(), "maxLength": count(), "pattern": regex(draw),
                                      "format": draw.choice(FORMATS)})
    if kind in ("integer", "number"):
        bound = lambda: draw.choice([0, 1, -5, 7.5, 100, 1e9, -1e300, 2**70])
        return {"type": kind} | some({"minimum": bound(), "maximum": bound(), "exclusiveMinimum": bound(), "multipleOf": bound()})
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "const":
        return {"const": draw.choice([1, "x", None, {"a": [1]}, "\u0000\"\\", 1.5e300])}
    if kind == "enum":
        return {"enum": [draw.choice(["a", "b\n", 1, None, True, {}, "é"]) for _ in range(draw.randint(0, 40))]}
    if kind == "object":
        names = draw.sample(NAMES, draw.randint(0, 4))
        return {"type": kind, "properties": {name: inner() for name in names}} | some({
            "required": draw.sample(NAMES, draw.randint(0, 3)), "additionalProperties": draw.choice([False, True, inner()]),
            "patternProperties": {regex(draw): inner()}}) | some({
                "minProperties": count(), "maxProperties": count(), "propertyNames": inner(),
                "dependentRequired": {"a": ["b"]}}, 0.04)
    if kind == "array":
        return {"type": kind, "items": inner()} | some({
            "minItems": count(), "maxItems": count(), "prefixItems": [inner()]}) | some({
                "uniqueItems": True, "contains": inner()}, 0.04)
    if kind in ("anyOf", "oneOf", "allOf"):
        return {kind: [inner() for _ in range(draw.randint(0, 4))]}
    if kind == "ref":
        target = draw.choice(["#", "#/$defs/a", "#/$defs/missing", "https://127.0.0.1/x.json", "#/$defs/~1", "a"])
        return {"$ref": target, "$defs": {"a": inner()}}
    if kind == "not":
        return {"not": inner()}
    if kind == "types":
        return {"type": draw.sample(["string", "integer", "null", "object", "array"], draw.randint(0, 3))}
    return draw.choice([{}, True, False, None, [], "x", 7, {"type": "nothing"}, {"type": 7}, {"properties": []},
                        {"items": 3}, {"enum": "x"}, {"required": "a"}, {"if": {}, "then": {}, "else": {}}])


def regex(draw, depth=0):
    parts = []
    for _ in range(draw.randint(1, 5)):
        part = draw.choice(CHARS)
        if depth < 3 and draw.random() < 0.3:
            part = draw.choice(["({})", "(?:{})"]).format("|".join(regex(draw, depth + 1) for _ in range(draw.randint(1, 3))))
        if draw.random() < 0.3:
            part += draw.choice(ENDS)
        if draw.random() < 0.05:
            part = draw.choice(ODD)
        parts.append(part)
    return "".join(parts)


def grammar(draw):
    return damaged(draw, draw.choice(LARK + GBNF), 0.4)


def damaged(draw, text, part):
    """A text, a part of them with a few characters changed."""
    if draw.random() >= part:
        return text
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice(list("()[]{}|*+?\\\"':/%~") + ["\u0000", "\U0001f600", "\n", ""]) + text[at + draw.randrange(3):]
    return text


def any_guide(draw):
    """Fields of a body that ask for a constraint, and whether what ends by itself is to be JSON."""
    kind = draw.choices(["schema", "regex", "grammar", "choice"], weights=[45, 35, 15, 5])[0]
    if kind == "schema":
        value = schema(draw)
        text = damaged(draw, json.dumps(value), 0.05)
        named = {"name": "x", "schema": value, "strict": draw.random() < 0.5}
        return draw.choice([{"response_format": {"type": "json_schema", "json_schema": named}}, {"guided_json": value},
                            {"guided_json": text}, {"structured_outputs": {"json": value}}, {"json_schema": value}]), True
    if kind == "regex":
        value = damaged(draw, regex(draw), 0.2)
        return draw.choice([{"guided_regex": value}, {"structured_outputs": {"regex": value}}]), False
    if kind == "grammar":
        value = grammar(draw)
        return draw.choice([{"guided_grammar": value}, {"grammar": value}, {"structured_outputs": {"grammar": value}}]), False
    value = [regex(draw) for _ in range(draw.choice([0, 1, 3, 300]))]
    return draw.choice([{"guided_choice": value}, {"structured_outputs": {"choice": value}}]), False


def body(draw):
    """A route, its body, and whether an answer that ends by itself is to be JSON."""
    guide, is_json = any_guide(draw)
    rest = {"max_tokens": draw.choice([1, 8, 40]), "seed": draw.randrange(1000), "temperature": draw.choice([0, 1, 2]),
            "n": draw.choice([1, 1, 1, 3]), "stream": draw.random() < 0.3}
    chance = draw.random()
    if chance < 0.1:
        form = {"type": "object", "properties": {"x": schema(draw, 1), "y": schema(draw, 1)}, "required": ["x"]}
        tool = {"type": "function", "function": {"name": "f", "parameters": form, "strict": draw.random() < 0.5}}
        messages = [{"role": "user", "content": "x"}]
        return "/v1/chat/completions", rest | {"messages": messages, "tools": [tool], "tool_choice": "required"}, False
    if chance < 0.2:
        form = {"type": "json_schema", "name": "x", "schema": schema(draw), "strict": draw.random() < 0.5}
        return "/v1/responses", {"input": "x", "max_output_tokens": 20, "text": {"format": form}}, False
    if chance < 0.5:
        return "/v1/chat/completions", rest | guide | {"messages": [{"role": "user", "content": "The"}]}, is_json
    return "/v1/completions", rest | guide | {"prompt": "The"}, is_json

//! Tests of all families: transcripts in the spelling of their published templates, cut at every
//! place; texts that are no calls; made-up texts under a seed.

use super::*;

const FAMILIES: [ToolFamily; 6] = [
    ToolFamily::Hermes,
    ToolFamily::Llama3,
    ToolFamily::Mistral,
    ToolFamily::Phi4Mini,
    ToolFamily::Gemma,
    ToolFamily::Json,
];

/// Parts as a line: text as it is, calls as `⟨name arguments⟩`.
fn line(family: ToolFamily, pieces: &[&str]) -> String {
    let names = ["get_weather", "add", "f"].map(str::to_owned);
    let mut parser = ToolParser::new(family, names);
    let mut parts: Vec<_> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    parts.extend(parser.finish());
    let mut line = String::new();
    let mut open = false;
    for part in parts {
        if open && !matches!(part, ToolPart::Arguments(_)) {
            line.push('⟩');
            open = false;
        }
        match part {
            ToolPart::Text(text) => line.push_str(&text),
            ToolPart::Call(name) => {
                line.extend(["⟨", &name, " "]);
                open = true;
            }
            ToolPart::Arguments(more) => {
                assert!(open, "arguments without a call in {pieces:?}");
                line.push_str(&more);
            }
        }
    }
    if open {
        line.push('⟩');
    }
    line
}

/// The same line whole, cut at every place, and in single characters.
fn check(family: ToolFamily, text: &str, expected: &str) {
    assert_eq!(line(family, &[text]), expected, "{family:?}: {text:?}");
    for (at, _) in text.char_indices() {
        let (before, after) = text.split_at(at);
        assert_eq!(line(family, &[before, after]), expected, "{family:?}: {text:?} at {at}");
    }
    let letters: Vec<&str> = text.split("").collect();
    assert_eq!(line(family, &letters), expected, "{family:?}: {text:?} by letters");
}

#[test]
fn unknown_names_are_text_where_only_known_ones_count() {
    let known = "{\"name\": \"f\", \"arguments\": {\"a\": 1}, \"why\": 2}";
    let wrong = known.replace("\"f\"", "\"g\"");
    for (family, before, after) in [
        (ToolFamily::Hermes, "<tool_call>", "</tool_call>"),
        (ToolFamily::Llama3, "<|python_tag|>", ""),
        (ToolFamily::Mistral, "[TOOL_CALLS] [", "]"),
        (ToolFamily::Phi4Mini, "<|tool_call|>[", "]<|/tool_call|>"),
    ] {
        for (call, counts) in [(known, true), (wrong.as_str(), false)] {
            let text = format!("{before}{call}{after}");
            let mut parser = ToolParser::new(family, ["f".to_owned()]).only_known();
            let mut parts = parser.push(&text);
            parts.extend(parser.finish());
            let calls = parts.iter().filter(|part| matches!(part, ToolPart::Call(_))).count();
            assert_eq!(calls, usize::from(counts), "{family:?}: {parts:?}");
            if !counts {
                assert_eq!(parts, [ToolPart::Text(text)], "{family:?}");
            }
        }
    }
    let named = "[TOOL_CALLS]g[ARGS]{}";
    let mut parser = ToolParser::new(ToolFamily::Mistral, ["f".to_owned()]).only_known();
    let mut parts = parser.push(named);
    parts.extend(parser.finish());
    assert_eq!(parts, [ToolPart::Text(named.to_owned())]);
}

#[test]
fn transcripts_of_hermes() {
    for (text, expected) in [
        (
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n\
             </tool_call>",
            "⟨get_weather {\"city\": \"Paris\"}⟩",
        ),
        (
            "I will look.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n\
             </tool_call>\n\
             <tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": [2, {\"b\": \"}\"}]}}\n\
              </tool_call>\nDone.",
            "I will look.⟨add {\"a\": 1}⟩⟨add {\"a\": [2, {\"b\": \"}\"}]}⟩Done.",
        ),
        // SmolLM writes a list, others put the arguments first, in a string, or leave them out.
        (
            "<tool_call>[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"add\", \"arguments\
             \": {\"a\": 1}}]</tool_call>",
            "⟨f {}⟩⟨add {\"a\": 1}⟩",
        ),
        (
            "<tool_call>{\"arguments\": {\"a\": \"\\u00e9\\\"\"}, \"name\": \"f\"}</tool_call>",
            "⟨f {\"a\": \"\\u00e9\\\"\"}⟩",
        ),
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>",
            "⟨f {\"a\": 1}⟩",
        ),
        ("<tool_call>{\"name\": \"f\"}</tool_call>", "⟨f {}⟩"),
        ("<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call>", "⟨f {}⟩"),
        ("<tool_call>{\"name\": \"new\", \"arguments\": {}, \"x\": 1}</tool_call>", "⟨new {}⟩"),
        // A marker in a string is the string's.
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}</tool_call>",
            "⟨f {\"a\": \"</tool_call>\"}⟩",
        ),
        // Broken off: what was told stays.
        ("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"x", "⟨f {\"a\": \"x⟩"),
        ("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}", "⟨f {\"a\": 1}⟩"),
        ("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool", "⟨f {\"a\": 1}⟩"),
        ("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1</tool_call> b", "⟨f {\"a\": 1⟩b"),
        // A bare call of a known tool, and a fenced one.
        ("{\"name\": \"f\", \"arguments\": {\"a\": 1}}", "⟨f {\"a\": 1}⟩"),
        ("So:\n```json\n{\"name\": \"f\", \"arguments\": {}}\n```\nok", "So:⟨f {}⟩ok"),
    ] {
        check(ToolFamily::Hermes, text, expected);
    }
}

#[test]
fn transcripts_of_llama() {
    for (text, expected) in [
        (
            "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}",
            "⟨get_weather {\"city\": \"Paris\"}⟩",
        ),
        (
            "<|python_tag|>{\"type\": \"function\", \"name\": \"add\", \"parameters\": {\"a\
             \": \"1\"}}",
            "⟨add {\"a\": \"1\"}⟩",
        ),
        (
            "{\"name\": \"add\", \"parameters\": {}}; {\"name\": \"f\", \"parameters\": {\"a\
             \": {}}}",
            "⟨add {}⟩⟨f {\"a\": {}}⟩",
        ),
        ("{\"name\": \"add\", \"parameters\": {}}\n{\"name\": \"f\"}", "⟨add {}⟩⟨f {}⟩"),
        // Built-in tools are Python, and other JSON is an answer.
        ("<|python_tag|>search.call(query=\"x\")", "<|python_tag|>search.call(query=\"x\")"),
        ("{\"name\": \"Anna\", \"age\": 3}", "{\"name\": \"Anna\", \"age\": 3}"),
        ("{\"city\": \"Paris\"}", "{\"city\": \"Paris\"}"),
        ("{\"name\": \"add\", \"parameters\": {}}; then", "⟨add {}⟩; then"),
    ] {
        check(ToolFamily::Llama3, text, expected);
    }
}

#[test]
fn transcripts_of_mistral() {
    for (text, expected) in [
        (
            "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}]",
            "⟨get_weather {\"city\": \"Paris\"}⟩",
        ),
        (
            "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {\"a\": 1}, \"id\": \"abcdefghi\"}, \
             {\"name\": \"f\", \"arguments\": {}}]",
            "⟨add {\"a\": 1}⟩⟨f {}⟩",
        ),
        ("[TOOL_CALLS]add[ARGS]{\"a\": 1}", "⟨add {\"a\": 1}⟩"),
        ("Hm. [TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{\"a\": 1}", "Hm.⟨add {\"a\": 1}⟩"),
        ("[TOOL_CALLS]add{\"a\": 1}[TOOL_CALLS]f[ARGS] {}", "⟨add {\"a\": 1}⟩⟨f {}⟩"),
        ("[TOOL_CALLS]add[ARGS]{\"a\": \"x", "⟨add {\"a\": \"x⟩"),
        ("[TOOL_CALLS]add[ARG]{}", "[TOOL_CALLS]add[ARG]{}"),
        ("[TOOL_CALLS]add me", "[TOOL_CALLS]add me"),
        ("[TOOL_CALLS]", "[TOOL_CALLS]"),
    ] {
        check(ToolFamily::Mistral, text, expected);
    }
}

#[test]
fn transcripts_of_phi() {
    for (text, expected) in [
        (
            "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}]\
             <|/tool_call|>",
            "⟨get_weather {\"city\": \"Paris\"}⟩",
        ),
        (
            "functools[{\"name\": \"add\", \"arguments\": {\"a\": 1}},{\"name\": \"f\
             \", \"arguments\": {}}]",
            "⟨add {\"a\": 1}⟩⟨f {}⟩",
        ),
        ("import functools", "import functools"),
        ("functools[0]", "functools[0]"),
    ] {
        check(ToolFamily::Phi4Mini, text, expected);
    }
}

#[test]
fn transcripts_of_gemma() {
    for (text, expected) in [
        ("```tool_code\nget_weather(city=\"Paris\")\n```", "⟨get_weather {\"city\":\"Paris\"}⟩"),
        ("Ok.\n```tool_code\nprint(add(a=1))\nf()\n``` b", "Ok.⟨add {\"a\":1}⟩⟨f {}⟩b"),
        ("```tool_code\nadd(a=\"```\")\n```", "⟨add {\"a\":\"```\"}⟩"),
        ("```tool_code\nadd(a=1)", "⟨add {\"a\":1}⟩"),
        ("```tool_code\nx = 1\n``` b", "```tool_code\nx = 1\n``` b"),
        ("```tool_code\nother(a=1)\n```", "```tool_code\nother(a=1)\n```"),
        ("```tool_call\n{\"name\": \"f\", \"parameters\": {}}\n```", "⟨f {}⟩"),
        ("```json\n[{\"name\": \"f\", \"parameters\": {}}]\n```", "⟨f {}⟩"),
        ("```json\n{\"a\": 1}\n```", "```json\n{\"a\": 1}\n```"),
        ("```python\nf(a=1)\n```", "```python\nf(a=1)\n```"),
    ] {
        check(ToolFamily::Gemma, text, expected);
    }
}

#[test]
fn what_is_no_call_is_given_back_in_every_letter() {
    for text in [
        "",
        " ",
        "\n\nHello <b>you</b> [1] {2}\n ",
        "<tool_call>",
        "<tool_call>\n",
        "<tool_call>no</tool_call>",
        "<tool_call>{\"name\": 3, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": \"[1]\"}</tool_call>",
        "<tool_call>{\"name\": \"f\" \"arguments\": {}}</tool_call>",
        "<tool_call>[]</tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call>{\"name\": \"f",
        "<tool_ca",
        "a <tool_call <tool_cal",
        "{\"name\": \"f\", \"argume",
        "[{\"name\": \"other\", \"arguments\": {}}]",
        "[TOOL_CALLS",
        "<|tool_call|>{",
        "```js",
        "```json\n{\"name\": \"f\", ",
        "{\"name\": \"f\", \"arguments\": \u{1F600}",
    ] {
        for family in FAMILIES {
            check(family, text, text);
        }
    }
}

#[test]
fn a_second_marker_opens_what_the_first_did_not() {
    let text = "<tool_call> <tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    check(ToolFamily::Hermes, text, "<tool_call>⟨f {}⟩");
    let text = "[TOOL_CALLS]add [TOOL_CALLS]f[ARGS]{}";
    check(ToolFamily::Mistral, text, "[TOOL_CALLS]add⟨f {}⟩");
}

#[test]
fn arguments_come_as_they_are_written() {
    let mut parser = ToolParser::new(ToolFamily::Hermes, []);
    assert_eq!(parser.push("Ok. <tool_"), [ToolPart::Text("Ok.".to_owned())]);
    assert_eq!(parser.push("call>{\"name\": \"f\", \"arg"), []);
    let call = ToolPart::Call("f".to_owned());
    let arguments = |text: &str| ToolPart::Arguments(text.to_owned());
    assert_eq!(parser.push("uments\": {\"a\""), [call, arguments("{\"a\"")]);
    assert_eq!(parser.push(": 1"), [arguments(": 1")]);
    assert_eq!(parser.push("}}"), [arguments("}")]);
    assert_eq!(parser.push("</tool_call>"), []);
    assert_eq!(parser.finish(), []);
}

/// Pieces that calls and near misses are made of.
const FRAGMENTS: [&str; 40] = [
    "<tool_call>",
    "</tool_call>",
    "<tool",
    "_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|python_tag|>",
    "<|tool_call|>",
    "<|/tool_call|>",
    "functools",
    "```json",
    "```",
    "```tool_code",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    ";",
    "\"",
    "\\",
    "\"name\"",
    "\"f\"",
    ": ",
    "\n",
    " ",
    "\"arguments\": {",
    "{\"name\": \"f\", ",
    "\"arguments\": {\"a\": 1}}",
    "f(a=1)",
    "f",
    "é",
    "😀",
    "1",
    "null",
    "{\"name\": \"add\", \"parameters\": {\"x\": \"y\"}}",
    "(",
    ")",
];

#[test]
fn made_up_texts_are_the_same_however_cut() {
    let mut state = 7_u64;
    let mut next = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut calls = 0;
    for round in 0..20_000 {
        let pieces: Vec<&str> = (0..=next(14)).map(|_| FRAGMENTS[next(40)]).collect();
        let text = pieces.concat();
        let family = FAMILIES[next(6)];
        let whole = line(family, &[&text]);
        calls += usize::from(whole.contains('⟨'));
        let letters: Vec<&str> = text.split("").collect();
        for cut in [&pieces, &letters] {
            assert_eq!(line(family, cut), whole, "round {round}: {family:?} {text:?}");
        }
        if !whole.contains('⟨') {
            assert_eq!(whole, text, "round {round}: {family:?} lost text");
        }
    }
    assert!(calls > 500, "only {calls} texts had calls");
}

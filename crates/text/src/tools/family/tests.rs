//! Tests of families: what a template tells, and that whatever a grammar of calls lets through is
//! read as calls again.

use std::path::Path;

use super::*;
use crate::grammar::{Grammar, GrammarEnv, GrammarLimits, GrammarSpec};
use crate::tokenizer::Tokenizer;
use crate::tools::{ToolParser, ToolPart};

#[test]
fn templates_tell_their_family() {
    for (text, family) in [
        ("{{ '<tool_call>\\n{\"name\": \"' }}", ToolFamily::Hermes),
        ("{{- \"[TOOL_CALLS][\" }}", ToolFamily::Mistral),
        ("<|start_header_id|>{{ m.role }}", ToolFamily::Llama3),
        ("'<|tool|>' + m['tools'] + '<|/tool|>'", ToolFamily::Phi4Mini),
        ("<start_of_turn>model", ToolFamily::Gemma),
        ("<|im_start|>{{ m.role }}", ToolFamily::Json),
    ] {
        assert_eq!(ToolFamily::of_template(text), family, "{text}");
    }
    for (family, name) in NAMES {
        assert_eq!((family.name(), ToolFamily::named(name)), (name, Some(family)));
    }
    assert_eq!(ToolFamily::named("none"), None);
}

#[test]
fn grammars_spell_calls_as_the_family_does() {
    let schema = json!({"type": "object"});
    let tools = [
        ToolShape { name: "f", parameters: Some(&schema), lenient: false },
        ToolShape { name: "g", parameters: None, lenient: true },
    ];
    let token = |text: &str| (text == "<tool_call>").then_some(7);
    let hermes = ToolFamily::Hermes.grammar(&tools[..1], false, &token);
    assert_eq!(
        hermes,
        "start: <[7]> \"\\n\" call \"\\n\" \"</tool_call>\"\ncall: call_0\n\
         call_0: \"{\\\"name\\\": \\\"f\" \"\\\", \\\"arguments\\\": \" args_0 \"}\"\n\
         args_0: %json {\"type\":\"object\",\"x-guidance\":{\"whitespace_flexible\":false,\
         \"item_separator\":\", \",\"key_separator\":\": \",\"lenient\":false}}\n"
    );
    let lenient = ToolFamily::Hermes.grammar(&tools[1..], false, &token);
    assert!(lenient.contains("\"lenient\":true"), "{lenient}");
    let all = |_: &str| Some(1);
    let mistral = ToolFamily::Mistral.grammar(&tools, true, &all);
    assert!(mistral.starts_with("start: block ( block)*\nblock: <[1]>  call  "), "{mistral}");
}

#[test]
fn marked_calls_are_told_from_json_by_their_first_letter() {
    use ToolFamily::{Gemma, Hermes, Json, Llama3, Mistral, Phi4Mini};
    let plain = |_: &str| None;
    let token = |text: &str| (!text.is_empty()).then_some(1);
    for (family, as_text, as_token) in [
        (Hermes, true, true),
        (Phi4Mini, true, true),
        // Its marker begins as a list does.
        (Mistral, false, true),
        (Llama3, false, false),
        (Gemma, false, false),
        (Json, false, false),
    ] {
        let found = (family.is_marked(&plain), family.is_marked(&token));
        assert_eq!(found, (as_text, as_token), "{family:?}");
    }
}

/// The words of the built-in model.
fn tokenizer() -> Tokenizer {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-llama-1m/tokenizer.json");
    Tokenizer::from_json_file(Path::new(file)).unwrap()
}

/// An output under a grammar, its tokens drawn; it ends where it may, every other time.
fn drawn(
    tokenizer: &Tokenizer,
    grammar: &Grammar,
    next: &mut impl FnMut(usize) -> usize,
) -> String {
    let mut matcher = grammar.matcher();
    let mut tokens = Vec::new();
    loop {
        if matcher.may_end() && next(2) == 0 {
            break;
        }
        let words = matcher.allowed().unwrap();
        let allowed = |id: &u32| words[*id as usize / 32] & (1 << (id % 32)) != 0;
        // The end token is no word of the text.
        let ids: Vec<u32> = (3..tokenizer.vocab_len() as u32).filter(allowed).collect();
        if ids.is_empty() {
            break;
        }
        let token = ids[next(ids.len())];
        tokens.push(token);
        if matcher.take(token).unwrap() {
            break;
        }
        assert!(tokens.len() < 4000, "endless: {:?}", tokenizer.decode(&tokens, false));
    }
    tokenizer.decode(&tokens, false)
}

#[test]
fn what_a_grammar_lets_through_is_read_as_calls() {
    let tokenizer = tokenizer();
    let env = GrammarEnv::new(&tokenizer, &[2]).unwrap();
    let limits = GrammarLimits { bytes: 1 << 16, nesting: 64, states: 20_000 };
    let city = json!({"type": "object", "properties": {"city": {"enum": ["Rome", "\"Zürich\""]},
        "there": {"$ref": "#/$defs/there"}}, "required": ["city", "there"],
        "additionalProperties": false, "$defs": {"there": {"type": "boolean"}}});
    let none = json!({"type": "object", "properties": {}, "additionalProperties": false});
    let tools = [
        ToolShape { name: "get-weather", parameters: Some(&city), lenient: false },
        ToolShape { name: "now", parameters: Some(&none), lenient: true },
    ];
    let mut state = 11_u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % below
    };
    for (family, _) in NAMES {
        for many in [false, true] {
            let text = family.grammar(&tools, many, &|_| None);
            let grammar = Grammar::compile(&env, &GrammarSpec::Text(text.clone()), &limits);
            let grammar = grammar.unwrap_or_else(|error| panic!("{family:?}: {error}\n{text}"));
            for _ in 0..20 {
                let text = drawn(&tokenizer, &grammar, &mut next);
                let names = tools.iter().map(|tool| tool.name.to_owned());
                let mut parser = ToolParser::new(family, names);
                let mut parts = parser.push(&text);
                parts.extend(parser.finish());
                let mut calls = 0;
                for part in parts {
                    match part {
                        ToolPart::Text(words) => panic!("{family:?}: {words:?} of {text:?}"),
                        ToolPart::Call(_) => calls += 1,
                        ToolPart::Arguments(text) => {
                            let arguments: Value = serde_json::from_str(&text).unwrap();
                            assert!(arguments.is_object() && !text.contains("  "), "{text:?}");
                        }
                    }
                }
                assert!(calls > 0 && (many || calls == 1), "{family:?}: {text:?}");
            }
        }
    }
}

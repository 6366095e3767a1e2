//! The spellings of a grammar as llguidance takes them.

use std::fmt::Write;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Value, json};

use super::{GrammarSpec, gbnf};
use crate::error::Error;

/// Between two signs of JSON: enough for indented lines, too little to go on for ever.
const WHITESPACE: &str = r"[ \t]|\r?\n[ \t]{0,20}";

pub(super) fn grammar(spec: &GrammarSpec) -> Result<TopLevelGrammar, Error> {
    Ok(match spec {
        GrammarSpec::JsonObject => schema(json!({"type": "object"}), false)?,
        GrammarSpec::JsonSchema { schema: value, lenient } => schema(value.clone(), *lenient)?,
        GrammarSpec::Regex(text) => TopLevelGrammar::from_regex(unanchored(text)),
        GrammarSpec::Choice(texts) => TopLevelGrammar::from_lark(choice(texts)?),
        GrammarSpec::Text(text) if gbnf::is_gbnf(text) => {
            TopLevelGrammar::from_lark(gbnf::to_lark(text).map_err(Error::Grammar)?)
        }
        GrammarSpec::Text(text) => TopLevelGrammar::from_lark(text.clone()),
        GrammarSpec::Either(parts) => either(parts)?,
    })
}

/// The parts under names, and a grammar in front that takes either.
fn either(parts: &[GrammarSpec; 2]) -> Result<TopLevelGrammar, Error> {
    let mut whole = TopLevelGrammar::from_lark("start: @first | @second".to_owned());
    for (part, name) in parts.iter().zip(["first", "second"]) {
        if matches!(part, GrammarSpec::Either(_)) {
            return Err(Error::Grammar("there can be one choice of two grammars".to_owned()));
        }
        let named = |mut grammar: GrammarWithLexer| {
            grammar.name = Some(name.to_owned());
            grammar
        };
        whole.grammars.extend(self::grammar(part)?.grammars.into_iter().map(named));
    }
    Ok(whole)
}

/// A schema with the options that llguidance reads from it; a client's own stay.
fn schema(value: Value, lenient: bool) -> Result<TopLevelGrammar, Error> {
    let mut map = match value {
        Value::Object(map) => map,
        Value::Bool(true) => serde_json::Map::new(),
        _ => return Err(Error::Grammar("a schema is an object".to_owned())),
    };
    let options = json!({"whitespace_pattern": WHITESPACE, "lenient": lenient});
    map.entry("x-guidance").or_insert(options);
    Ok(TopLevelGrammar::from_json_schema(Value::Object(map)))
}

/// The whole text is matched in any case; `^` and `$` around the expression say no more.
fn unanchored(text: &str) -> &str {
    let text = text.strip_prefix('^').unwrap_or(text);
    let Some(rest) = text.strip_suffix('$') else { return text };
    let escapes = rest.bytes().rev().take_while(|byte| *byte == b'\\').count();
    if escapes % 2 == 0 { rest } else { text }
}

fn choice(texts: &[String]) -> Result<String, Error> {
    if texts.is_empty() {
        return Err(Error::Grammar("a choice needs at least one text".to_owned()));
    }
    let texts: Vec<String> = texts.iter().map(|text| literal(text)).collect();
    Ok(format!("start: CHOICE\nCHOICE: {}", texts.join(" | ")))
}

/// A text as Lark writes it: as JSON, and without the one control character that JSON lets stand.
pub(super) fn literal(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\0'..=' ' | '\x7f' if letter != ' ' => {
                let _ = write!(quoted, "\\u{:04x}", letter as u32);
            }
            _ => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_around_an_expression_are_dropped() {
        for (text, expected) in
            [("^a$", "a"), ("a", "a"), (r"a\$", r"a\$"), (r"a\\$", r"a\\"), ("^", ""), ("$", "")]
        {
            assert_eq!(unanchored(text), expected);
        }
    }

    #[test]
    fn literals_are_json_of_the_same_text() {
        let all: String = (0..0x250).filter_map(char::from_u32).collect();
        let quoted = literal(&all);
        assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), all);
        assert!(quoted.chars().all(|letter| letter >= ' ' && letter != '\x7f'));
    }
}

//! Each kind of grammar on the built-in model's tokens, its bounds, and hostile ones: whatever is
//! sent, the answer is a grammar or a line of text, within a time.

mod hostile;

use std::path::Path;
use std::sync::OnceLock;

use serde_json::json;

use super::*;

const LIMITS: GrammarLimits = GrammarLimits { bytes: 512 << 10, nesting: 64, states: 20_000 };

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama-1m");
        Tokenizer::from_json_file(&folder.join("tokenizer.json")).unwrap()
    })
}

/// The end token of the built-in model.
const END: u32 = 2;

fn env() -> &'static GrammarEnv {
    static ENV: OnceLock<GrammarEnv> = OnceLock::new();
    ENV.get_or_init(|| GrammarEnv::new(tokenizer(), &[END]).unwrap())
}

fn grammar(spec: &GrammarSpec) -> Result<Grammar, Error> {
    Grammar::compile(env(), spec, &LIMITS)
}

fn has(words: &[u32], token: u32) -> bool {
    words.get(token as usize / 32).is_some_and(|word| word & (1 << (token % 32)) != 0)
}

/// Whether a text is an output of the grammar: each token allowed in its turn, and then the end.
fn matches(grammar: &Grammar, text: &str) -> bool {
    let mut matcher = grammar.matcher();
    for token in tokenizer().encode(text, false).unwrap() {
        if !has(&matcher.allowed().unwrap(), token) {
            return false;
        }
        matcher.take(token).unwrap();
    }
    let ends = has(&matcher.allowed().unwrap(), END);
    assert_eq!(ends, matcher.may_end());
    ends
}

#[track_caller]
fn check(spec: &GrammarSpec, good: &[&str], bad: &[&str]) {
    let grammar = grammar(spec).unwrap();
    for text in good {
        assert!(matches(&grammar, text), "{spec:?} refuses {text:?}");
    }
    for text in bad {
        assert!(!matches(&grammar, text), "{spec:?} takes {text:?}");
    }
}

#[test]
fn json_is_held_to_its_schema() {
    let good = ["{}", r#"{"a": [1, {"b": null}]}"#, "{\n  \"a\": -1.5e3\n}", r#"{"é": "\n"}"#];
    check(&GrammarSpec::JsonObject, &good, &["[]", "1", r#"{"a"}"#, r#"{"a": 01}"#, "{", " {}x"]);
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "kind": {"enum": ["a", "b", 3]},
            "next": {"$ref": "#/$defs/next"},
        },
        "required": ["name", "age"],
        "additionalProperties": false,
        "$defs": {"next": {"anyOf": [
            {"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/next"}}]}},
    });
    let spec = GrammarSpec::JsonSchema { schema, lenient: false };
    let good =
        [r#"{"name": "Ann", "age": 150}"#, r#"{"name":"","age":0,"kind":3,"next":[null,[[]]]}"#];
    let bad = [
        "{}",
        r#"{"name": "Ann"}"#,
        r#"{"name": "Ann", "age": 151}"#,
        r#"{"name": "Annika", "age": 1}"#,
        r#"{"name": "Ann", "age": 1, "other": 1}"#,
        r#"{"name": "Ann", "age": 1, "kind": "c"}"#,
        r#"{"name": "Ann", "age": 1, "next": [1]}"#,
    ];
    check(&spec, &good, &bad);
}

#[test]
fn what_a_schema_cannot_have_is_an_error_unless_lenient() {
    let schema = json!({"type": "array", "uniqueItems": true, "items": {"type": "integer"}});
    let strict = GrammarSpec::JsonSchema { schema: schema.clone(), lenient: false };
    let error = grammar(&strict).unwrap_err().to_string();
    assert!(error.contains("uniqueItems"), "{error}");
    check(&GrammarSpec::JsonSchema { schema, lenient: true }, &["[1, 1]"], &["[\"a\"]"]);
    // Nothing is fetched.
    for reference in ["https://example.com/schema.json", "other.json#/a", "#/$defs/none"] {
        let schema = json!({"$ref": reference});
        let spec = GrammarSpec::JsonSchema { schema, lenient: true };
        let error = grammar(&spec).unwrap_err().to_string();
        assert!(!error.contains('\n') && error.len() < 400, "{error}");
    }
    let defs = json!({"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}});
    let endless = json!({"$ref": "#/$defs/a", "$defs": defs});
    let spec = GrammarSpec::JsonSchema { schema: endless, lenient: false };
    if let Ok(grammar) = grammar(&spec) {
        assert!(grammar.matcher().allowed().is_err(), "a value that is only itself has no text");
    }
}

#[test]
fn expressions_and_choices_are_matched_as_a_whole() {
    let regex = |text: &str| GrammarSpec::Regex(text.to_owned());
    check(&regex(r"^[a-z]{2,3}\d*$"), &["ab", "abc123"], &["a", "abcd", "ab1c", ""]);
    check(&regex(r"(yes|no)/\d{2}"), &["yes/12"], &["yes", "yes/1", "maybe/12"]);
    check(&regex(r"a?"), &["", "a"], &["aa"]);
    for text in [r"(?=a)b", "(", "a{3,1}", "[z-a]", r"\1"] {
        let error = grammar(&regex(text)).unwrap_err().to_string();
        assert!(error.starts_with("the grammar cannot be used: ") && !error.contains('\n'));
    }
    let texts = ["north", "south-west", "é\n\"\\/#", "no"];
    let spec = GrammarSpec::Choice(texts.iter().map(|text| (*text).to_owned()).collect());
    check(&spec, &texts, &["nor", "south", "x", "", "nono"]);
    assert!(grammar(&GrammarSpec::Choice(Vec::new())).is_err());
}

#[test]
fn grammars_of_both_dialects_are_matched() {
    let lark = "start: \"[\" item (\",\" item)* \"]\"\nitem: NUMBER | start\nNUMBER: /[0-9]+/";
    let gbnf = r#"
root ::= "[" item ("," item)* "]"
item ::= number | root   # a circle
number ::= [0-9]+
"#;
    for text in [lark, gbnf] {
        let spec = GrammarSpec::Text(text.to_owned());
        check(&spec, &["[1]", "[12,[3,4],5]"], &["[]", "[1,]", "1", "[1", "[1]]"]);
    }
    // As one expression: in whichever way it can be.
    let flat = "root ::= a b | \"ac\"\na ::= \"a\"* \"x\"?\nb ::= \"ab\"";
    check(&GrammarSpec::Text(flat.to_owned()), &["ab", "aaab", "axab", "ac"], &["a", "aax", ""]);
    let json = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"#;
    let good = [r#"{"a": [1, 2.5, true], "b": {"c": "\n"}}"#, "{}"];
    check(&GrammarSpec::Text(json.to_owned()), &good, &["[]", r#"{"a": }"#, r#"{"a": 1"#]);
    for text in ["", "start: x", "root ::= x", "start: \"a", "nonsense", "start: /(/"] {
        let error = grammar(&GrammarSpec::Text(text.to_owned())).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn either_of_two_grammars_is_taken_whole() {
    let schema = json!({"type": "object", "properties": {"name": {"enum": ["Ann"]}},
        "required": ["name"], "additionalProperties": false});
    let schema = GrammarSpec::JsonSchema { schema, lenient: false };
    let call = "start: \"<call>\" args\nargs: %json {\"type\": \"object\", \"properties\": \
        {\"a\": {\"type\": \"integer\"}}, \"additionalProperties\": false}";
    let call = GrammarSpec::Text(call.to_owned());
    let either =
        |a: &GrammarSpec, b: &GrammarSpec| GrammarSpec::Either(Box::new([a.clone(), b.clone()]));
    let both = either(&call, &schema);
    let good = [r#"<call>{"a": 1}"#, "<call>{}", r#"{"name": "Ann"}"#];
    let bad = [r#"<call>{"name": "Ann"}"#, r#"{"a": 1}"#, "{}", r#"{"name": "Ann"}<call>{}"#, ""];
    check(&both, &good, &bad);
    check(&either(&schema, &GrammarSpec::Regex("x+".into())), &["xx", good[2]], &["xx{", "{x"]);
    assert!(grammar(&either(&both, &schema)).is_err(), "two are enough");
    let wrong = GrammarSpec::Regex("(".to_owned());
    assert!(grammar(&either(&call, &wrong)).is_err() && grammar(&either(&wrong, &call)).is_err());
    let tight = GrammarLimits { bytes: 20, ..LIMITS };
    assert!(Grammar::compile(env(), &both, &tight).is_err(), "each part has the limits");
}

#[test]
fn an_output_ends_by_itself_where_nothing_can_follow() {
    let grammar = grammar(&GrammarSpec::Choice(vec!["ab".into(), "abc".into()])).unwrap();
    let byte = |text: &str| {
        let tokens = tokenizer().encode(text, false).unwrap();
        *tokens.last().unwrap()
    };
    let mut matcher = grammar.matcher();
    assert!(!matcher.may_end());
    for (text, over, ends) in [("a", false, false), ("b", false, true), ("c", true, true)] {
        assert!(has(&matcher.allowed().unwrap(), byte(text)), "{text}");
        assert_eq!(matcher.take(byte(text)).unwrap(), over, "{text}");
        assert_eq!(matcher.may_end(), ends, "{text}");
    }
    // Two outputs of one grammar know nothing of each other.
    assert!(!grammar.matcher().may_end());
    let mut wrong = grammar.matcher();
    assert!(wrong.take(byte("z")).is_err() && wrong.allowed().is_err());
}

#[test]
fn special_tokens_are_no_text() {
    let any = grammar(&GrammarSpec::Regex("(?s:.*)".to_owned())).unwrap();
    let allowed = any.matcher().allowed().unwrap();
    for id in 0..tokenizer().vocab_len() as u32 {
        let text = tokenizer().token_bytes(id);
        let special = tokenizer().is_special(id) && id != END;
        if special || text.is_empty() {
            assert!(!has(&allowed, id), "{id}");
        } else if text.is_ascii() {
            assert!(has(&allowed, id), "{id}");
        }
    }
}

#[test]
fn limits_hold_at_the_bound_and_one_past() {
    let tight = GrammarLimits { bytes: 100, nesting: 3, ..LIMITS };
    let compile = |spec: &GrammarSpec| Grammar::compile(env(), spec, &tight).map(|_| ());
    let refused = |spec: GrammarSpec, told: &str| {
        let error = compile(&spec).unwrap_err().to_string();
        assert_eq!(error, format!("the grammar cannot be used: {told}"));
    };
    compile(&GrammarSpec::Regex("a".repeat(100))).unwrap();
    refused(GrammarSpec::Regex("a".repeat(101)), "it has 101 bytes, at most 100 are taken");
    compile(&GrammarSpec::Choice(vec!["a".repeat(50), "b".repeat(50)])).unwrap();
    let long = GrammarSpec::Choice(vec!["a".repeat(50), "b".repeat(51)]);
    refused(long, "it has 101 bytes, at most 100 are taken");
    compile(&GrammarSpec::Regex("(((a)))".to_owned())).unwrap();
    refused(GrammarSpec::Regex("((((a))))".to_owned()), "it is nested 4 deep, at most 3 are taken");
    let nested = |schema: Value| GrammarSpec::JsonSchema { schema, lenient: false };
    compile(&nested(json!({"anyOf": [{"type": "null"}]}))).unwrap();
    let deep = json!({"anyOf": [{"anyOf": [{"type": "null"}]}]});
    refused(nested(deep), "it is nested 5 deep, at most 3 are taken");
    let states = GrammarLimits { states: 50, ..LIMITS };
    let spec = GrammarSpec::Regex("(a|b)*a(a|b){12}".to_owned());
    let mut matcher = Grammar::compile(env(), &spec, &states).unwrap().matcher();
    let mut step = |text: &str| {
        let token = tokenizer().encode(text, false).unwrap();
        matcher.allowed()?;
        matcher.take(*token.last().unwrap())
    };
    let ended = (0..200).find_map(|at| step(if at % 3 == 0 { "a" } else { "b" }).err());
    assert!(ended.is_some(), "fifty states are not enough");
}

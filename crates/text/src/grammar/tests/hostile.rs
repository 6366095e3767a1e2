//! Grammars made to take long, go deep or break something. Walks are on a small stack, as that of
//! the threads that compute.

use std::time::{Duration, Instant};

use super::*;

/// Far more than any takes, on a busy machine and without optimisation of this crate.
const LONG: Duration = Duration::from_secs(20);

/// splitmix64
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % end as u64) as usize
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// Compiles, and takes some tokens of those allowed. Says whether there was a grammar.
fn walk(spec: &GrammarSpec, random: &mut Random, tokens: usize) -> bool {
    let what: String = format!("{spec:?}").chars().take(200).collect();
    let start = Instant::now();
    let compiled = grammar(spec);
    assert!(start.elapsed() < LONG, "{:?} to compile {what}", start.elapsed());
    let grammar = match compiled {
        Ok(grammar) => grammar,
        Err(error) => {
            let told = error.to_string();
            assert!(!told.contains('\n') && told.chars().count() < 400, "{told}: {what}");
            return false;
        }
    };
    let mut matcher = grammar.matcher();
    for _ in 0..tokens {
        let start = Instant::now();
        let Ok(allowed) = matcher.allowed() else { return true };
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}, a mask of {what}",
            start.elapsed()
        );
        let ids = 0..tokenizer().vocab_len() as u32;
        let ids: Vec<u32> = ids.filter(|id| *id != END && has(&allowed, *id)).collect();
        if ids.is_empty() || matcher.take(*random.of(&ids)).unwrap_or(true) {
            return true;
        }
    }
    true
}

/// On a thread with the stack of one that computes.
fn on_small_stack(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap();
    thread.join().unwrap();
}

fn schema(schema: Value) -> GrammarSpec {
    GrammarSpec::JsonSchema { schema, lenient: false }
}

fn regex(text: impl Into<String>) -> GrammarSpec {
    GrammarSpec::Regex(text.into())
}

fn text(text: impl Into<String>) -> GrammarSpec {
    GrammarSpec::Text(text.into())
}

#[test]
fn deep_wide_and_explosive_grammars_end_in_time() {
    on_small_stack(|| {
        let mut random = Random(1);
        for spec in [expressions(), schemas(), texts()].concat() {
            walk(&spec, &mut random, 30);
        }
    });
}

fn expressions() -> Vec<GrammarSpec> {
    vec![
        regex("((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000}"),
        regex("(a|b)*a(a|b){500}"),
        regex("(x+x+)+y"),
        regex(".*a.{0,2000}b.*"),
        regex("(?i:[a-z]{1,300}){1,300}"),
        regex(r"\w{5000}"),
        regex("(a?){3000}a{3000}"),
        regex("a".repeat(16_000)),
        regex("a|".repeat(8_000)),
        regex("(".repeat(64) + &")".repeat(64)),
        regex(format!("{}a{}", "(".repeat(60), ")*".repeat(60))),
        GrammarSpec::Choice(words(20_000)),
    ]
}

fn words(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("word-{at}")).collect()
}

fn schemas() -> Vec<GrammarSpec> {
    let mut refs: serde_json::Map<String, Value> = (0..6000)
        .map(|at| (format!("a{at}"), json!({"$ref": format!("#/$defs/a{}", at + 1)})))
        .collect();
    refs.insert("a6000".to_owned(), json!({"type": "null"}));
    let needs = |name: String| json!({"required": [name]});
    let halves: Vec<Value> = (0..40)
        .map(|at| json!({"anyOf": [needs(format!("a{at}")), needs(format!("b{at}"))]}))
        .collect();
    let wide: serde_json::Map<String, Value> =
        words(500).into_iter().map(|word| (word, json!({"type": "string"}))).collect();
    let deep = (0..31).fold(json!({"type": "null"}), |inner, _| json!({"anyOf": [inner]}));
    let many = json!({"type": "array", "maxItems": 100_000});
    let patterns = json!({"(a|b)*a(a|b){20}": {}, "(b|a)*b(a|b){20}": {}});
    [
        json!({"enum": words(15_000)}),
        json!({"$ref": "#/$defs/a0", "$defs": refs}),
        json!({"allOf": halves}),
        json!({"type": "object", "properties": wide}),
        deep,
        json!({"type": "array", "minItems": 1_000_000_000}),
        json!({"type": "array", "maxItems": 100_000, "items": many}),
        json!({"type": "string", "minLength": 1_000_000_000}),
        json!({"type": "string", "maxLength": 100_000, "pattern": "(a|b)*a(a|b){200}"}),
        json!({"type": "integer", "multipleOf": 7, "minimum": -1e18, "maximum": 1e18}),
        json!({"type": "object", "minProperties": 1_000_000}),
        json!({"type": "object", "patternProperties": patterns}),
        json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}),
        json!({"properties": {"a": {"$ref": "#"}}, "allOf": [{"$ref": "#"}]}),
    ]
    .map(schema)
    .to_vec()
}

fn texts() -> Vec<GrammarSpec> {
    let chain = |count: usize, rule: &dyn Fn(usize, usize) -> String| -> String {
        (0..count).map(|at| rule(at, at + 1)).collect()
    };
    let rules = chain(9000, &|at, next| format!("a{at}: a{next}\n"));
    let terminals = chain(9000, &|at, next| format!("A{at}: \"a\" A{next}\n"));
    let gbnf = chain(9000, &|at, next| format!("a{at} ::= a{next}\n"));
    vec![
        text(format!("start: a0\n{rules}a9000: \"x\"\n")),
        text(format!("start: A0\n{terminals}A9000: \"x\"\n")),
        text("start: start start | start | \"a\" | \"\""),
        text(format!("start: {}", "(".repeat(60))),
        text(format!("start: %json {}", "[".repeat(60))),
        text(format!("start: \"a\"{{1,{}}}", i32::MAX)),
        text("start: (\"a\"{1,1000}){1,1000}"),
        text("root ::= root root | \"a\" |"),
        text(format!("root ::= {}", "\"a\" | ".repeat(30_000))),
        text(format!("root ::= a0\n{gbnf}a9000 ::= \"x\"\n")),
        text("start: /a/ & ~/b*/ & /(a|b)*a(a|b){200}/"),
        text("start: <|im_end|> <[5-20]> \"a\""),
        text("start: x::0\nx::_ : [bit_clear(0:3)] x::incr(_) | \"\""),
    ]
}

const KEYS: [&str; 31] = [
    "type",
    "properties",
    "items",
    "required",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "$ref",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minItems",
    "maxItems",
    "prefixItems",
    "additionalProperties",
    "patternProperties",
    "minProperties",
    "uniqueItems",
    "if",
    "$defs",
    "$schema",
    "x-guidance",
    "title",
];
const WORDS: [&str; 21] = [
    "object",
    "array",
    "string",
    "number",
    "integer",
    "boolean",
    "null",
    "#",
    "#/$defs/a",
    "a",
    "date-time",
    "email",
    "uuid",
    "ipv4",
    "[a-z]+",
    "(a|b)*a(a|b){9}",
    "^x.*$",
    "(",
    "é\u{0}\u{7f}",
    "https://example.com/s.json",
    "",
];
const NUMBERS: [f64; 10] = [-7.0, -1.5, 0.0, 1.0, 2.0, 3.0, 7.25, 1e9, -1e300, 1e-9];

/// A schema of random keywords with values that often do not fit.
fn random_schema(random: &mut Random, depth: usize) -> Value {
    if depth == 0 || random.below(6) == 0 {
        return match random.below(6) {
            0 => json!(random.below(2) == 0),
            1 => json!(random.of(&NUMBERS)),
            2 => json!(random.of(&[0_i64, 1, 2, 100, i64::MAX])),
            3 => Value::Null,
            _ => json!(random.of(&WORDS)),
        };
    }
    if random.below(4) == 0 {
        return (0..random.below(4)).map(|_| random_schema(random, depth - 1)).collect();
    }
    let keys = 1 + random.below(4);
    let map = (0..keys).map(|_| {
        let key = if random.below(5) == 0 { *random.of(&WORDS) } else { *random.of(&KEYS) };
        let value = match key {
            "type" if random.below(8) > 0 => json!(random.of(&WORDS[..7])),
            "required" | "enum" if random.below(4) > 0 => {
                (0..random.below(4)).map(|_| json!(random.of(&WORDS))).collect()
            }
            "anyOf" | "oneOf" | "allOf" | "prefixItems" if random.below(8) > 0 => {
                (0..=random.below(3)).map(|_| random_schema(random, depth - 1)).collect()
            }
            "pattern" | "format" | "$ref" if random.below(8) > 0 => json!(random.of(&WORDS)),
            _ => random_schema(random, depth - 1),
        };
        (key.to_owned(), value)
    });
    Value::Object(map.collect())
}

/// An expression of random signs, mostly balanced.
fn random_regex(random: &mut Random, depth: usize) -> String {
    const ATOMS: [&str; 20] = [
        "a", "b", ".", r"\d", r"\w", r"\s", "[a-z]", "[^x]", r"\.", "é", "/", r"\/", "^", "$",
        r"\b", "[", "(?i)", r"\p{L}", r"\x41", "\n",
    ];
    const ENDS: [&str; 12] =
        ["", "", "", "*", "+", "?", "{2}", "{0,3}", "{2,}", "*?", "{9,1}", "{1,40}"];
    let parts = 1 + random.below(5);
    let part = |_| {
        let atom = if depth > 0 && random.below(3) == 0 {
            let open = *random.of(&["(", "(?:", "(?=", "(?P<n>", "("]);
            format!("{open}{})", random_regex(random, depth - 1))
        } else {
            (*random.of(&ATOMS)).to_owned()
        };
        let bar = if random.below(6) == 0 { "|" } else { "" };
        format!("{atom}{}{bar}", random.of(&ENDS))
    };
    (0..parts).map(part).collect()
}

#[test]
fn thousands_of_random_schemas_and_expressions_are_taken_or_refused() {
    on_small_stack(|| {
        let mut random = Random(7);
        let (mut schemas, mut expressions) = (0, 0);
        for at in 0..1000 {
            let schema = random_schema(&mut random, 5);
            let spec = GrammarSpec::JsonSchema { schema, lenient: at % 2 == 0 };
            schemas += usize::from(walk(&spec, &mut random, 4));
            let spec = regex(random_regex(&mut random, 3));
            expressions += usize::from(walk(&spec, &mut random, 4));
        }
        // Neither all nothing nor all the same.
        assert!((100..1000).contains(&schemas), "{schemas} schemas");
        assert!((100..1000).contains(&expressions), "{expressions} expressions");
    });
}

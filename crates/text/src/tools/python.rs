//! Calls as Python writes them: `name(key="value", other=[1, 2])`, with literals only. Nothing is
//! run.

use serde_json::{Map, Number, Value};

use super::Out;
use super::body::{Body, Names, Step};

/// Deepest nesting of a literal.
const DEPTH: usize = 64;

/// Closing markers within strings at most.
const LOOKS: usize = 16;

/// Calls up to a closing marker; told when it is there.
#[derive(Debug)]
pub(super) struct PythonBody {
    close: &'static str,
    text: String,
    looks: usize,
}

impl PythonBody {
    pub(super) fn new(close: &'static str) -> Self {
        Self { close, text: String::new(), looks: 0 }
    }

    fn tell(text: &str, names: &Names, out: &mut Out) -> Found {
        let calls = match calls(text) {
            Ok(calls) if calls.iter().all(|(name, _)| names.take(name)) => calls,
            Err(Wrong::Cut) => return Found::Cut,
            Ok(_) | Err(Wrong::Other) => return Found::Nothing,
        };
        for (name, arguments) in calls {
            out.call(&name);
            out.arguments(&Value::Object(arguments).to_string());
        }
        Found::Calls
    }
}

enum Found {
    Calls,
    /// A string is not closed.
    Cut,
    Nothing,
}

impl Body for PythonBody {
    fn push(&mut self, c: char, names: &Names, out: &mut Out) -> Step {
        self.text.push(c);
        let Some(text) = self.text.strip_suffix(self.close) else { return Step::More };
        match Self::tell(text, names, out) {
            Found::Calls => Step::Done,
            // The marker may stand in a string. Each look takes the whole text, so there are few.
            Found::Cut if self.looks < LOOKS => {
                self.looks += 1;
                Step::More
            }
            Found::Cut | Found::Nothing => Step::Refused,
        }
    }

    fn finish(&mut self, names: &Names, out: &mut Out) -> bool {
        matches!(Self::tell(&self.text, names, out), Found::Calls)
    }
}

type Call = (String, Map<String, Value>);

/// Why a text is no calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// It ends in a string.
    Cut,
    Other,
}

/// All calls of a text, one after the other, in a list, or within `print`; at least one.
fn calls(text: &str) -> Result<Vec<Call>, Wrong> {
    let mut reader = Reader { rest: text, cut: false };
    let calls = reader.calls().filter(|calls| !calls.is_empty());
    calls.ok_or(if reader.cut { Wrong::Cut } else { Wrong::Other })
}

struct Reader<'a> {
    rest: &'a str,
    /// Whether a string was not closed.
    cut: bool,
}

impl Reader<'_> {
    fn calls(&mut self) -> Option<Vec<Call>> {
        let mut calls = Vec::new();
        let listed = self.eat("[");
        loop {
            if self.is_over() || (listed && self.eat("]")) {
                return self.is_over().then_some(calls);
            }
            let printed = self.eat("print(");
            calls.push(self.call()?);
            if printed && !self.eat(")") {
                return None;
            }
            while self.eat(",") || self.eat(";") {}
        }
    }

    fn is_over(&mut self) -> bool {
        self.rest = self.rest.trim_start();
        self.rest.is_empty()
    }

    /// Takes a sign, if it comes next.
    fn eat(&mut self, sign: &str) -> bool {
        self.rest = self.rest.trim_start();
        let after = self.rest.strip_prefix(sign);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn word(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '.' | '-'));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        (!word.is_empty()).then(|| word.to_owned())
    }

    fn call(&mut self) -> Option<Call> {
        let name = self.word()?;
        if !self.eat("(") {
            return None;
        }
        let mut arguments = Map::new();
        while !self.eat(")") {
            let key = self.word()?;
            if !self.eat("=") {
                return None;
            }
            arguments.insert(key, self.literal(0)?);
            if !self.eat(",") && !self.rest.trim_start().starts_with(')') {
                return None;
            }
        }
        Some((name, arguments))
    }

    fn literal(&mut self, depth: usize) -> Option<Value> {
        if depth > DEPTH {
            return None;
        }
        for (open, close) in [("[", "]"), ("(", ")")] {
            if self.eat(open) {
                return self.items(close, |reader| reader.literal(depth + 1)).map(Value::Array);
            }
        }
        if self.eat("{") {
            let pairs = self.items("}", |reader| {
                let Value::String(key) = reader.literal(depth + 1)? else { return None };
                if !reader.eat(":") {
                    return None;
                }
                Some((key, reader.literal(depth + 1)?))
            });
            return Some(Value::Object(pairs?.into_iter().collect()));
        }
        if self.rest.starts_with(['"', '\'']) {
            return self.string().map(Value::String);
        }
        match self.number_or_word()? {
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            "None" | "null" => Some(Value::Null),
            number => serde_json::from_str::<Number>(number).ok().map(Value::Number),
        }
    }

    fn number_or_word(&mut self) -> Option<&str> {
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && !matches!(c, '+' | '-' | '.'));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    fn items<T>(
        &mut self,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let mut items = Vec::new();
        while !self.eat(close) {
            items.push(item(self)?);
            if !self.eat(",") && !self.rest.trim_start().starts_with(close) {
                return None;
            }
        }
        Some(items)
    }

    fn string(&mut self) -> Option<String> {
        let rest = self.rest;
        let quote = rest.chars().next()?;
        let mut chars = rest.char_indices().skip(1);
        let mut text = String::new();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => text.push(match chars.next().map(|(_, c)| c)? {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    c @ ('\\' | '\'' | '"') => c,
                    _ => return None,
                }),
                c if c == quote => {
                    self.rest = &rest[at + c.len_utf8()..];
                    return Some(text);
                }
                c => text.push(c),
            }
        }
        self.cut = true;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_become_json() {
        for (text, expected) in [
            ("f()", Some("f{}")),
            ("f(a=1, b=-2.5e3)", Some(r#"f{"a":1,"b":-2500.0}"#)),
            ("f(a='x\\'y', b=\"\\n\",)", Some(r#"f{"a":"x'y","b":"\n"}"#)),
            ("f(a=[1, (2,), {'k': None}], b=True)", Some(r#"f{"a":[1,[2],{"k":null}],"b":true}"#)),
            ("print(f(a=1))\ng()", Some(r#"f{"a":1}g{}"#)),
            ("[f(a=1), g()]", Some(r#"f{"a":1}g{}"#)),
            ("f(1)", None),
            ("f(a=g())", None),
            ("f(a=1", None),
            ("f(a=1 b=2)", None),
            ("x = f()", None),
            ("f(a='x)", None),
            ("f(a=1) + 2", None),
            ("f(a=01)", None),
        ] {
            let found = calls(text).ok().map(|calls| {
                let one = |(name, arguments): Call| format!("{name}{}", Value::Object(arguments));
                calls.into_iter().map(one).collect::<String>()
            });
            assert_eq!(found.as_deref(), expected, "{text}");
        }
        let deep = |depth: usize| format!("f(a={}{})", "[".repeat(depth), "]".repeat(depth));
        assert!(calls(&deep(DEPTH)).is_ok() && calls(&deep(DEPTH + 2)).is_err());
        assert_eq!(calls("f(a='x)").unwrap_err(), Wrong::Cut);
        assert_eq!(calls("f(a=x)").unwrap_err(), Wrong::Other);
        assert_eq!(calls("").unwrap_err(), Wrong::Other);
    }
}

//! `CallScan`: one call as a JSON object with a name and arguments, read as it comes.

use serde_json::Value;

use super::Out;
use super::body::{Names, Step};
use super::json::{JsonScan, Scanned, json_space};

/// `{"name": …, "arguments": …}`. Arguments are told as they come once the name is known; before
/// that nothing is told, so that what is no call can be given back.
#[derive(Debug)]
pub(super) struct CallScan {
    at: At,
    key: Key,
    /// The key or the value that is being read, unless its characters are told at once.
    text: String,
    scan: JsonScan,
    name: Option<String>,
    /// That came whole, before they could be told.
    arguments: Option<String>,
    told: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum At {
    Open,
    /// At the first key, or at one after a comma.
    Key,
    InKey,
    Colon,
    Value,
    InValue,
    Next,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    Other,
}

/// Keys beside name and arguments that a call without a marker may have.
const MORE_KEYS: [&str; 3] = ["id", "type", "call_id"];

impl CallScan {
    pub(super) fn new() -> Self {
        Self {
            at: At::Open,
            key: Key::Other,
            text: String::new(),
            scan: JsonScan::default(),
            name: None,
            arguments: None,
            told: false,
        }
    }

    /// Takes a character; `Done` at the object's last one.
    pub(super) fn push(&mut self, c: char, names: &Names, out: &mut Out) -> Step {
        let step = match self.at {
            At::InKey => self.in_key(c, names),
            At::InValue => self.in_value(c, names, out),
            At::Value if !json_space(c) => self.value(c, names, out),
            _ if json_space(c) => Step::More,
            At::Open if c == '{' => self.to(At::Key),
            At::Key if c == '"' => {
                self.begin(c);
                self.to(At::InKey)
            }
            At::Colon if c == ':' => self.to(At::Value),
            At::Next => self.next(c, out),
            _ => Step::Refused,
        };
        match step {
            Step::More if self.told => Step::Told,
            Step::Refused if self.told => Step::Over,
            other => other,
        }
    }

    fn to(&mut self, at: At) -> Step {
        self.at = at;
        Step::More
    }

    /// A string or value begins.
    fn begin(&mut self, c: char) -> Scanned {
        self.scan = JsonScan::default();
        self.text.clear();
        self.text.push(c);
        self.scan.push(c)
    }

    fn in_key(&mut self, c: char, names: &Names) -> Step {
        self.text.push(c);
        match self.scan.push(c) {
            Scanned::More => return Step::More,
            Scanned::Last => {}
            Scanned::Past | Scanned::Wrong => return Step::Refused,
        }
        let Ok(key) = serde_json::from_str::<String>(&self.text) else { return Step::Refused };
        self.key = match key.as_str() {
            "name" if self.name.is_none() => Key::Name,
            "arguments" | "parameters" if !self.told && self.arguments.is_none() => Key::Arguments,
            "name" | "arguments" | "parameters" => return Step::Refused,
            _ if names.only_known && !MORE_KEYS.contains(&key.as_str()) => return Step::Refused,
            _ => Key::Other,
        };
        self.to(At::Colon)
    }

    fn value(&mut self, c: char, names: &Names, out: &mut Out) -> Step {
        self.at = At::InValue;
        if let (Key::Arguments, '{', Some(name)) = (self.key, c, &self.name) {
            self.told = true;
            out.call(name);
        }
        self.scan = JsonScan::default();
        self.text.clear();
        self.in_value(c, names, out)
    }

    fn in_value(&mut self, c: char, names: &Names, out: &mut Out) -> Step {
        let scanned = self.scan.push(c);
        if matches!(scanned, Scanned::More | Scanned::Last) {
            if self.told && self.key == Key::Arguments {
                out.arguments(c.encode_utf8(&mut [0; 4]));
            } else {
                self.text.push(c);
            }
        }
        match scanned {
            Scanned::More => Step::More,
            Scanned::Last if self.valued(names) => self.to(At::Next),
            Scanned::Past if self.valued(names) => {
                self.at = At::Next;
                if json_space(c) { Step::More } else { self.next(c, out) }
            }
            Scanned::Last | Scanned::Past | Scanned::Wrong => Step::Refused,
        }
    }

    /// A value is complete; false if it makes no call.
    fn valued(&mut self, names: &Names) -> bool {
        let text = std::mem::take(&mut self.text);
        match self.key {
            Key::Name => {
                let name = serde_json::from_str::<String>(&text).ok();
                self.name = name.filter(|name| names.take(name));
                self.name.is_some()
            }
            Key::Arguments if self.told => true,
            Key::Arguments => {
                self.arguments = object(&text);
                self.arguments.is_some()
            }
            // It is dropped, so a wrong one harms nobody.
            Key::Other => true,
        }
    }

    fn next(&mut self, c: char, out: &mut Out) -> Step {
        match (c, &self.name) {
            (',', _) => self.to(At::Key),
            ('}', Some(name)) => {
                if !self.told {
                    out.call(name);
                    out.arguments(self.arguments.as_deref().unwrap_or("{}"));
                }
                Step::Done
            }
            _ => Step::Refused,
        }
    }
}

/// Arguments as the text of an object: some models put the object in a string, or write null for
/// none.
fn object(text: &str) -> Option<String> {
    match serde_json::from_str(text).ok()? {
        Value::Object(_) => Some(text.to_owned()),
        Value::Null => Some("{}".to_owned()),
        Value::String(inner) if inner.trim().is_empty() => Some("{}".to_owned()),
        Value::String(inner) => {
            let is_object = matches!(serde_json::from_str(&inner), Ok(Value::Object(_)));
            is_object.then_some(inner)
        }
        _ => None,
    }
}

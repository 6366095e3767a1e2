//! Mistral: `[TOOL_CALLS] [{"name": …, "arguments": …}]`, and newer `[TOOL_CALLS]name[ARGS]{…}`.

use super::body::{Body, BodyKind, JsonBody, Names, Step};
use super::json::{JsonScan, Scanned, json_space};
use super::{Opening, Out, Spelling, generic};

pub(super) const SPELLING: Spelling = Spelling {
    openings: &[
        Opening { marker: "[TOOL_CALLS]", close: "", body: BodyKind::Named, known: false },
        generic::FENCE,
    ],
    bare: true,
};

/// Stands between a name and its arguments; models leave it out at times.
pub(super) const ARGUMENTS: &str = "[ARGS]";

/// Stands before an id that the model gives the call; it is not used.
pub(super) const ID: &str = "[CALL_ID]";

/// Longest name, characters.
const NAME: usize = 256;

/// Either spelling.
#[derive(Debug, Default)]
pub(super) struct NamedBody {
    at: At,
    name: String,
    /// A marker that is being read, or the id after one.
    held: String,
}

#[derive(Debug, Default)]
enum At {
    #[default]
    Start,
    Json(JsonBody),
    Name,
    Marker,
    Id,
    /// Before the brace.
    Arguments,
    InArguments(JsonScan),
}

impl Body for NamedBody {
    fn push(&mut self, c: char, names: &Names, out: &mut Out) -> Step {
        match &mut self.at {
            At::Json(body) => return body.push(c, names, out),
            At::Start if json_space(c) => {}
            At::Start if matches!(c, '[' | '{') => {
                let mut body = JsonBody::default();
                let step = body.push(c, names, out);
                self.at = At::Json(body);
                return step;
            }
            At::Start | At::Name if in_name(c) && self.name.len() < NAME => {
                self.name.push(c);
                self.at = At::Name;
            }
            At::Name | At::Id if c == '[' => {
                self.held = c.to_string();
                self.at = At::Marker;
            }
            At::Marker => return self.marker(c),
            At::Id if in_name(c) => {}
            At::Name | At::Arguments if json_space(c) => self.at = At::Arguments,
            At::Name | At::Arguments if c == '{' && names.take(&self.name) => {
                out.call(&self.name);
                self.at = At::InArguments(JsonScan::default());
                return self.push(c, names, out);
            }
            At::InArguments(scan) => {
                let scanned = scan.push(c);
                if scanned == Scanned::Wrong {
                    return Step::Over;
                }
                out.arguments(c.encode_utf8(&mut [0; 4]));
                return if scanned == Scanned::Last { Step::Done } else { Step::Told };
            }
            _ => return Step::Refused,
        }
        Step::More
    }
}

impl NamedBody {
    fn marker(&mut self, c: char) -> Step {
        self.held.push(c);
        self.at = match self.held.as_str() {
            ARGUMENTS => At::Arguments,
            ID => At::Id,
            held if [ARGUMENTS, ID].iter().any(|marker| marker.starts_with(held)) => {
                return Step::More;
            }
            _ => return Step::Refused,
        };
        Step::More
    }
}

fn in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

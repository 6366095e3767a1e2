//! `Body`: what stands behind a marker, one character at a time.

use std::collections::BTreeSet;
use std::fmt::Debug;

use super::Out;
use super::call::CallScan;
use super::json::json_space;
use super::mistral::NamedBody;
use super::python::PythonBody;

/// Names that make a call.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) known: BTreeSet<String>,
    /// Whether others make none where the body is.
    pub(super) only_known: bool,
    /// Whether others make none anywhere.
    pub(super) strict: bool,
}

impl Names {
    pub(super) fn take(&self, name: &str) -> bool {
        if self.only_known || self.strict { self.known.contains(name) } else { !name.is_empty() }
    }
}

/// What a character was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Part of what may become a call; nothing of it is told.
    More,
    /// Part of a call that is being told.
    Told,
    /// The last one.
    Done,
    /// All was over before it.
    Over,
    /// What was not told, this one too, is no call.
    Refused,
}

/// Reads one call or a list of them.
pub(super) trait Body: Debug + Send {
    fn push(&mut self, c: char, names: &Names, out: &mut Out) -> Step;

    /// The text ends; whether what was not told has become calls.
    fn finish(&mut self, _names: &Names, _out: &mut Out) -> bool {
        false
    }
}

/// Kinds of bodies.
#[derive(Clone, Copy, Debug)]
pub(super) enum BodyKind {
    /// An object, or a list of objects.
    Json,
    /// Mistral's: as `Json`, or a name and its arguments.
    Named,
    /// Calls as Python writes them, up to the closing marker.
    Python(&'static str),
}

impl BodyKind {
    pub(super) fn start(self) -> Box<dyn Body> {
        match self {
            Self::Json => Box::new(JsonBody::default()),
            Self::Named => Box::new(NamedBody::default()),
            Self::Python(close) => Box::new(PythonBody::new(close)),
        }
    }
}

/// `{…}` or `[{…}, {…}]`.
#[derive(Debug, Default)]
pub(super) struct JsonBody {
    listed: bool,
    at: At,
}

#[derive(Debug, Default)]
enum At {
    #[default]
    Start,
    Call(CallScan),
    /// After a call of a list.
    Between,
    /// After a comma.
    Comma,
}

impl Body for JsonBody {
    fn push(&mut self, c: char, names: &Names, out: &mut Out) -> Step {
        match &mut self.at {
            At::Call(call) => {
                let step = call.push(c, names, out);
                if step == Step::Done && self.listed {
                    self.at = At::Between;
                    return Step::Told;
                }
                return step;
            }
            _ if json_space(c) => {}
            At::Start if c == '[' && !self.listed => self.listed = true,
            At::Start | At::Comma if c == '{' => {
                let mut call = CallScan::new();
                call.push(c, names, out);
                self.at = At::Call(call);
            }
            At::Between if c == ',' => self.at = At::Comma,
            At::Between if c == ']' => return Step::Done,
            _ => return Step::Refused,
        }
        Step::More
    }
}

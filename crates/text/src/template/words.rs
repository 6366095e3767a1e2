//! What templates may call besides Jinja's own: functions, filters, tests and Python's methods, as
//! the transformers library has them.

use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::clock;
use super::python::{self, Dumps};

/// The template called `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// The message of `raise_exception`, if that is why the template failed.
pub(super) fn raised(error: &minijinja::Error) -> Option<&str> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message);
        }
        cause = error.source();
    }
    None
}

pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        let message = python::text(message)?;
        let error = Error::new(ErrorKind::InvalidOperation, "raise_exception was called");
        Err(error.with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: &str| clock::strftime(clock::now(), format));
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", python::text);
    // Of what is no text, Jinja trims how Python writes it.
    environment.add_filter("trim", |value: &Value, chars: Option<&str>| {
        let text = python::text(value)?;
        Ok::<_, Error>(match chars {
            Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
            None => text.trim().to_owned(),
        })
    });
    environment.add_test("iterable", |value: &Value| iterates(value));
    environment.add_test("sequence", |value: &Value| {
        // What has a length and items; in Python that is a text and a dict too.
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
    });
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Invalid | ValueKind::Plain => minijinja::escape_formatter(out, state, value),
        _ => out.write_str(&python::text(value)?).map_err(Error::from),
    });
}

fn iterates(value: &Value) -> bool {
    // Jinja's undefined is an empty list to a loop.
    let undefined = value.is_undefined();
    undefined || value.kind() == ValueKind::String || value.try_iter().is_ok()
}

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(value: &Value, args: Rest<Value>) -> Result<String, Error> {
    let mut given = args.0;
    let kwargs = match given.last() {
        Some(last) if last.is_kwargs() => Kwargs::try_from(given.remove(given.len() - 1))?,
        _ => std::iter::empty::<(&str, Value)>().collect(),
    };
    let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let value = given.get(index).cloned().or(kwargs.get::<Option<Value>>(name)?);
        Ok(value.filter(|value| !value.is_none()))
    };
    let truth = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = argument(1, "indent")?.map(|value| match value.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(value.as_usize().unwrap_or(0).min(64)),
    });
    let separators = match argument(2, "separators")? {
        Some(pair) => {
            let mut texts = pair.try_iter()?.map(|item| python::text(&item));
            let mut next = || texts.next().transpose().map(Option::unwrap_or_default);
            (next()?, next()?)
        }
        // A line end after the comma leaves no space before it.
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let ensure_ascii = truth(argument(0, "ensure_ascii")?);
    let sort_keys = truth(argument(3, "sort_keys")?);
    kwargs.assert_all_used()?;
    Dumps { ensure_ascii, indent, separators, sort_keys }.text(value)
}

/// Python's methods: those of minijinja-contrib, and those that it lacks.
fn method(
    state: &State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let found = value.as_str().map(|text| text_method(text, name, args)).transpose()?.flatten();
    match found {
        Some(found) => Ok(found),
        None => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn text_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let one = |args| from_args::<(&str,)>(args).map(|(argument,)| argument);
    let triple = |parts: [&str; 3]| parts.into_iter().map(Value::from).collect();
    Ok(Some(match name {
        "removeprefix" => text.strip_prefix(one(args)?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(one(args)?).unwrap_or(text).into(),
        "partition" => {
            let separator = one(args)?;
            let (before, after) = text.split_once(separator).unwrap_or((text, ""));
            triple([before, if before.len() < text.len() { separator } else { "" }, after])
        }
        "rpartition" => {
            let separator = one(args)?;
            let (before, after) = text.rsplit_once(separator).unwrap_or(("", text));
            triple([before, if after.len() < text.len() { separator } else { "" }, after])
        }
        "rsplit" => {
            let (separator, most): (&str, Option<usize>) = from_args(args)?;
            let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
            let parts: Vec<&str> = text.rsplitn(most, separator).collect();
            parts.into_iter().rev().map(Value::from).collect()
        }
        _ => return Ok(None),
    }))
}

/// The tags that mark what a model said are for training; here they are blocks without effect.
pub(super) fn without_generation_tags(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag.trim_matches(['{', '}', '%', '-', '+']).trim();
        out.push_str(&match word {
            "generation" => tag.replace("generation", "with"),
            "endgeneration" => tag.replace("endgeneration", "endwith"),
            _ => tag.to_owned(),
        });
        rest = after;
    }
    out.push_str(rest);
    out
}

//! `Tools`: the tools of a request and whether the model may or must call them.

mod choice;

use std::collections::BTreeSet;

use kvant_text::{ToolFamily, ToolShape};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::json::{Fields, wrong_type};

use choice::Asked;
pub(crate) use choice::Choice;

/// Longest name of a tool, characters; OpenAI's.
const NAME_MAX: usize = 64;

/// Bounds of the tools of a request.
#[derive(Clone, Copy, Debug)]
pub struct ToolLimits {
    /// Tools at most.
    pub count: usize,
    /// Bytes of all of them as JSON.
    pub bytes: usize,
}

impl Default for ToolLimits {
    fn default() -> Self {
        Self { count: 128, bytes: 256 << 10 }
    }
}

/// Tools that the model is told of; at least one.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// As the request has them, without those that may not be called.
    pub(crate) list: Vec<Value>,
    pub(crate) choice: Choice,
    /// Whether the request has more tools, which may not be called.
    pub(crate) cut: bool,
    /// Whether several calls are welcome.
    pub(crate) many: bool,
}

impl Tools {
    /// Takes `tools`, `tool_choice` and `parallel_tool_calls`; `None` if there is nothing to call.
    pub(crate) fn read(fields: &mut Fields, limits: &ToolLimits) -> Result<Option<Self>, ApiError> {
        let many = fields.flag("parallel_tool_calls", true)?;
        let choice = fields.take("tool_choice");
        let mut list = fields.list("tools")?.unwrap_or_default();
        if list.len() > limits.count {
            let (found, most) = (list.len(), limits.count);
            let message = format!("tools has {found} entries, at most {most} are taken");
            return Err(ApiError::value("tools", message));
        }
        let mut names = BTreeSet::new();
        for (index, tool) in list.iter().enumerate() {
            let name = check(&format!("tools[{index}]"), tool)?;
            if !names.insert(name) {
                let param = format!("tools[{index}].function.name");
                let message = format!("{param} is {name:?}, which is the name of another tool");
                return Err(ApiError::value(param, message));
            }
        }
        let bytes: usize = list.iter().map(|tool| tool.to_string().len()).sum();
        if bytes > limits.bytes {
            let most = limits.bytes;
            let message = format!("tools has {bytes} bytes as JSON, at most {most} are taken");
            return Err(ApiError::value("tools", message));
        }
        let asked = match choice {
            Some(choice) => Asked::read(&choice, &names)?,
            None => Asked::of(Choice::Auto),
        };
        let Asked { choice, allowed } = asked;
        let cut = allowed.is_some();
        if let Some(allowed) = allowed {
            list.retain(|tool| name_of(tool).is_some_and(|name| allowed.contains(name)));
        }
        let called = !list.is_empty() && choice != Choice::None;
        let many = many && !matches!(choice, Choice::Named(_));
        Ok(called.then_some(Self { list, choice, cut, many }))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.list.iter().filter_map(name_of).map(str::to_owned).collect()
    }

    /// A Lark grammar of the calls that may or must be, if there are any.
    pub(crate) fn grammar(
        &self,
        family: ToolFamily,
        special: &dyn Fn(&str) -> Option<u32>,
    ) -> Option<String> {
        let only = match &self.choice {
            Choice::None => return None,
            Choice::Auto | Choice::Required => None,
            Choice::Named(name) => Some(name.as_str()),
        };
        // Nobody asked for calls to fit their schemas, so what cannot be held to is no error.
        let lenient = self.choice == Choice::Auto;
        let shape = |tool| {
            let name = name_of(tool).filter(|name| only.is_none_or(|only| only == *name))?;
            let parameters = tool["function"].get("parameters").filter(|own| !own.is_null());
            Some(ToolShape { name, parameters, lenient })
        };
        let tools: Vec<ToolShape<'_>> = self.list.iter().filter_map(shape).collect();
        Some(family.grammar(&tools, self.many, special))
    }
}

fn name_of(tool: &Value) -> Option<&str> {
    tool["function"]["name"].as_str()
}

/// The name of a tool that is as it should be.
fn check<'a>(path: &str, tool: &'a Value) -> Result<&'a str, ApiError> {
    let tool = object(path, tool)?;
    function_kind(path, tool)?;
    let path = format!("{path}.function");
    let function = tool.get("function").ok_or_else(|| ApiError::missing(&path))?;
    let function = object(&path, function)?;
    if let Some(text) = present(function, "description")
        && !text.is_string()
    {
        return Err(wrong_type(&format!("{path}.description"), text, "a string"));
    }
    if let Some(strict) = present(function, "strict")
        && !strict.is_boolean()
    {
        return Err(wrong_type(&format!("{path}.strict"), strict, "true or false"));
    }
    if let Some(schema) = present(function, "parameters") {
        let path = format!("{path}.parameters");
        let schema = object(&path, schema)?;
        if let Some(kind) = schema.get("type").filter(|kind| *kind != "object") {
            let message = format!("{path}.type is {kind}, arguments are of type \"object\"");
            return Err(ApiError::value(format!("{path}.type"), message));
        }
    }
    name(&format!("{path}.name"), function)
}

/// A field that is not null.
fn present<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|value| !value.is_null())
}

fn object<'a>(path: &str, value: &'a Value) -> Result<&'a Map<String, Value>, ApiError> {
    value.as_object().ok_or_else(|| wrong_type(path, value, "an object"))
}

/// Tools are functions; OpenAI has other kinds too.
fn function_kind(path: &str, map: &Map<String, Value>) -> Result<(), ApiError> {
    let path = format!("{path}.type");
    match map.get("type") {
        Some(Value::String(kind)) if kind == "function" => Ok(()),
        Some(Value::String(kind)) => {
            let message = format!("{path} is {kind:?}, only tools of type \"function\" are served");
            Err(ApiError::unsupported(path, message))
        }
        Some(other) => Err(wrong_type(&path, other, "\"function\"")),
        None => Err(ApiError::missing(&path)),
    }
}

fn name<'a>(path: &str, function: &'a Map<String, Value>) -> Result<&'a str, ApiError> {
    let value = function.get("name").ok_or_else(|| ApiError::missing(path))?;
    let name = value.as_str().ok_or_else(|| wrong_type(path, value, "a string"))?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if (1..=NAME_MAX).contains(&name.chars().count()) && name.chars().all(fits) {
        return Ok(name);
    }
    let shown: String = name.chars().take(NAME_MAX).collect();
    let message = format!(
        "{path} is {shown:?}, it must be of 1 to {NAME_MAX} letters, digits, underscores and dashes"
    );
    Err(ApiError::value(path, message))
}

#[cfg(test)]
mod tests;

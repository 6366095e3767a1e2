//! `ChatTemplate`: messages to the text that a model reads, as the transformers library renders.
//! A rendering takes bounded steps and its output has a bounded length.

mod clock;
mod continuation;
mod python;
mod words;

use std::io;

use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use crate::error::Error;

/// Most instructions of one rendering. A message takes some hundred, so this is for tens of
/// thousands of messages; a loop without end takes about a second until it is stopped.
const STEPS: u64 = 10_000_000;

/// Most bytes of one rendering: several times the longest context.
const OUTPUT_BYTES: usize = 16 << 20;

/// Longest template, bytes. The longest known have about 30 thousand.
const TEMPLATE_BYTES: usize = 1 << 20;

/// Most words and signs of a template. minijinja recurses at every sign of a chain such as `not
/// not` or `a + b + c` without a bound of its own, and takes the square of its length in time; this
/// bounds both. The longest known templates, of 30 thousand bytes, have half as many.
const TOKENS: usize = 20_000;

/// Stack for reading a template, bytes: four times what the worst one of so many tokens takes. It
/// is taken for that moment, and only as far as it is used.
const STACK_BYTES: usize = 64 << 20;

/// Deepest nesting of calls and blocks; minijinja counts a macro call several times.
const RECURSION: usize = 200;

/// Variables that the request's own fields set.
const RESERVED: [&str; 3] = ["messages", "tools", "add_generation_prompt"];

const NAME: &str = "chat_template";

/// Texts of tokens that templates write.
#[derive(Clone, Debug, Default)]
pub struct TemplateTokens {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
}

/// How to render.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// Whether the text ends where the model is to answer.
    pub add_generation_prompt: bool,
    /// Whether the text ends within the last message, for the model to go on with it.
    pub continue_final_message: bool,
    /// More variables of the template. They may set `bos_token` and `eos_token` otherwise.
    pub kwargs: Map<String, Value>,
}

/// Where a template reads the tools of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolsIn {
    /// In the variable `tools`, as most do.
    Variable,
    /// In the key `tools` of the system message, as one text: Phi 4 mini.
    SystemMessage,
    /// Nowhere.
    Nowhere,
}

/// Words and signs of a text, at least as many as the template's code has.
fn tokens_of(text: &str) -> usize {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut in_word = false;
    let begins = |c: char| {
        let before = std::mem::replace(&mut in_word, word(c));
        if word(c) { !before } else { !c.is_whitespace() }
    };
    text.chars().map(begins).filter(|begins| *begins).count()
}

/// A model's chat template.
///
/// It is bounded in steps, nesting and output, but not in the memory of what it computes on the
/// way: it comes with the model and is trusted as far. Values from requests are never code.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: TemplateTokens,
}

impl ChatTemplate {
    /// Reads a template.
    pub fn new(text: &str, tokens: TemplateTokens) -> Result<Self, Error> {
        if text.len() > TEMPLATE_BYTES {
            let what = format!("it has more than {TEMPLATE_BYTES} bytes");
            return Err(Error::TemplateSyntax(what));
        }
        if tokens_of(text) > TOKENS {
            let what = format!("it has more than {TOKENS} words and signs");
            return Err(Error::TemplateSyntax(what));
        }
        let environment = std::thread::scope(|scope| {
            let reader = std::thread::Builder::new().stack_size(STACK_BYTES);
            let reader = reader.spawn_scoped(scope, || Self::environment(text));
            let reader = reader.map_err(|error| Error::TemplateSyntax(error.to_string()))?;
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        Ok(Self { environment, tokens })
    }

    fn environment(text: &str) -> Result<Environment<'static>, Error> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(STEPS));
        environment.set_recursion_limit(RECURSION);
        words::install(&mut environment);
        // Jinja reads every kind of line end as one \n, in strings too.
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        environment
            .add_template_owned(NAME, words::without_generation_tags(&text))
            .map_err(|error| Error::TemplateSyntax(line(&error.to_string())))?;
        Ok(environment)
    }

    /// The template's own text.
    pub fn source(&self) -> String {
        let template = self.environment.get_template(NAME);
        template.map(|template| template.source().to_owned()).unwrap_or_default()
    }

    /// Whether the template reads a variable that nobody but the caller sets.
    pub fn reads(&self, variable: &str) -> bool {
        let template = self.environment.get_template(NAME);
        template.is_ok_and(|template| template.undeclared_variables(false).contains(variable))
    }

    /// Where the template reads tools.
    pub fn tools_in(&self) -> ToolsIn {
        let source = self.source();
        if self.reads("tools") {
            ToolsIn::Variable
        } else if source.contains("['tools']") || source.contains(".tools") {
            ToolsIn::SystemMessage
        } else {
            ToolsIn::Nowhere
        }
    }

    /// Renders messages: a list of objects with `role` and `content`.
    ///
    /// Keys of a message that are null are left out, as the library does. Templates that ask
    /// whether a key `is none` fail so; then the messages are rendered as they are.
    #[expect(clippy::needless_pass_by_value, reason = "callers make it for the call")]
    pub fn render(
        &self,
        messages: &Value,
        tools: Option<&Value>,
        options: RenderOptions,
    ) -> Result<String, Error> {
        let given = objects(messages)?;
        if let Some(name) = RESERVED.iter().find(|name| options.kwargs.contains_key(**name)) {
            return Err(Error::ReservedArgument((*name).to_owned()));
        }
        let without_null: Vec<_> = given.iter().map(|message| present(message)).collect();
        let has_null = without_null.iter().zip(&given).any(|(kept, all)| kept.len() < all.len());
        match self.conversation(without_null, tools, &options) {
            Err(Error::TemplateFailed(_)) if has_null => {
                self.conversation(given.into_iter().cloned().collect(), tools, &options)
            }
            other => other,
        }
    }

    fn conversation(
        &self,
        messages: Vec<Map<String, Value>>,
        tools: Option<&Value>,
        options: &RenderOptions,
    ) -> Result<String, Error> {
        let mut messages: Vec<_> = messages.into_iter().map(with_reasoning).collect();
        if !options.continue_final_message {
            return self.text(messages, tools, options);
        }
        if options.add_generation_prompt {
            return Err(Error::FinalMessage("cannot be set with add_generation_prompt; drop one"));
        }
        let last = messages.last_mut().ok_or(Error::FinalMessage("there is no message"))?;
        let content = continuation::mark(last)?;
        let text = self.text(messages, tools, options)?;
        continuation::cut(text, &content)
    }

    fn text(
        &self,
        messages: Vec<Map<String, Value>>,
        tools: Option<&Value>,
        options: &RenderOptions,
    ) -> Result<String, Error> {
        let mut variables = Map::new();
        // A token that the model lacks is undefined, which is written as nothing.
        let tokens = [("bos_token", &self.tokens.bos), ("eos_token", &self.tokens.eos)];
        for (name, token) in tokens {
            if let Some(token) = token {
                variables.insert(name.to_owned(), token.as_str().into());
            }
        }
        variables.insert("documents".to_owned(), Value::Null);
        variables.extend(options.kwargs.clone());
        let messages = messages.into_iter().map(Value::Object).collect();
        variables.insert("messages".to_owned(), Value::Array(messages));
        variables.insert("tools".to_owned(), tools.cloned().unwrap_or_default());
        variables.insert("add_generation_prompt".to_owned(), options.add_generation_prompt.into());

        let mut output = Limited { bytes: Vec::new(), full: false };
        let template = self.environment.get_template(NAME);
        let template = template.map_err(|error| Error::TemplateFailed(line(&error.to_string())))?;
        match template.render_captured_to(variables, &mut output) {
            Ok(_) => String::from_utf8(output.bytes)
                .map_err(|_| Error::TemplateFailed("wrote what is no UTF-8".to_owned())),
            Err(_) if output.full => Err(Error::TemplateOutput { limit: OUTPUT_BYTES }),
            Err(error) => Err(failure(&error)),
        }
    }
}

fn failure(error: &minijinja::Error) -> Error {
    if let Some(message) = words::raised(error) {
        return Error::TemplateRaised(line(message));
    }
    // The first error can be of the macro that ran when the steps were used up.
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let found = error.downcast_ref::<minijinja::Error>();
        if found.is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return Error::TemplateSteps { limit: STEPS };
        }
        cause = error.source();
    }
    Error::TemplateFailed(line(&error.to_string()))
}

/// On one line.
fn line(text: &str) -> String {
    text.split('\n').map(str::trim).collect::<Vec<_>>().join(" ")
}

fn objects(messages: &Value) -> Result<Vec<&Map<String, Value>>, Error> {
    let wrong = |what: &str| Error::TemplateFailed(what.to_owned());
    let list = messages.as_array().ok_or_else(|| wrong("messages must be a list"))?;
    if list.is_empty() {
        return Err(wrong("there are no messages"));
    }
    let objects = list.iter().map(Value::as_object).collect::<Option<Vec<_>>>();
    objects.ok_or_else(|| wrong("every message must be an object"))
}

fn present(message: &Map<String, Value>) -> Map<String, Value> {
    let present = message.iter().filter(|(_, value)| !value.is_null());
    present.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// A message with its reasoning under the names that templates read.
fn with_reasoning(message: Map<String, Value>) -> Map<String, Value> {
    let names = ["reasoning_content", "thinking", "reasoning"];
    let found = names.iter().find_map(|name| message.get(*name).filter(|value| !value.is_null()));
    let Some(reasoning) = found.cloned() else { return message };
    let mut renamed = Map::new();
    renamed.insert("thinking".to_owned(), reasoning.clone());
    renamed.extend(message);
    renamed.insert("reasoning_content".to_owned(), reasoning);
    renamed
}

/// Keeps what is written, up to the limit.
struct Limited {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT_BYTES {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! Chat to a prompt: messages, tools and documents through the model's template, and how the answer
//! to it is read.

use kvant_text::{
    Error as TextError, GrammarSpec, RenderOptions, Telling, ToolFamily, ToolsIn, tools_in_words,
};
use serde_json::{Map, Value};

use crate::answer::{AnswerRules, Calls, Reasoning};
use crate::error::ApiError;
use crate::json::{Bound, Fields, wrong_type};
use crate::messages;
use crate::order::Prompt;
use crate::served::Served;
use crate::thinking::ThinkingRules;
use crate::tools::{Choice, Tools};

/// Values of `reasoning_effort`; OpenAI's.
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Tokens of thoughts; vLLM's name.
const BUDGET: Bound = Bound::new("thinking_token_budget", 0.0, u32::MAX as f64);

/// A conversation as the model reads it.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) prompt: Prompt,
    /// How the answer is read.
    pub(crate) answer: AnswerRules,
    /// What is asked of thoughts, if the model has any.
    pub(crate) thinking: Option<ThinkingRules>,
    pub(crate) call: Option<Call>,
}

/// A call that the answer may or must be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) grammar: GrammarSpec,
    /// Whether it must be one.
    pub(crate) must: bool,
}

/// Takes messages and what belongs to their rendering. The template writes the special tokens.
pub(crate) fn chat(served: &Served, fields: &mut Fields) -> Result<Rendered, ApiError> {
    let messages = messages::read(fields)?;
    let tools = Tools::read(fields, &served.app.chat.tools)?;
    let options = options(served, fields)?;
    let special = fields.flag("add_special_tokens", false)?;
    let told = fields.flag("include_reasoning", true)?;
    let budget = budget(served, fields)?;
    let continued = options.continue_final_message.then(|| last_content(&messages));
    let text = text(served, &messages, tools.as_ref(), &options)?;
    let tokens = served.encode("messages", &text, special)?;
    let opened = served.style.thinks_after(&text, continued.as_deref());
    let reasoning = served.style.marks.map(|marks| Reasoning { marks, opened, told });
    let thinking = reasoning.map(|Reasoning { marks, opened, .. }| ThinkingRules {
        tokenizer: served.app.tokenizer.clone(),
        marks,
        opened,
        budget,
        ends: served.app.model.eos_tokens.clone(),
    });
    let call = call(served, tools.as_ref())?;
    let calls = tools.zip(served.style.family).map(|(tools, family)| Calls {
        family,
        names: tools.names(),
        only: tools.cut,
        many: tools.many,
    });
    let prompt = Prompt { text: Some(text), tokens };
    Ok(Rendered { prompt, answer: AnswerRules { reasoning, calls }, thinking, call })
}

/// The call that the answer must be, or may be in place of JSON. Then it begins as no JSON does.
fn call(served: &Served, tools: Option<&Tools>) -> Result<Option<Call>, ApiError> {
    let Some(tools) = tools else { return Ok(None) };
    let must = tools.choice != Choice::Auto;
    let special = |text: &str| served.app.tokenizer.special(text);
    match served.style.family {
        Some(family) if must || family.is_marked(&special) => {
            let grammar = tools.grammar(family, &special).map(GrammarSpec::Text);
            Ok(grammar.map(|grammar| Call { grammar, must }))
        }
        None if must => {
            let message = "tool_choice asks for a call, but this server looks for none: \
                chat.tool_parser is none";
            Err(ApiError::unsupported("tool_choice", message))
        }
        _ => Ok(None),
    }
}

/// Tokens of thoughts at most.
fn budget(served: &Served, fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let budget = fields.integer(&BUDGET)?;
    if budget.is_some() && served.style.marks.is_none() {
        let message = format!("{} is not served: this model marks no thoughts", BUDGET.name);
        return Err(ApiError::unsupported(BUDGET.name, message));
    }
    Ok(budget.map(|tokens| tokens as u32))
}

fn last_content(messages: &Value) -> String {
    let last = messages.as_array().and_then(|list| list.last());
    last.and_then(|message| message["content"].as_str()).unwrap_or_default().to_owned()
}

/// The prompt's text.
fn text(
    served: &Served,
    messages: &Value,
    tools: Option<&Tools>,
    options: &RenderOptions,
) -> Result<String, ApiError> {
    let Some(template) = &served.app.template else {
        let message = format!(
            "{} has no chat template; use /v1/completions, or a model with one",
            served.app.model.id
        );
        return Err(ApiError::bad("chat_template_missing", message).of("messages"));
    };
    let list = tools.map(|tools| Value::Array(tools.list.clone()));
    let words = |telling| {
        let many = tools.is_some_and(|tools| tools.many);
        tools_in_words(messages, list.as_ref(), many, telling)
    };
    let rendered = match served.style.tools_in {
        ToolsIn::Variable if served.style.family == Some(ToolFamily::Mistral) => {
            template.render(&nine_letters(messages), list.as_ref(), options.clone())
        }
        ToolsIn::Variable => template.render(messages, list.as_ref(), options.clone()),
        ToolsIn::SystemMessage => {
            let messages = in_system_message(messages, list.as_ref());
            template.render(&messages, None, options.clone())
        }
        ToolsIn::Nowhere => match template.render(&words(Telling::System), None, options.clone()) {
            // Some templates take no system message.
            Err(TextError::TemplateRaised(_)) if list.is_some() => {
                template.render(&words(Telling::User), None, options.clone())
            }
            other => other,
        },
    };
    rendered.map_err(|error| {
        let param = match &error {
            TextError::ReservedArgument(_) => "chat_template_kwargs",
            TextError::FinalMessage(_) => "continue_final_message",
            _ => "messages",
        };
        ApiError::value(param, error.to_string())
    })
}

/// Phi's template reads the functions from the system message, as a text.
fn in_system_message(messages: &Value, tools: Option<&Value>) -> Value {
    let mut messages = messages.as_array().cloned().unwrap_or_default();
    let Some(tools) = tools.and_then(Value::as_array) else { return Value::Array(messages) };
    let functions: Vec<Value> = tools.iter().map(|tool| tool["function"].clone()).collect();
    if messages.first().is_none_or(|message| message["role"] != "system") {
        let mut system = Map::new();
        system.insert("role".to_owned(), "system".into());
        system.insert("content".to_owned(), "".into());
        messages.insert(0, Value::Object(system));
    }
    messages[0]["tools"] = Value::Array(functions).to_string().into();
    Value::Array(messages)
}

/// Mistral's templates take ids of nine letters and digits only; another server's are longer.
fn nine_letters(messages: &Value) -> Value {
    let fit = |id: &mut Value| {
        let Some(text) = id.as_str() else { return };
        let letters: Vec<char> = text.chars().filter(char::is_ascii_alphanumeric).collect();
        let nine = letters[letters.len().saturating_sub(9)..].iter().collect::<String>();
        *id = format!("{nine:0>9}").into();
    };
    let mut messages = messages.clone();
    for message in messages.as_array_mut().into_iter().flatten() {
        message.get_mut("tool_call_id").map(fit);
        let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            call.get_mut("id").map(fit);
        }
    }
    messages
}

fn options(served: &Served, fields: &mut Fields) -> Result<RenderOptions, ApiError> {
    let go_on = fields.flag("continue_final_message", false)?;
    // Absent, it is what continue_final_message leaves; vLLM wants it spelled out.
    let add = fields.flag("add_generation_prompt", !go_on)?;
    if add && go_on {
        let message = "add_generation_prompt and continue_final_message cannot both be true";
        return Err(ApiError::value("continue_final_message", message));
    }
    let mut kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
    effort(fields, &mut kwargs)?;
    documents(served, fields, &mut kwargs)?;
    Ok(RenderOptions { add_generation_prompt: add, continue_final_message: go_on, kwargs })
}

/// `none` also sets the variables that templates of today read; what the request sets itself stays.
fn effort(fields: &mut Fields, kwargs: &mut Map<String, Value>) -> Result<(), ApiError> {
    let Some(effort) = fields.text("reasoning_effort")? else { return Ok(()) };
    if !EFFORTS.contains(&effort.as_str()) {
        let efforts = EFFORTS.join(", ");
        let message = format!("reasoning_effort is {effort:?}, it must be one of: {efforts}");
        return Err(ApiError::value("reasoning_effort", message));
    }
    if effort == "none" {
        for name in ["enable_thinking", "thinking"] {
            kwargs.entry(name).or_insert(Value::Bool(false));
        }
    }
    kwargs.entry("reasoning_effort").or_insert(Value::String(effort));
    Ok(())
}

/// For templates that read them; others would drop them.
fn documents(
    served: &Served,
    fields: &mut Fields,
    kwargs: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    let documents = fields.list("documents")?.unwrap_or_default();
    for (index, document) in documents.iter().enumerate() {
        if !document.is_object() {
            return Err(wrong_type(&format!("documents[{index}]"), document, "an object"));
        }
    }
    if documents.is_empty() {
        return Ok(());
    }
    if !served.app.template.as_ref().is_some_and(|template| template.reads("documents")) {
        let message =
            "documents is not served: this model's template reads none; put them in a message";
        return Err(ApiError::unsupported("documents", message));
    }
    kwargs.entry("documents").or_insert(Value::Array(documents));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_of_calls_fit_mistral() {
        let ids = |call: &str| {
            let messages = json!([
                {"role": "assistant", "tool_calls": [{"id": call}]},
                {"role": "tool", "tool_call_id": call},
            ]);
            let fit = nine_letters(&messages);
            assert_eq!(fit[0]["tool_calls"][0]["id"], fit[1]["tool_call_id"]);
            fit[1]["tool_call_id"].as_str().unwrap().to_owned()
        };
        assert_eq!(ids("abcdefghi"), "abcdefghi");
        assert_eq!(ids("call_0123456789"), "123456789");
        assert_eq!(ids("é1"), "000000001");
    }

    #[test]
    fn phi_reads_tools_in_the_system_message() {
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        for messages in [json!([{"role": "user"}]), json!([{"role": "system", "content": "s"}])] {
            let found = in_system_message(&messages, Some(&tools));
            assert_eq!(found[0]["role"], "system");
            assert_eq!(found[0]["tools"], "[{\"name\":\"f\"}]");
            assert_eq!(in_system_message(&messages, None), messages);
        }
    }

    #[test]
    fn efforts_are_words_of_templates() {
        let read = |body: Value| {
            let mut kwargs = json!({"thinking": true}).as_object().unwrap().clone();
            effort(&mut Fields::from(body.as_object().unwrap().clone()), &mut kwargs)?;
            Ok::<_, ApiError>(Value::Object(kwargs))
        };
        let low = json!({"thinking": true, "reasoning_effort": "low"});
        assert_eq!(read(json!({"reasoning_effort": "low"})).unwrap(), low);
        let none = json!({"thinking": true, "enable_thinking": false, "reasoning_effort": "none"});
        assert_eq!(read(json!({"reasoning_effort": "none"})).unwrap(), none);
        let wrong = read(json!({"reasoning_effort": "much"})).unwrap_err();
        assert_eq!(wrong.param.as_deref(), Some("reasoning_effort"));
    }
}

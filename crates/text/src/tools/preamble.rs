//! Tools in words: for templates that know none, tools, calls and results are told in messages of
//! the kinds that every template has.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Where tools are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// In the system message, which is made if there is none.
    System,
    /// Before the first question: some templates take no system message.
    User,
}

/// Messages without calls and results, with the tools in words. `many`: several calls at once are
/// welcome.
pub fn tools_in_words(
    messages: &Value,
    tools: Option<&Value>,
    many: bool,
    telling: Telling,
) -> Value {
    let mut told = plain(messages.as_array().map_or(&[], Vec::as_slice));
    if let Some(tools) = tools {
        let words = words(tools.as_array().map_or(&[], Vec::as_slice), many);
        let role = if telling == Telling::System { "system" } else { "user" };
        let first = match telling {
            Telling::System => told.first_mut(),
            Telling::User => told.iter_mut().find(|message| message["role"] == role),
        };
        match first.filter(|message| message["role"] == role) {
            Some(message) => {
                let content = message["content"].as_str().unwrap_or_default();
                message["content"] = match telling {
                    Telling::System => format!("{content}\n\n{words}"),
                    Telling::User => format!("{words}\n\n{content}"),
                }
                .into();
            }
            None => told.insert(0, json!({"role": role, "content": words})),
        }
    }
    Value::Array(told)
}

fn words(tools: &[Value], many: bool) -> String {
    let list: Vec<String> = tools.iter().map(|tool| tool["function"].to_string()).collect();
    let several = if many { ", or with a list of such objects for several calls" } else { "" };
    format!(
        "You can call these tools:\n{}\n\nTo call one, answer with nothing but a JSON object \
         {{\"name\": the tool's name, \"arguments\": an object with its arguments}}{several}. \
         The result comes in the next message. Where no tool is needed, answer in words.",
        list.join("\n")
    )
}

fn plain(messages: &[Value]) -> Vec<Value> {
    let mut names = BTreeMap::new();
    let mut told: Vec<Value> = Vec::with_capacity(messages.len());
    let mut after_result = false;
    for message in messages {
        let is_result = message["role"] == "tool" || message["role"] == "function";
        let message = match message.as_object() {
            Some(map) if is_result => result(map, &names),
            Some(map) if map.contains_key("tool_calls") => called(map, &mut names),
            _ => message.clone(),
        };
        // Templates want questions and answers in turn.
        match told.last_mut().filter(|_| is_result && after_result) {
            Some(last) => {
                let both = [&last["content"], &message["content"]]
                    .map(|content| content.as_str().unwrap_or_default())
                    .join("\n\n");
                last["content"] = both.into();
            }
            None => told.push(message),
        }
        after_result = is_result;
    }
    told
}

fn result(message: &Map<String, Value>, names: &BTreeMap<String, String>) -> Value {
    let text = |key: &str| message.get(key).and_then(Value::as_str);
    let known = || text("tool_call_id").and_then(|id| names.get(id)).map(String::as_str);
    let name = text("name").or_else(known).unwrap_or("the tool");
    let content = text("content").unwrap_or_default();
    json!({"role": "user", "content": format!("Result of {name}:\n{content}")})
}

fn called(message: &Map<String, Value>, names: &mut BTreeMap<String, String>) -> Value {
    let calls = message.get("tool_calls").and_then(Value::as_array);
    let mut written = Vec::new();
    for call in calls.into_iter().flatten() {
        let function = &call["function"];
        if let (Some(id), Some(name)) = (call["id"].as_str(), function["name"].as_str()) {
            names.insert(id.to_owned(), name.to_owned());
        }
        written.push(json!({"name": function["name"], "arguments": function["arguments"]}));
    }
    let calls = match written.as_slice() {
        [one] => one.to_string(),
        _ => Value::Array(written).to_string(),
    };
    let said = message.get("content").and_then(Value::as_str).unwrap_or_default();
    let content = if said.is_empty() { calls } else { format!("{said}\n{calls}") };
    let mut plain = message.clone();
    plain.remove("tool_calls");
    plain.insert("content".to_owned(), content.into());
    Value::Object(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_results_become_answers_and_questions() {
        let call =
            |id: &str, x: u8| json!({"id": id, "function": {"name": "f", "arguments": {"x": x}}});
        let messages = json!([
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [call("1", 1), call("2", 2)]},
            {"role": "tool", "content": "one", "tool_call_id": "1"},
            {"role": "tool", "content": "two", "tool_call_id": "9"},
            {"role": "assistant", "content": "so", "tool_calls": [call("3", 3)]},
            {"role": "tool", "content": "three", "name": "g"},
        ]);
        let expected = json!([
            {"role": "user", "content": "q"},
            {"role": "assistant", "content":
                r#"[{"name":"f","arguments":{"x":1}},{"name":"f","arguments":{"x":2}}]"#},
            {"role": "user", "content": "Result of f:\none\n\nResult of the tool:\ntwo"},
            {"role": "assistant", "content": "so\n{\"name\":\"f\",\"arguments\":{\"x\":3}}"},
            {"role": "user", "content": "Result of g:\nthree"},
        ]);
        assert_eq!(tools_in_words(&messages, None, true, Telling::System), expected);
    }

    #[test]
    fn tools_are_told_where_the_template_reads_them() {
        let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
        let system = json!({"role": "system", "content": "be brief"});
        let user = json!({"role": "user", "content": "q"});
        let told = |messages: Value, telling| {
            let told = tools_in_words(&messages, Some(&tools), false, telling);
            told.as_array().unwrap().clone()
        };
        let made = told(json!([user]), Telling::System);
        assert_eq!((made.len(), &made[0]["role"]), (2, &json!("system")));
        assert!(
            made[0]["content"].as_str().unwrap().contains("{\"name\":\"f\",\"parameters\":{}}")
        );
        let added = told(json!([system, user]), Telling::System);
        assert_eq!(added.len(), 2);
        assert!(added[0]["content"].as_str().unwrap().starts_with("be brief\n\nYou can call"));
        let asked = told(json!([user]), Telling::User);
        assert_eq!(asked.len(), 1);
        assert!(asked[0]["content"].as_str().unwrap().ends_with("\n\nq"));
    }
}

//! Calls of tools and thoughts: the engine answers with the prompt itself, so a message's content
//! is what the model says.

use kvant_text::{ChatTemplate, TemplateTokens};
use serde_json::{Value, json};

use crate::client::{Answer, post};
use crate::server::Server;

const CHAT: &str = "/v1/chat/completions";

/// Reads tools, and spells calls and thoughts as Qwen does.
const QWEN: &str = "{# <tool_call> </think> #}{% if tools %}{% endif %}\
    {% for m in messages %}\
    {% if m.role == 'tool' %}[{{ m.content }}]{% else %}{{ m.content }}{% endif %}\
    {% for c in m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments.a }})\
    {% endfor %}\
    {% endfor %}{% if enable_thinking is defined and not enable_thinking %}quiet{% endif %}";

const CALL: &str = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";

fn server(template: &str) -> Server {
    let template = ChatTemplate::new(template, TemplateTokens::default()).unwrap();
    Server::with_app(|_, _| {}, |app| app.template = Some(template.into()))
}

fn tool(name: &str) -> Value {
    let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    json!({"type": "function", "function": {"name": name, "parameters": parameters}})
}

/// The model is to say `text`.
fn say(text: &str, more: &Value) -> Value {
    let content = format!("{text}<|im_end|>");
    let mut body = json!({"messages": [{"role": "user", "content": content}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn choice(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["choices"][0].clone()
}

/// The prompt of a chat, as text.
fn prompt(server: &Server, body: &Value) -> String {
    let tokens = post(server, "/tokenize", body).json()["tokens"].clone();
    let text = post(server, "/detokenize", &json!({"tokens": tokens})).json();
    text["prompt"].as_str().unwrap().to_owned()
}

#[test]
fn a_call_is_told_whole() {
    let server = server(QWEN);
    let body = say(&format!("So: {CALL}"), &json!({"tools": [tool("add")]}));
    let choice = choice(&post(&server, CHAT, &body));
    let id = choice["message"]["tool_calls"][0]["id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("call_"), "{id}");
    let call = json!({"id": id, "type": "function",
        "function": {"name": "add", "arguments": "{\"a\": 1}"}});
    let message =
        json!({"role": "assistant", "content": "So:", "refusal": null, "tool_calls": [call]});
    assert_eq!((&choice["message"], &choice["finish_reason"]), (&message, &json!("tool_calls")));
    let silent = say(CALL, &json!({"tools": [tool("add")]}));
    let message = post(&server, CHAT, &silent).json()["choices"][0]["message"].clone();
    assert!(message["content"].is_null() && message.as_object().unwrap().contains_key("content"));
}

#[test]
fn a_call_is_streamed_name_first() {
    let server = server(QWEN);
    let two = format!("{CALL}\n{CALL}");
    let body = say(&two, &json!({"tools": [tool("add")], "stream": true}));
    let chunks = post(&server, CHAT, &body).chunks();
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    assert_eq!(deltas[0], &json!({"role": "assistant", "content": ""}));
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("tool_calls")));
    let mut calls: Vec<(String, String)> = Vec::new();
    for delta in &deltas[1..deltas.len() - 1] {
        let call = &delta["tool_calls"][0];
        assert!(delta.get("content").is_none(), "{delta}");
        if let Some(id) = call["id"].as_str() {
            assert_eq!((&call["type"], &call["index"]), (&json!("function"), &json!(calls.len())));
            assert!(calls.iter().all(|(other, _)| other != id), "{id} is of two calls");
            assert_eq!(call["function"]["name"], "add");
            calls.push((id.to_owned(), String::new()));
        } else {
            assert_eq!(call["index"], json!(calls.len() - 1));
            assert!(call.get("type").is_none() && call["function"].get("name").is_none());
        }
        let more = call["function"]["arguments"].as_str().unwrap();
        calls.last_mut().unwrap().1.push_str(more);
    }
    let arguments: Vec<&str> = calls.iter().map(|(_, arguments)| arguments.as_str()).collect();
    assert_eq!(arguments, ["{\"a\": 1}", "{\"a\": 1}"]);
    assert!(deltas.len() > 6, "arguments come as they are written: {deltas:?}");
}

#[test]
fn what_the_request_says_decides() {
    let server = server(QWEN);
    let two = format!("{CALL}{CALL}");
    let one_and_more = server.tokenizer.encode(CALL, false).unwrap().len() + 3;
    for (more, calls, reason) in [
        (json!({"tools": [tool("add")]}), 2, "tool_calls"),
        (json!({"tools": [tool("add")], "parallel_tool_calls": false}), 1, "tool_calls"),
        (json!({"tools": [tool("add")], "tool_choice": "none"}), 0, "stop"),
        (json!({}), 0, "stop"),
        (json!({"tools": [tool("add")], "max_tokens": one_and_more}), 1, "length"),
        (json!({"tools": [tool("add")], "stop": ["</tool_call>"]}), 1, "tool_calls"),
    ] {
        let choice = choice(&post(&server, CHAT, &say(&two, &more)));
        let found = choice["message"]["tool_calls"].as_array().map_or(0, Vec::len);
        assert_eq!((found, choice["finish_reason"].as_str()), (calls, Some(reason)), "{more}");
    }
}

/// A tool whose arguments are one of a few texts.
fn city(name: &str, cities: &[&str]) -> Value {
    let properties = json!({"city": {"enum": cities}});
    let parameters = json!({"type": "object", "properties": properties, "required": ["city"],
        "additionalProperties": false});
    json!({"type": "function", "function": {"name": name, "parameters": parameters}})
}

#[test]
fn a_call_that_is_asked_for_comes() {
    let tools = json!([city("weather", &["Rome", "Oslo"]), city("time", &["Zürich"])]);
    let named = json!({"type": "function", "function": {"name": "time"}});
    // Three spellings: a marker, thoughts before it, and JSON alone.
    let thinks = "{# <tool_call> </think> #}{% if tools %}{% endif %}so</think>\
        {{ messages[0].content }}<think>";
    let plain = "{% if tools %}{% endif %}{{ messages[0].content }}";
    for template in [QWEN, thinks, plain] {
        let server = server(template);
        let ask = |choice: &Value, stream: bool| {
            let content = "a weather of Oslo";
            post(
                &server,
                CHAT,
                &json!({"messages": [{"role": "user", "content": content}], "tools": tools,
                    "tool_choice": choice, "parallel_tool_calls": false, "stream": stream}),
            )
        };
        for choice in [json!("required"), named.clone()] {
            let whole = self::choice(&ask(&choice, false));
            assert_eq!(whole["finish_reason"], "tool_calls", "{template}: {whole}");
            let calls = whole["message"]["tool_calls"].as_array().unwrap();
            let [call] = calls.as_slice() else { panic!("{template}: {whole}") };
            let name = call["function"]["name"].as_str().unwrap();
            let text = call["function"]["arguments"].as_str().unwrap();
            let arguments: Value = serde_json::from_str(text).unwrap();
            let city = arguments["city"].as_str().unwrap();
            match name {
                "weather" => assert!(choice == "required" && ["Rome", "Oslo"].contains(&city)),
                _ => assert_eq!((name, city), ("time", "Zürich")),
            }
            let mut streamed = String::new();
            for chunk in ask(&choice, true).chunks() {
                let call = &chunk["choices"][0]["delta"]["tool_calls"][0]["function"];
                streamed.push_str(call["arguments"].as_str().unwrap_or_default());
            }
            assert_eq!(streamed, text, "{template}");
        }
    }
}

/// `tool_choice` that allows some of the tools, as chat and as /v1/responses spell it.
fn allowing(mode: &str, names: &[&str]) -> (Value, Value) {
    let chat: Vec<Value> =
        names.iter().map(|name| json!({"type": "function", "function": {"name": name}})).collect();
    let flat: Vec<Value> =
        names.iter().map(|name| json!({"type": "function", "name": name})).collect();
    (
        json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": chat}}),
        json!({"type": "allowed_tools", "mode": mode, "tools": flat}),
    )
}

#[test]
fn only_allowed_tools_are_called() {
    let shows = "{# <tool_call> #}{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}\
        {{ messages[0].content }}";
    let tools = json!([tool("add"), tool("sub"), tool("mul")]);
    let server = server(shows);
    let told = |names: &[&str]| {
        let choice = allowing("auto", names).0;
        let body = json!({"messages": [{"role": "user", "content": "q"}], "tools": tools,
            "tool_choice": choice});
        prompt(&server, &body)
    };
    assert_eq!(told(&["mul", "add"]), "[add][mul]q");
    assert_eq!(told(&[]), "q");
    let server = self::server(QWEN);
    let asked = |names: &[&str]| {
        let more = json!({"tools": tools, "tool_choice": allowing("auto", names).0});
        choice(&post(&server, CHAT, &say(CALL, &more)))
    };
    assert_eq!(asked(&["add"])["message"]["tool_calls"][0]["function"]["name"], "add");
    let other = asked(&["sub"]);
    assert_eq!(
        (&other["message"]["content"], &other["finish_reason"]),
        (&json!(CALL), &json!("stop"))
    );
}

#[test]
fn a_call_of_an_allowed_tool_can_be_required() {
    let server = server(QWEN);
    let flat = |name: &str| {
        let mut tool = city(name, &["Oslo"])["function"].clone();
        tool["type"] = json!("function");
        tool
    };
    let (chat, flat_choice) = allowing("required", &["time"]);
    let tools = json!([city("weather", &["Oslo"]), city("time", &["Oslo"])]);
    let body = json!({"messages": [{"role": "user", "content": "weather"}], "tools": tools,
        "tool_choice": chat, "parallel_tool_calls": false});
    let whole = choice(&post(&server, CHAT, &body));
    assert_eq!(whole["message"]["tool_calls"][0]["function"]["name"], "time", "{whole}");
    let mut body = json!({"input": "weather", "tools": [flat("weather"), flat("time")],
        "tool_choice": flat_choice, "parallel_tool_calls": false});
    let whole = post(&server, "/v1/responses", &body).json();
    assert_eq!(whole["output"][0]["name"], "time", "{whole}");
    assert_eq!(whole["tool_choice"], flat_choice);
    body["tool_choice"] = allowing("required", &["time", "date"]).1;
    let error = post(&server, "/v1/responses", &body).json()["error"].clone();
    assert_eq!(error["param"], "tool_choice.tools[1].function.name", "{error}");
    assert!(!error["message"].as_str().unwrap().contains("allowed_tools"), "{error}");
}

#[test]
fn a_model_may_call_or_answer_in_the_format() {
    let server = server(QWEN);
    let schema = json!({"type": "object", "properties": {"b": {"enum": ["x", "y"]}},
        "required": ["b"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let strict = json!({"type": "object", "properties": {"a": {"type": "integer"}},
        "required": ["a"], "additionalProperties": false});
    let add = json!({"type": "function", "function": {"name": "add", "parameters": strict}});
    let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let ask = |text: &str, more: Value| {
        let mut body = say(text, &json!({"tools": [add], "response_format": format}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(&server, CHAT, &body)
    };
    let called = choice(&ask(call, json!({})));
    assert_eq!(called["finish_reason"], "tool_calls", "{called}");
    assert_eq!(called["message"]["tool_calls"][0]["function"]["arguments"], "{\"a\": 1}");
    let answered = choice(&ask("{\"b\": \"y\"}", json!({})));
    assert_eq!(answered["message"]["content"], "{\"b\": \"y\"}", "{answered}");
    assert_eq!(
        (&answered["finish_reason"], &answered["message"]["tool_calls"]),
        (&json!("stop"), &Value::Null)
    );
    // Neither: whatever the model would say, one of the two comes.
    let neither = choice(&ask("no <tool_call> here, b y x a 1", json!({})));
    let message = &neither["message"];
    let calls = message["tool_calls"].is_array();
    let json = message["content"].as_str().and_then(|text| serde_json::from_str(text).ok());
    assert!(calls != json.is_some_and(|json: Value| json["b"].is_string()), "{neither}");
    // A format that is no JSON, and a model that is to call nothing.
    let regex = json!({"response_format": null, "guided_regex": "[a-z ]{3,9}"});
    let choice_of = |answer: &Answer| choice(answer)["message"].clone();
    assert!(choice_of(&ask(call, regex)).get("tool_calls").is_none());
    let none = choice_of(&ask(call, json!({"tool_choice": "none"})));
    assert!(none.get("tool_calls").is_none() && none["content"].as_str().unwrap().contains('b'));
    let both = ask(call, json!({"tool_choice": "required"}));
    assert_eq!((both.status, &both.json()["error"]["param"]), (400, &json!("response_format")));
    // Schemas that cannot be used are blamed on their field.
    let mut wrong = add.clone();
    wrong["function"]["parameters"]["properties"]["a"] = json!({"type": "strange"});
    let error = ask(call, json!({"tools": [wrong]}));
    assert_eq!((error.status, &error.json()["error"]["param"]), (400, &json!("tools")));
}

#[test]
fn calls_and_results_are_rendered() {
    let server = server(QWEN);
    let call = json!({"id": "1", "type": "function",
        "function": {"name": "add", "arguments": "{\"a\": 7}"}});
    let messages = json!([
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "r"}]},
    ]);
    let body = json!({"messages": messages, "tools": [tool("add")]});
    assert_eq!(prompt(&server, &body), "q(add 7)[r]");
    let plain = self::server("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}");
    let words = prompt(&plain, &body);
    let expected = "user:q;assistant:{\"name\":\"add\",\"arguments\":{\"a\":7}};\
        user:Result of add:\nr;";
    assert!(words.starts_with("system:You can call these tools:\n{\"name\":\"add\","), "{words}");
    assert!(words.ends_with(expected), "{words}");
    // A template that takes no system message is told in the first question.
    let strict = self::server(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}\
         {{ m.content }}{% endfor %}",
    );
    let words = prompt(&strict, &json!({"messages": [messages[0]], "tools": [tool("add")]}));
    assert!(words.starts_with("You can call") && words.ends_with("\n\nq"), "{words}");
}

#[test]
fn thoughts_are_told_apart() {
    let server = server(QWEN);
    let text = "<think>\nso it is\n</think>\n\nyes";
    let whole = post(&server, CHAT, &say(text, &json!({})));
    let message = json!({"role": "assistant", "content": "yes", "refusal": null,
        "reasoning_content": "so it is", "reasoning": "so it is"});
    assert_eq!(choice(&whole)["message"], message);
    let details = &whole.json()["usage"]["completion_tokens_details"];
    assert!(details["reasoning_tokens"].as_u64().unwrap() >= 3, "{details}");
    let hidden = post(&server, CHAT, &say(text, &json!({"include_reasoning": false})));
    let message = json!({"role": "assistant", "content": "yes", "refusal": null});
    assert_eq!(choice(&hidden)["message"], message);
    let chunks = post(&server, CHAT, &say(text, &json!({"stream": true}))).chunks();
    let joined = |key: &str| -> String {
        let deltas = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"][key]);
        deltas.filter_map(Value::as_str).collect()
    };
    for (key, expected) in
        [("reasoning_content", "so it is"), ("reasoning", "so it is"), ("content", "yes")]
    {
        assert_eq!(joined(key), expected);
    }
}

#[test]
fn a_prompt_may_open_the_thoughts_and_a_budget_closes_them() {
    let opening = "{# </think> #}{{ messages[0].content }}<think>\n";
    let server = server(opening);
    let body = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "one two three"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let thought = choice(&post(&server, CHAT, &body(json!({"max_tokens": 3}))));
    assert_eq!(thought["message"]["content"], "");
    assert!(thought["message"]["reasoning"].as_str().unwrap().starts_with("one"), "{thought}");
    for budget in [0, 2] {
        let asked = json!({"thinking_token_budget": budget, "max_tokens": 30});
        let answer = post(&server, CHAT, &body(asked));
        let message = choice(&answer)["message"].clone();
        assert!(message["content"].as_str().unwrap().contains("two"), "{message}");
        let thoughts = message["reasoning"].as_str().map_or(0, str::len);
        assert!((budget == 0) == (thoughts == 0) && thoughts < 12, "{message}");
    }
    let quiet = json!({"messages": [{"role": "user", "content": "q"}], "reasoning_effort": "none"});
    assert_eq!(prompt(&self::server(QWEN), &quiet), "qquiet");
}

#[test]
fn what_is_not_served_is_named() {
    let plain = Server::start();
    for (more, param) in [
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"documents": [{"text": "x"}]}), "documents"),
        (json!({"documents": [1]}), "documents[0]"),
        (json!({"thinking_token_budget": 5}), "thinking_token_budget"),
        (json!({"thinking_token_budget": -1}), "thinking_token_budget"),
        (json!({"reasoning_effort": "much"}), "reasoning_effort"),
        (json!({"include_reasoning": 1}), "include_reasoning"),
        (json!({"functions": [{}]}), "functions"),
        (json!({"chat_template_kwargs": {"tools": []}}), "chat_template_kwargs"),
    ] {
        let answer = post(&plain, CHAT, &say("x", &more));
        let error = &answer.json()["error"];
        assert_eq!((answer.status, error["param"].as_str()), (400, Some(param)), "{error}");
    }
    let reads = server("{{ documents[0].text }}{{ messages[0].content }}");
    let body =
        json!({"messages": [{"role": "user", "content": "q"}], "documents": [{"text": "d"}]});
    assert_eq!(prompt(&reads, &body), "dq");
}

#[test]
fn bombs_in_a_template_end_in_a_refusal() {
    let bombs = [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{{ messages[0].content * 1000 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    ];
    for bomb in bombs {
        let server = server(bomb);
        let answer = post(&server, CHAT, &say("boom", &json!({})));
        assert_eq!(answer.status, 400, "{bomb}: {answer:?}");
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("chat template"));
        // It serves on.
        assert_eq!(post(&server, "/tokenize", &json!({"prompt": "x"})).status, 200);
    }
}

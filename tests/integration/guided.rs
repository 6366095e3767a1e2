//! Answers that must be like something, over HTTP: each is what was asked for, streamed or not,
//! among others, and wrong asks are refused by field.

use std::thread;

use serde_json::{Value, json};

use crate::client::{metric, post};
use crate::server::Running;

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    })
}

/// By hand, not by what made it.
fn is_valid(text: &str) -> bool {
    let Ok(Value::Object(map)) = serde_json::from_str::<Value>(text) else { return false };
    let name = map["name"].as_str().is_some_and(|name| name.chars().count() <= 6);
    let age = map["age"].as_u64().is_some_and(|age| age <= 120);
    let tags = map["tags"]
        .as_array()
        .is_some_and(|tags| tags.len() <= 3 && tags.iter().all(|tag| tag == "x" || tag == "y"));
    map.len() == 3 && name && age && tags
}

fn body(number: usize) -> Value {
    json!({
        "prompt": format!("{number} The whale"),
        "max_tokens": 600,
        "seed": number,
        "temperature": 0.5 * (number % 4) as f64,
        "stop": if number.is_multiple_of(5) { json!(["never in it"]) } else { Value::Null },
        "guided_json": schema(),
    })
}

#[test]
fn every_answer_is_json_of_its_schema() {
    let running = Running::start(&[]);
    let address = running.address.as_str();
    let answers: Vec<(Value, Value)> = thread::scope(|scope| {
        let ask = |number| {
            let answer = post(address, "/v1/completions", &body(number));
            assert_eq!(answer.status, 200, "{answer:?}");
            let mut streamed = body(number);
            streamed["stream"] = true.into();
            let events = post(address, "/v1/completions", &streamed).body;
            let chunks = events.split("\n\n").filter_map(|event| event.strip_prefix("data: {"));
            let chunks = chunks.map(|rest| serde_json::from_str::<Value>(&format!("{{{rest}")));
            let text = chunks.map(|chunk| {
                chunk.unwrap()["choices"][0]["text"].as_str().unwrap_or_default().to_owned()
            });
            (answer.json()["choices"][0].clone(), Value::from(text.collect::<String>()))
        };
        let threads: Vec<_> = (0..12).map(|number| scope.spawn(move || ask(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (choice, streamed) in answers {
        assert_eq!(choice["text"], streamed);
        assert_eq!(choice["finish_reason"], "stop", "{choice}");
        assert!(is_valid(choice["text"].as_str().unwrap()), "{choice}");
    }
    assert_eq!(metric(address, "kvant:pages_used"), 0.0);
}

#[test]
fn chat_choices_differ_and_hold_with_scores() {
    let running = Running::start(&[]);
    let format = json!({"name": "person", "strict": true, "schema": schema()});
    let body = json!({
        "messages": [{"role": "user", "content": "Who?"}],
        "n": 4, "seed": 5, "max_tokens": 600, "logprobs": true, "top_logprobs": 2, "min_tokens": 3,
        "response_format": {"type": "json_schema", "json_schema": format},
    });
    let answer = post(&running.address, "/v1/chat/completions", &body).json();
    let choices = answer["choices"].as_array().unwrap();
    let texts: Vec<&str> =
        choices.iter().map(|choice| choice["message"]["content"].as_str().unwrap()).collect();
    assert!(texts.iter().all(|text| is_valid(text)), "{texts:?}");
    assert!(texts[1..].iter().any(|text| *text != texts[0]), "four answers are one: {texts:?}");
    for choice in choices {
        let told = choice["logprobs"]["content"].as_array().unwrap();
        let joined: String = told.iter().map(|one| one["token"].as_str().unwrap()).collect();
        assert_eq!(joined, choice["message"]["content"].as_str().unwrap());
    }
}

#[test]
fn other_kinds_hold_and_wrong_ones_are_refused_by_field() {
    let running = Running::start(&[]);
    let ask = |more: Value| {
        let mut body = json!({"prompt": "The", "max_tokens": 64, "seed": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(&running.address, "/v1/completions", &body)
    };
    let text = |more: Value| {
        let answer = ask(more);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let choice = text(json!({"guided_choice": ["north", "south"]}));
    assert!(choice == "north" || choice == "south", "{choice}");
    let number = text(json!({"structured_outputs": {"regex": r"\d{3}-\d{4}"}}));
    assert!(number.len() == 8 && number.as_bytes()[3] == b'-', "{number}");
    let nested =
        text(json!({"guided_grammar": "root ::= \"(\" root \")\" | \"x\"", "max_tokens": 9}));
    assert!(nested.trim_start_matches('(').starts_with('x') || nested == "(".repeat(nested.len()));
    for (more, field) in [
        (json!({"guided_regex": "("}), "guided_regex"),
        (json!({"guided_json": {"type": "array", "uniqueItems": true}}), "guided_json"),
        (json!({"guided_json": {"$ref": "https://example.com/x.json"}}), "guided_json"),
        (json!({"guided_grammar": "root ::= missing"}), "guided_grammar"),
        (json!({"guided_regex": "(".repeat(65)}), "guided_regex"),
        (json!({"guided_regex": "a".repeat((512 << 10) + 1)}), "guided_regex"),
        (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice"),
    ] {
        let answer = ask(more);
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &field.into()));
    }
}

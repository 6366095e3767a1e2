//! Log-probabilities of both dialects, whole and streamed.

use serde_json::{Value, json};

use crate::client::post;
use crate::server::Server;

/// `é` in two bytes, each a token of its own, between letters.
fn letters(server: &Server) -> Vec<u32> {
    let byte = |byte: u8| {
        let all = 0..2048;
        all.into_iter().find(|id| server.tokenizer.token_bytes(*id) == [byte]).unwrap()
    };
    [b'a', 0xc3, 0xa9, b'b'].map(byte).to_vec()
}

#[test]
fn a_chat_has_an_entry_for_each_token() {
    let server = Server::start();
    let body = json!({"messages": [{"role": "user", "content": "one two three"}],
        "max_tokens": 2, "logprobs": true, "top_logprobs": 3});
    let json = post(&server, "/v1/chat/completions", &body).json();
    let logprobs = &json["choices"][0]["logprobs"];
    assert_eq!(logprobs["refusal"], Value::Null);
    let content = logprobs["content"].as_array().unwrap();
    assert_eq!(content.len(), 2);
    let text: String = content.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
    assert_eq!(text, json["choices"][0]["message"]["content"]);
    for entry in content {
        assert_eq!(entry["logprob"], -0.5);
        let bytes = entry["bytes"].as_array().unwrap();
        assert_eq!(bytes.len(), entry["token"].as_str().unwrap().len());
        let top = entry["top_logprobs"].as_array().unwrap();
        let numbers: Vec<_> = top.iter().map(|one| one["logprob"].as_f64().unwrap()).collect();
        assert_eq!(numbers, [-0.5, -1.5, -9999.0], "no infinity in JSON");
    }
    let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1,
        "logprobs": true});
    let json = post(&server, "/v1/chat/completions", &body).json();
    assert_eq!(json["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[test]
fn a_completion_has_four_lists_and_spells_bytes() {
    let server = Server::start();
    let prompt = letters(&server);
    let body = json!({"prompt": prompt, "max_tokens": 4, "logprobs": 2});
    let choice = post(&server, "/v1/completions", &body).json()["choices"][0].clone();
    assert_eq!(choice["text"], "aéb");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "bytes:\\xc3", "bytes:\\xa9", "b"]));
    assert_eq!(logprobs["token_logprobs"], json!([-0.5, -0.5, -0.5, -0.5]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1, 2]));
    assert_eq!(logprobs["top_logprobs"][0]["a"], -0.5);
    let body = json!({"prompt": prompt, "max_tokens": 1, "logprobs": 0});
    let choice = post(&server, "/v1/completions", &body).json()["choices"][0].clone();
    assert_eq!(choice["logprobs"]["top_logprobs"], json!([null]));
}

#[test]
fn an_echoed_prompt_is_scored_but_for_its_first_token() {
    let server = Server::start();
    let prompt = letters(&server);
    for (max_tokens, count) in [(0, 4), (1, 5)] {
        let body = json!({"prompt": prompt, "max_tokens": max_tokens, "logprobs": 1, "echo": true});
        let choice = post(&server, "/v1/completions", &body).json()["choices"][0].clone();
        let logprobs = &choice["logprobs"];
        assert_eq!(choice["text"], if max_tokens == 0 { "aéb" } else { "aéba" });
        let scores = logprobs["token_logprobs"].as_array().unwrap();
        assert_eq!(scores.len(), count, "{logprobs}");
        assert_eq!((&scores[0], &scores[1]), (&Value::Null, &json!(-0.5)));
        assert_eq!(logprobs["top_logprobs"][0], Value::Null);
        assert_eq!(logprobs["top_logprobs"][3], json!({"b": -0.5}));
        let offsets = logprobs["text_offset"].as_array().unwrap();
        assert_eq!(offsets[..4], [json!(0), json!(1), json!(1), json!(2)]);
        if max_tokens == 1 {
            assert_eq!(offsets[4], 3);
        }
    }
    let one = json!({"prompt": [40], "max_tokens": 0, "logprobs": 1, "echo": true});
    let choice = post(&server, "/v1/completions", &one).json()["choices"][0].clone();
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([null]));
}

#[test]
fn a_stream_loses_no_score_of_text_that_is_held_back() {
    let server = Server::start();
    let prompt = letters(&server);
    let body = json!({"prompt": prompt, "max_tokens": 7, "logprobs": 1, "stream": true,
        "return_token_ids": true});
    let mut seen = (String::new(), Vec::new(), Vec::new());
    for chunk in post(&server, "/v1/completions", &body).chunks() {
        let choice = &chunk["choices"][0];
        seen.0.push_str(choice["text"].as_str().unwrap());
        seen.1.extend(choice["logprobs"]["text_offset"].as_array().cloned().unwrap_or_default());
        seen.2.extend(choice["token_ids"].as_array().cloned().unwrap_or_default());
    }
    // The last token is half a character.
    assert_eq!(seen.0, "aébaé");
    assert_eq!(seen.1, [0, 1, 1, 2, 3, 4, 4]);
    assert_eq!(seen.2.len(), 7);
}

//! Streams whole, split, broken and hostile; what is asked for; bounds of flags.

use std::io::Read;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};

use super::chunk::{self, Chunk, message};
use super::plan::Order;
use super::request::listen;
use super::sse::{EVENT_BYTES, EventStream, Oversized};
use super::*;
use crate::cli::{BenchPart, Cli, Command};

fn events(parts: &[&[u8]]) -> Result<Vec<String>, Oversized> {
    let (mut stream, mut found) = (EventStream::default(), Vec::new());
    for part in parts {
        stream.push(part, &mut found)?;
    }
    Ok(found.into_iter().map(|event| String::from_utf8_lossy(&event).into_owned()).collect())
}

#[test]
fn events_are_the_same_however_they_are_split_and_lines_end() {
    let text = ": waiting\n\ndata: {\"a\":1}\n\nevent: x\nid: 7\ndata:two\ndata:  lines\n\n\n\
                data\n\nretry: 5\n\ndata: [DONE]\n\n";
    let expected = ["{\"a\":1}", "two\n lines", "", "[DONE]"];
    for end in ["\n", "\r\n", "\r"] {
        let text = text.replace('\n', end);
        assert_eq!(events(&[text.as_bytes()]).unwrap(), expected, "{end:?}");
        for size in [1, 2, 3, 7] {
            let parts: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            assert_eq!(events(&parts).unwrap(), expected, "{end:?} by {size}");
        }
    }
    assert_eq!(events(&[b"data: not yet\n"]).unwrap(), [""; 0]);
}

#[test]
fn an_event_is_bounded_whole_or_in_parts() {
    let line = |bytes: usize| [b"data: ".as_slice(), &vec![b'x'; bytes - 6]].concat();
    let end = b"\n\n".as_slice();
    assert_eq!(events(&[&line(EVENT_BYTES), end]).unwrap().len(), 1);
    assert_eq!(events(&[&line(EVENT_BYTES + 1), end]), Err(Oversized));
    let part = line(1 << 16);
    let lines: Vec<&[u8]> = std::iter::repeat_n([part.as_slice(), b"\n"], 17).flatten().collect();
    assert_eq!(events(&lines), Err(Oversized));
    let endless: Vec<&[u8]> = std::iter::repeat_n(part.as_slice(), 17).collect();
    assert_eq!(events(&endless), Err(Oversized));
}

#[test]
fn chunks_of_both_endpoints_are_understood() {
    let token = Chunk { token: true, ..Chunk::default() };
    let none = Chunk::default();
    let finished = Chunk { finished: true, ..none };
    for (event, expected) in [
        (json!({"choices": [{"text": " a", "finish_reason": null}]}), token),
        (json!({"choices": [{"text": "", "finish_reason": null}]}), token),
        (json!({"choices": [{"text": "", "finish_reason": "length"}]}), finished),
        (
            json!({"choices": [{"text": "a", "finish_reason": "length"}]}),
            Chunk { token: true, ..finished },
        ),
        (json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]}), none),
        (json!({"choices": [{"delta": {"content": "a"}}]}), token),
        (json!({"choices": [{"delta": {"reasoning_content": "a"}}]}), token),
        (json!({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": null}), finished),
        (
            json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}),
            Chunk { usage: Some((7, 3)), ..none },
        ),
        (json!({"choices": null, "usage": {"prompt_tokens": 7}}), none),
    ] {
        assert_eq!(chunk::read(event.to_string().as_bytes()), Ok(expected), "{event}");
    }
    assert_eq!(chunk::read(b"[DONE]"), Ok(Chunk { last: true, ..none }));
    for wrong in [&b"{"[..], b"", b"[]x", b"\xff\xfe", b"{\"choices\": 5}", b"1e999"] {
        let what = chunk::read(wrong).unwrap_err();
        assert!(what.contains("no chunk") && !what.contains('\n'), "{what}");
    }
    let nested = "[".repeat(100_000);
    assert!(chunk::read(nested.as_bytes()).is_err());
    let error = json!({"error": {"message": "out of\nmemory", "code": 500}});
    assert!(chunk::read(error.to_string().as_bytes()).unwrap_err().ends_with("out of memory"));
}

#[test]
fn errors_of_any_form_are_one_line() {
    for (error, expected) in [
        (json!({"error": {"message": "a\n b"}}), "a b"),
        (json!({"error": "a"}), "a"),
        (json!({"message": "a"}), "a"),
        (json!("<html>\r\n  no\u{1b}</html>"), "<html> no </html>"),
        (json!({"detail": "a"}), "{\"detail\":\"a\"}"),
    ] {
        assert_eq!(message(&error), expected);
    }
    assert_eq!(message(&json!("x".repeat(500))).len(), 300);
}

fn order(output_tokens: u32) -> Order {
    Order { path: "/v1/completions", body: String::new(), input_tokens: 5, output_tokens }
}

fn heard(text: &str, output_tokens: u32) -> Outcome {
    listen(text.as_bytes(), &order(output_tokens), Instant::now())
}

const TOKEN: &str = "data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":null}]}\n\n";
const END: &str = "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n";
const USAGE: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":6,\"completion_tokens\":4}}\n\n";

#[test]
fn tokens_are_counted_by_usage_or_else_by_arrivals() {
    let answer = heard(&format!("{TOKEN}{TOKEN}{END}{USAGE}data: [DONE]\n\n"), 4).unwrap();
    assert_eq!((answer.times.len(), answer.input_tokens, answer.output_tokens), (2, 6, 4));
    assert!(answer.told);
    // The end may be known without [DONE].
    let answer = heard(&format!("{TOKEN}{TOKEN}{END}"), 4).unwrap();
    assert_eq!((answer.times.len(), answer.input_tokens, answer.output_tokens), (2, 5, 2));
    assert!(!answer.told && answer.asked_tokens == 4);
    let silent = heard(&format!("{END}{USAGE}data: [DONE]\n\n"), 4).unwrap();
    assert_eq!((silent.times.len(), silent.output_tokens), (1, 4));
}

#[test]
fn broken_streams_are_failures() {
    let long = format!("data: {}\n\n", "x".repeat(EVENT_BYTES));
    for (text, what) in [
        (String::new(), "ended after 0 tokens"),
        (format!("{TOKEN}{TOKEN}"), "ended after 2 tokens"),
        (format!("{TOKEN}{}", &END[..20]), "ended after 1 tokens"),
        (format!("{TOKEN}data: {{\"choices\"\n\n"), "no chunk"),
        (format!("{TOKEN}data: {{\"error\":{{\"message\":\"lost\"}}}}\n\n"), "gave up: lost"),
        (long, "longer than 1 MiB"),
        (TOKEN.repeat(500), "more than 72 tokens"),
        ("{\"choices\":[{\"text\":\"a\"}]}".to_owned(), "ended after 0 tokens"),
    ] {
        let failure = heard(&text, 4).unwrap_err();
        assert_eq!(failure.kind, "stream");
        assert!(failure.what.contains(what), "{what:?} is not in {:?}", failure.what);
    }
    let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    let body = TOKEN.as_bytes().chain(Failing(Some(reset)));
    assert_eq!(listen(body, &order(4), Instant::now()).unwrap_err().kind, "stream");
}

/// Fails once, then is at its end.
struct Failing(Option<std::io::Error>);

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

#[test]
fn any_bytes_are_survived() {
    let whole = format!("{TOKEN}{TOKEN}{END}{USAGE}data: [DONE]\r\n\r\n").into_bytes();
    let mut state = 7;
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..3 {
            let at = random::next(&mut state) as usize % bytes.len();
            bytes[at] = random::next(&mut state) as u8;
        }
        bytes.truncate(random::next(&mut state) as usize % (2 * bytes.len()));
        let _ = listen(bytes.as_slice(), &order(4), Instant::now());
    }
}

fn plan(endpoint: Endpoint, source: Source) -> Plan {
    let input_tokens = "20..40".parse().unwrap();
    let output_tokens = "3..5".parse().unwrap();
    Plan { model: "m".into(), endpoint, source, input_tokens, output_tokens, seed: 1 }
}

#[test]
fn requests_are_the_same_for_the_same_seed_and_no_two_begin_alike() {
    let ids = plan(Endpoint::Completions, Source::Ids { vocab: 512 });
    assert_eq!(ids.order(3), ids.order(3));
    assert_ne!(ids.order(3), Plan { seed: 2, ..ids.clone() }.order(3));
    let (mut lengths, mut beginnings) = (Vec::new(), Vec::new());
    for number in 0..1000 {
        let order = ids.order(number);
        let body: Value = serde_json::from_str(&order.body).unwrap();
        let prompt: Vec<u64> =
            body["prompt"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        assert!(prompt.iter().all(|id| (256..512).contains(id)), "{prompt:?}");
        assert_eq!(prompt.len(), order.input_tokens as usize);
        assert_eq!(body["max_tokens"], order.output_tokens);
        lengths.extend([order.input_tokens, order.output_tokens]);
        beginnings.push(prompt[..2].to_vec());
    }
    for length in (20..=40).chain(3..=5) {
        assert!(lengths.contains(&length), "{length}");
    }
    assert!(lengths.iter().all(|length| (20..=40).chain(3..=5).any(|other| other == *length)));
    beginnings.sort();
    beginnings.dedup();
    assert_eq!(beginnings.len(), 1000);
}

#[test]
fn text_prompts_have_so_many_words() {
    let text = ["call", "me", "Ishmael."].map(str::to_owned).to_vec();
    for source in [Source::Words, Source::Text(text)] {
        let plan = plan(Endpoint::Chat, source);
        let order = plan.order(41);
        let body: Value = serde_json::from_str(&order.body).unwrap();
        assert_eq!(body["messages"][0]["role"], "user");
        let words = body["messages"][0]["content"].as_str().unwrap();
        assert!(words.starts_with("41: "), "{words}");
        assert_eq!(words.split(' ').count(), order.input_tokens as usize);
        assert_eq!((plan.probe().output_tokens, &body["ignore_eos"]), (1, &json!(true)));
    }
}

#[test]
fn flags_are_bounded_at_their_limits() {
    let good = |flag: &str, value: &str| {
        let args = ["kvant", "bench", "serve", flag, value];
        Cli::try_parse_from(args).is_ok()
    };
    for (flag, least, most, beyond) in [
        ("--concurrency", "1", "1024", ["0", "1025"]),
        ("--requests", "1", "100000", ["0", "100001"]),
        ("--rate", "0.001", "10000", ["0.0009", "10000.1"]),
        ("--input-tokens", "1", "1000000", ["0", "1000001"]),
        ("--output-tokens", "1..1", "1..1000000", ["0..1", "1..1000001"]),
        ("--vocab", "512", "10000000", ["511", "10000001"]),
        ("--timeout", "1", "86400", ["0", "86401"]),
    ] {
        assert!(good(flag, least) && good(flag, most), "{flag}");
        for wrong in beyond.into_iter().chain(["", "-1", "nan", "5..4", "x"]) {
            assert!(!good(flag, wrong), "{flag} {wrong}");
        }
    }
    let both = "kvant bench serve --rate 1 --concurrency 1";
    assert!(Cli::try_parse_from(both.split(' ')).is_err());
}

#[test]
fn a_chat_of_token_ids_is_refused() {
    let args = "kvant bench serve --endpoint chat --prompts ids".split(' ');
    let Command::Bench(args) = Cli::try_parse_from(args).unwrap().command else {
        panic!("bench was asked for");
    };
    let Some(BenchPart::Serve(args)) = args.part else { panic!("serve was asked for") };
    assert!(source(&args).unwrap_err().to_string().contains("--prompts words"));
    assert_eq!(Duration::from_secs(args.timeout.into()), Duration::from_mins(10));
}

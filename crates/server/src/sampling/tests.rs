//! Every bound of sampling at the limit and one past.

use super::*;

const VOCAB: usize = 100;

fn parse(body: &str, asks: Asks) -> Result<Sampling, ApiError> {
    read(&mut Fields::parse(body.as_bytes()).unwrap(), asks, VOCAB)
}

fn chat(body: &str) -> Result<Sampling, ApiError> {
    parse(body, Asks::Chat)
}

#[test]
fn defaults_are_those_of_openai() {
    let sampling = chat("{}").unwrap();
    assert_eq!(sampling.params, SamplingParams::default());
    assert_eq!((sampling.n, sampling.seed), (1, None));
    let Stops { strings, tokens, ignore_eos, min_tokens, max_tokens } = sampling.stops;
    assert!(strings.is_empty() && tokens.is_empty() && !ignore_eos);
    assert_eq!((min_tokens, max_tokens), (0, None));
}

#[test]
fn each_bound_holds_at_the_limit_and_not_one_past() {
    for (name, inside, outside) in [
        ("temperature", vec!["0", "2", "1e-9"], vec!["-0.1", "2.1", "\"NaN\"", "true"]),
        ("top_p", vec!["1", "1e-300"], vec!["0", "1.1", "-1", "[]"]),
        ("top_k", vec!["-1", "0", "1", "4294967295"], vec!["-2", "1.5", "4294967296"]),
        ("min_p", vec!["0", "1"], vec!["-0.1", "1.1"]),
        ("frequency_penalty", vec!["-2", "2"], vec!["-2.1", "2.1"]),
        ("presence_penalty", vec!["-2", "2"], vec!["-2.1", "2.1"]),
        ("repetition_penalty", vec!["0.01", "10"], vec!["0", "-1", "10.1"]),
        ("n", vec!["1", "128"], vec!["0", "129", "-1", "1.5", "\"2\""]),
        ("max_tokens", vec!["1", "4294967295"], vec!["0", "-1", "4294967296", "1.5"]),
        ("max_completion_tokens", vec!["1"], vec!["0", "-1"]),
        ("min_tokens", vec!["0", "7"], vec!["-1", "\"1\""]),
        ("seed", vec!["0", "-9223372036854775808", "18446744073709551615"], vec!["1.5", "\"1\""]),
        ("stop_token_ids", vec!["[]", "[0, 99]"], vec!["[100]", "[-1]", "7", "[\"a\"]"]),
        ("stop", vec!["\"x\"", "[]", "[\"a\", \"b\"]"], vec!["\"\"", "[\"\"]", "3", "[1]"]),
        ("ignore_eos", vec!["true", "false"], vec!["1", "\"true\""]),
        ("best_of", vec!["1", "128"], vec!["0", "129"]),
        ("prompt_logprobs", vec!["0", "20"], vec!["-1", "21"]),
    ] {
        for value in inside {
            let body = format!("{{\"{name}\": {value}}}");
            assert!(chat(&body).is_ok(), "{body}: {:?}", chat(&body));
        }
        for value in outside {
            let body = format!("{{\"{name}\": {value}}}");
            let error = chat(&body).expect_err(&body);
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(name)));
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

#[test]
fn lists_are_bounded() {
    let strings = |count: usize| format!("{{\"stop\": {:?}}}", vec!["s"; count]);
    assert_eq!(chat(&strings(16)).unwrap().stops.strings.len(), 16);
    assert_eq!(chat(&strings(17)).unwrap_err().param.as_deref(), Some("stop"));
    let long = |count: usize| format!("{{\"stop\": {:?}}}", "s".repeat(count));
    assert!(chat(&long(1024)).is_ok() && chat(&long(1025)).is_err());
    let tokens = |count: usize| format!("{{\"stop_token_ids\": {:?}}}", vec![1; count]);
    assert!(chat(&tokens(1024)).is_ok() && chat(&tokens(1025)).is_err());
    let biases = |count: usize| {
        let entries: Vec<_> = (0..count).map(|token| format!("\"{token}\": 1")).collect();
        let body = format!("{{\"logit_bias\": {{{}}}}}", entries.join(","));
        read(&mut Fields::parse(body.as_bytes()).unwrap(), Asks::Chat, 5000)
    };
    assert_eq!(biases(1024).unwrap().params.logit_bias.len(), 1024);
    assert!(biases(1025).is_err());
}

#[test]
fn biases_name_tokens_and_are_bounded() {
    let sampling = chat(r#"{"logit_bias": {"7": -100, "9": 1.5}}"#).unwrap();
    assert_eq!(sampling.params.logit_bias, [(7, -100.0), (9, 1.5)]);
    for bias in
        [r#"{"7": 100.5}"#, r#"{"100": 1}"#, r#"{"x": 1}"#, r#"{"7": "1"}"#, r#"{"-1": 1}"#, "[]"]
    {
        let error = chat(&format!("{{\"logit_bias\": {bias}}}")).expect_err(bias);
        assert_eq!(error.param.as_deref(), Some("logit_bias"), "{error}");
    }
}

#[test]
fn the_newer_name_of_max_tokens_wins() {
    let both = chat(r#"{"max_tokens": 5, "max_completion_tokens": 7, "min_tokens": 6}"#).unwrap();
    assert_eq!(both.stops.max_tokens, Some(7));
    let error = chat(r#"{"max_tokens": 5, "min_tokens": 6}"#).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("min_tokens"));
    assert!(chat(r#"{"max_tokens": 5, "min_tokens": 5}"#).is_ok());
}

#[test]
fn no_tokens_make_sense_with_echo_only() {
    assert!(parse(r#"{"max_tokens": 0}"#, Asks::Text { echo: false }).is_err());
    let zero = parse(r#"{"max_tokens": 0}"#, Asks::Text { echo: true }).unwrap();
    assert_eq!(zero.stops.max_tokens, Some(0));
}

#[test]
fn log_probabilities_are_asked_for_in_two_ways() {
    let text = |body| parse(body, Asks::Text { echo: false }).map(|s| s.params.logprobs);
    assert_eq!(text(r#"{"logprobs": 0}"#).unwrap(), Some(0));
    assert_eq!(text(r#"{"logprobs": 20}"#).unwrap(), Some(20));
    assert!(text(r#"{"logprobs": 21}"#).is_err() && text(r#"{"logprobs": true}"#).is_err());
    let asked = |body| chat(body).map(|s| s.params.logprobs);
    assert_eq!(asked(r#"{"logprobs": true}"#).unwrap(), Some(0));
    assert_eq!(asked(r#"{"logprobs": true, "top_logprobs": 20}"#).unwrap(), Some(20));
    assert_eq!(asked(r#"{"logprobs": false, "top_logprobs": 0}"#).unwrap(), None);
    for wrong in [
        r#"{"logprobs": true, "top_logprobs": 21}"#,
        r#"{"top_logprobs": 1}"#,
        r#"{"logprobs": 3}"#,
    ] {
        assert!(asked(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn seeds_differ_between_answers_and_repeat() {
    let seeds = |body| chat(body).unwrap().seeded().map(|p| p.seed).collect::<Vec<_>>();
    let three = seeds(r#"{"seed": 7, "n": 3}"#);
    assert_eq!(three, seeds(r#"{"seed": 7, "n": 3}"#));
    assert_eq!(three[..1], seeds(r#"{"seed": 7}"#));
    assert!(three[0] != three[1] && three[1] != three[2]);
    assert_ne!(seeds("{}"), seeds("{}"), "a random one without a seed");
}

//! Counts, rates and bounds of made-up answers.

use super::*;

/// An answer whose tokens came at these milliseconds and that ended with the last.
fn answer(times: &[u64], output_tokens: u64, asked_tokens: u64) -> Answer {
    let times: Vec<Duration> = times.iter().map(|ms| Duration::from_millis(*ms)).collect();
    let latency = *times.last().unwrap();
    Answer { times, latency, input_tokens: 10, output_tokens, asked_tokens, told: true }
}

fn failure(kind: &str, what: &str) -> Failure {
    Failure { kind: kind.to_owned(), what: what.to_owned() }
}

#[test]
fn requests_are_counted_by_what_became_of_them() {
    let outcomes = [
        Ok(answer(&[100, 150, 250], 3, 3)),
        Err(failure("http 503", "full")),
        // Two arrivals of four tokens.
        Ok(answer(&[200, 500], 4, 4)),
        Err(failure("stream", "cut")),
        Ok(answer(&[300], 1, 4)),
        Err(failure("http 503", "full again")),
    ];
    let bounds = "ttft:200,itl:100".parse().unwrap();
    let served = Served::of(&outcomes, Duration::from_secs(2), Some(bounds));
    let counts = (served.requests, served.completed, served.errors, served.short);
    assert_eq!(counts, (6, 3, 3, 1));
    let kinds: Vec<_> =
        served.error_kinds.iter().map(|(kind, f)| (kind.as_str(), f.count, &*f.example)).collect();
    assert_eq!(kinds, [("http 503", 2, "full"), ("stream", 1, "cut")]);
    assert_eq!((served.input_tokens, served.input_tokens_per_s), (30, 15.0));
    assert_eq!((served.output_tokens, served.output_tokens_per_s), (8, 4.0));
    assert_eq!(served.requests_per_s, 1.5);
    let ttft = served.ttft_ms.unwrap();
    assert_eq!((ttft.mean, ttft.p50, ttft.max), (200.0, 200.0, 300.0));
    let itl = served.itl_ms.unwrap();
    assert_eq!((itl.mean, itl.p50, itl.max), (150.0, 100.0, 300.0));
    let tpot = served.tpot_ms.unwrap();
    assert_eq!((tpot.p50, tpot.max), (75.0, 100.0));
    assert_eq!(served.latency_ms.unwrap().max, 500.0);
    let goodput = served.goodput.unwrap();
    assert_eq!((goodput.requests, goodput.share, goodput.requests_per_s), (1, 1.0 / 6.0, 0.5));
}

#[test]
fn bounds_hold_at_the_bound() {
    let outcomes = [Ok(answer(&[100, 150, 250], 3, 3))];
    for (bounds, good) in [
        ("ttft:100", 1),
        ("ttft:99.9", 0),
        ("itl:100", 1),
        ("itl:99.9", 0),
        ("tpot:75", 1),
        ("tpot:74.9", 0),
        ("latency:250", 1),
        ("latency:249.9", 0),
        ("ttft:100,itl:100,tpot:75,latency:250", 1),
    ] {
        let served = Served::of(&outcomes, Duration::from_secs(1), bounds.parse().ok());
        assert_eq!(served.goodput.unwrap().requests, good, "{bounds}");
    }
}

#[test]
fn bounds_are_read_strictly() {
    let read: Bounds = "ttft:500, itl:100.5".parse().unwrap();
    assert_eq!(read, Bounds { ttft: Some(500.0), itl: Some(100.5), ..Bounds::default() });
    assert_eq!(read.to_string(), "ttft 500 ms, itl 100.5 ms");
    for wrong in ["", "ttft", "ttft:", "ttft:0", "ttft:-1", "ttft:nan", "ttft:inf", "e2e:5"] {
        assert!(wrong.parse::<Bounds>().is_err(), "{wrong}");
    }
    assert!("ttft:1,ttft:2".parse::<Bounds>().unwrap_err().contains("twice"));
}

#[test]
fn nothing_that_went_well_is_dashes() {
    let served = Served::of(&[Err(failure("timeout", "slow"))], Duration::ZERO, None);
    assert_eq!(served.ttft_ms, None);
    let text = served.to_string();
    assert!(text.contains("0 of 1 in 0.00 s, 1 failed\n  1 × timeout: slow"), "{text}");
    assert!(text.lines().last().unwrap().ends_with(" -"), "{text}");
    let served = Served::of(&[Ok(answer(&[1, 2], 2, 2))], Duration::from_secs(1), None);
    let text = served.to_string();
    let widths: Vec<usize> = text.lines().rev().take(5).map(str::len).collect();
    assert_eq!(widths, [67; 5], "{text}");
}

//! The safetensors header on valid, broken, cut and mutated files.

use super::build::{f32_file, file};
use super::*;

const TWO: &str = r#"{"__metadata__":{"format":"pt"},
    "a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},
    "b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]}}   "#;

fn parse(bytes: Vec<u8>) -> Result<Safetensors, Error> {
    Safetensors::parse(Bytes::from(bytes), "test.safetensors")
}

fn check(bytes: Vec<u8>, expected: &str) {
    let message = parse(bytes).expect_err(expected).to_string();
    assert!(message.contains(expected), "expected {expected:?} in {message:?}");
    assert!(message.starts_with("test.safetensors: "), "{message:?}");
    assert!(!message.contains('\n') && message.len() < 1200, "{message:?}");
}

#[test]
fn tensors_are_where_the_header_says() {
    let weights: Vec<u8> = (0..12).collect();
    let opened = parse(file(TWO, &weights)).unwrap();
    assert_eq!(opened.names().collect::<Vec<_>>(), ["a", "b"]);
    let a = opened.tensor("a").unwrap();
    assert_eq!((a.dtype, a.shape.as_slice()), (WeightDtype::F32, [1, 2].as_slice()));
    assert_eq!(*a.bytes, weights[..8]);
    let b = opened.tensor("b").unwrap();
    assert_eq!((b.dtype, b.shape.as_slice()), (WeightDtype::BF16, [2].as_slice()));
    assert_eq!(*b.bytes, weights[8..]);
    assert!(opened.tensor("c").is_err());
    assert!(opened.has("b") && !opened.has("__metadata__"));
}

#[test]
fn files_without_weights_and_empty_tensors_are_valid() {
    assert!(parse(file("{}", &[])).is_ok());
    let empty = r#"{"a":{"dtype":"F32","shape":[0,9],"data_offsets":[0,0]}}"#;
    assert_eq!(parse(file(empty, &[])).unwrap().tensor("a").unwrap().bytes.len(), 0);
}

#[test]
fn types_that_are_known_but_not_served_fail_when_asked_for() {
    let ints = r#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#;
    let error = parse(file(ints, &[0; 8])).unwrap().tensor("a").unwrap_err().to_string();
    assert!(error.contains("tensor a: has the type I64; served from safetensors: F32"), "{error}");
}

#[test]
fn broken_lengths_are_refused() {
    let length =
        |length: u64, rest: usize| [length.to_le_bytes().as_slice(), &vec![b'{'; rest]].concat();
    check(Vec::new(), "0 bytes, no header fits");
    check(vec![0; 7], "7 bytes, no header fits");
    check(length(11, 10), "header is 11 bytes long, at most 10");
    check(length(u64::MAX, 10), "header is 18446744073709551615 bytes long");
    check(length(0, 0), "no JSON object");
    check(file("[]", &[]), "no JSON object");
    check(file(" {}", &[]), "no JSON object");
}

#[test]
fn headers_are_limited() {
    let padded = |length: usize| file(&format!("{{}}{}", " ".repeat(length - 2)), &[]);
    let most = header::HEADER_BYTES as usize;
    assert!(parse(padded(most)).is_ok());
    check(padded(most + 1), "100000001 bytes long, at most 100000000");
}

#[test]
fn broken_headers_are_refused() {
    let a = |rest: &str| format!(r#"{{"a":{rest}}}"#);
    let cases = [
        ("{", "EOF"),
        ("{} x", "trailing"),
        (r#"{"a":1}"#, "invalid type"),
        (r#"{"__metadata__":{"x":1}}"#, "invalid type"),
        (r#"{"__metadata__":{"x":"1","x":"2"}}"#, "\"x\" is there twice"),
        (r#"{"__metadata__":{},"__metadata__":{}}"#, "\"__metadata__\" is there twice"),
        (&a(r#"{"dtype":"F32","shape":[1]}"#), "missing field `data_offsets`"),
        (&a(r#"{"dtype":"F32","shape":[1],"shape":[2],"data_offsets":[0,4]}"#), "duplicate field"),
        (&a(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}"#), "unknown field"),
        (&a(r#"{"dtype":"F33","shape":[1],"data_offsets":[0,4]}"#), "unknown type"),
        (&a(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#), "invalid value"),
        (&a(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#), "is not 4 bytes"),
        (&a(r#"{"dtype":"F4","shape":[9],"data_offsets":[0,4]}"#), "is not 4 bytes"),
        (&a(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}"#), "not 4 b"),
        (&a(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#), "is at 4..0"),
        (&a(r#"{"dtype":"F32","shape":[1],"data_offsets":[1,5]}"#), "is at 1..5 of 4"),
        (&a(r#"{"dtype":"F32","shape":[],"data_offsets":[0,18446744073709551615]}"#), "is at 0.."),
        (&a(r#"{"dtype":"F16","shape":[1],"data_offsets":[0,2]}"#), "after the last tensor"),
        (&a(r#"{"dtype":"F16","shape":[1],"data_offsets":[2,4]}"#), "starts at byte"),
    ];
    for (header, expected) in cases {
        check(file(header, &[0; 4]), expected);
    }
}

#[test]
fn names_and_ranges_are_taken_once() {
    let entry = |name: &str, start, stop| {
        format!(
            r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{start},{stop}]}}"#,
            stop - start
        )
    };
    let two = |a: String, b: String| file(&format!("{{{a},{b}}}"), &[0; 8]);
    assert!(parse(two(entry("b", 4, 8), entry("a", 0, 4))).is_ok());
    check(two(entry("a", 0, 4), entry("a", 4, 8)), "key \"a\" is there twice");
    check(two(entry("a", 0, 5), entry("b", 4, 8)), "tensor \"b\": starts at byte");
    check(two(entry("a", 0, 8), entry("b", 0, 8)), "tensor \"b\": starts at byte");
    check(two(entry("a", 0, 3), entry("b", 4, 8)), "tensor \"b\": starts at byte");
}

#[test]
fn dimensions_are_limited() {
    let ranked = |rank: usize| {
        let shape = vec!["1"; rank].join(",");
        let entry = format!(r#"{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,1]}}"#);
        parse(file(&format!(r#"{{"a":{entry}}}"#), &[0])).is_ok()
    };
    assert!(ranked(header::RANK));
    assert!(!ranked(header::RANK + 1));
}

#[test]
fn long_names_are_cut_in_messages() {
    let name = "n".repeat(100_000);
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}}}"#);
    check(file(&header, &[0; 4]), "is not 4 bytes");
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let whole = file(TWO, &[7; 12]);
    assert!(parse(whole.clone()).is_ok());
    for length in 0..whole.len() {
        assert!(parse(whole[..length].to_vec()).is_err(), "{length}");
    }
}

#[test]
fn mutated_files_never_panic() {
    let whole = f32_file(&[("a", &[1, 2], &[1.0, 2.0]), ("b", &[3], &[3.0, 4.0, 5.0])]);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..10_000 {
        let mut bytes = whole.clone();
        let digit = b"0123456789,[]{}\":"[random(17)];
        let at = random(bytes.len());
        bytes[at] = [digit, random(256) as u8][random(2)];
        match parse(bytes) {
            Ok(opened) => {
                for name in opened.names() {
                    let _ = opened.tensor(name);
                }
                accepted += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(accepted > 100 && refused > 100, "{accepted} accepted, {refused} refused");
}

//! The GGUF parser on valid, broken, cut and mutated files.

use super::build::{GgufFile, key, key_array, key_text, key_texts, key_u32, tensor, text};
use super::*;

fn parse(bytes: Vec<u8>) -> Result<Gguf, Error> {
    Gguf::parse(Bytes::from(bytes), "test.gguf")
}

/// Small file with one change; the message must have `expected` in it and name the file.
fn check(expected: &str, change: impl FnOnce(&mut GgufFile)) {
    let mut file = GgufFile::small();
    change(&mut file);
    let message = match parse(file.bytes()) {
        Ok(_) => panic!("accepted a file that should fail with: {expected}"),
        Err(error) => error.to_string(),
    };
    assert!(message.contains(expected), "expected {expected:?} in {message:?}");
    assert!(message.starts_with("test.gguf: "), "{message:?}");
    assert!(!message.contains('\n') && message.len() < 700, "{message:?}");
}

#[test]
fn values_of_all_kinds_are_read() {
    for version in [2, 3] {
        let gguf = parse(GgufFile { version, ..GgufFile::small() }.bytes()).unwrap();
        assert_eq!(gguf.architecture(), "llama");
        let whole = [
            ("n.u8", Some(200)),
            ("n.u16", Some(0x0201)),
            ("n.u32", Some(70_000)),
            ("n.u64", Some(1 << 40)),
            ("n.i32", None),
            ("n.f32", None),
            ("absent", None),
        ];
        for (key, expected) in whole {
            assert_eq!(gguf.u64(key), expected, "{key}");
        }
        let numbers = [("n.i8", -1.0), ("n.i16", -2.0), ("n.i32", -5.0), ("n.i64", -9.0)];
        for (key, expected) in numbers.into_iter().chain([("n.f32", 1.5), ("n.f64", 0.1)]) {
            assert_eq!(gguf.f64(key), Some(expected), "{key}");
        }
        assert_eq!(gguf.bool("n.bool"), Some(true));
        assert_eq!(gguf.bool("n.u8"), None);
        assert_eq!(gguf.strings("a.texts").unwrap(), ["", "é", "three"]);
        assert_eq!(gguf.f32s("a.f32").unwrap(), [1.0, -2.0]);
        assert_eq!(gguf.i32s("a.i32").unwrap(), [3, -1]);
        assert_eq!(gguf.f32s("a.i32"), None);
        assert_eq!(gguf.i32s("a.bool"), None);
        assert_eq!(gguf.i32s("a.none").unwrap(), Vec::<i32>::new());
        assert_eq!(gguf.keys().count(), 17);
    }
}

#[test]
fn tensors_are_found_and_their_dimensions_reversed() {
    let gguf = parse(GgufFile::small().bytes()).unwrap();
    let embedding = gguf.tensor("token_embd.weight").unwrap();
    assert_eq!(
        (embedding.dtype, embedding.shape.as_slice()),
        (WeightDtype::F32, [3, 2].as_slice())
    );
    assert_eq!(*gguf.tensor_bytes(embedding), *(0..24).collect::<Vec<u8>>());
    let q = gguf.tensor("blk.0.attn_q.weight").unwrap();
    assert_eq!((q.dtype, q.shape.as_slice()), (WeightDtype::Q4_0, [2, 32].as_slice()));
    assert_eq!(*gguf.tensor_bytes(q), *(32..68).collect::<Vec<u8>>());
    assert_eq!(*gguf.tensor_bytes(gguf.tensor("output_norm.weight").unwrap()), [96, 97, 98, 99]);
}

#[test]
fn broken_beginnings_are_refused() {
    check("lacks the magic", |file| file.magic = *b"GGML");
    check("version: is 1;", |file| file.version = 1);
    check("version: is 4;", |file| file.version = 4);
    check("big-endian", |file| file.version = 3_u32.swap_bytes());
    check("number of tensors is 1152921504606846976", |file| file.tensor_count = Some(1 << 60));
    check("number of tensors is 18446744073709551615", |file| file.tensor_count = Some(u64::MAX));
    check("number of metadata keys is 1152921504606846976", |f| f.key_count = Some(1 << 60));
    check("number of metadata keys is 1000", |file| file.key_count = Some(1000));
}

#[test]
fn broken_metadata_is_refused() {
    let cases = [
        ("n.u8 is there twice", key("n.u8", 0, &[1])),
        ("unknown type 13", key("x", 13, &[0; 8])),
        ("array of arrays", key_array("x", 9, 1, &[0; 12])),
        ("elements of x is 72057594037927936", key_array("x", 8, 1 << 56, &[])),
        ("elements of x is 1152921504606846976", key_array("x", 10, 1 << 60, &[])),
        ("neither 0 nor 1", key("x", 7, &[2])),
        ("neither 0 nor 1", key_array("x", 7, 3, &[0, 1, 2])),
        ("x is not UTF-8", key("x", 8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe])),
        ("length of x is 1099511627776", key("x", 8, &(1_u64 << 40).to_le_bytes())),
        ("length of x is 18446744073709551615", key("x", 8, &u64::MAX.to_le_bytes())),
        ("metadata key is empty or has control", key_u32("", 1)),
        ("metadata key is empty or has control", key_u32("a\nb", 1)),
        ("length of a metadata key is 9223372036854775807", i64::MAX.to_le_bytes().to_vec()),
        ("general.alignment: is not a power of two", key_u32("general.alignment", 0)),
        ("general.alignment: is not a power of two", key_u32("general.alignment", 3)),
        ("general.alignment: is not a power of two", key_u32("general.alignment", 1 << 21)),
        ("general.alignment: is not a power of two", key_text("general.alignment", "32")),
        ("one part of a split model", key("split.count", 2, &[2, 0])),
    ];
    for (expected, broken) in cases {
        check(expected, |file| file.keys.push(broken));
    }
}

#[test]
fn broken_tensors_are_refused() {
    let cases = [
        ("tensor output_norm.weight is listed twice", tensor("output_norm.weight", &[2], 1, 96)),
        ("has 0 dimensions", tensor("x", &[], 0, 0)),
        ("has 5 dimensions", tensor("x", &[1; 5], 0, 0)),
        ("impossible dimension", tensor("x", &[1, 0], 0, 0)),
        ("is too large", tensor("x", &[1 << 40, 1 << 40], 0, 0)),
        ("is too large", tensor("x", &[1 << 62], 0, 0)),
        ("is too large", tensor("x", &[1 << 32, 1 << 32, 1, 1], 0, 0)),
        ("no whole blocks of 32", tensor("x", &[31, 32], 2, 0)),
        ("no whole blocks of 256", tensor("x", &[32, 256], 12, 0)),
        ("weight type IQ4_XS; served: F32, F16", tensor("x", &[256], 23, 0)),
        ("weight type 4 (unknown)", tensor("x", &[32], 4, 0)),
        ("alignment 32", tensor("x", &[1], 0, 72)),
        ("is at offset 128", tensor("x", &[1], 0, 128)),
        ("is at offset 96", tensor("x", &[2], 0, 96)),
        ("impossible offset", tensor("x", &[1], 0, u64::MAX - 31)),
        ("overlaps tensor", tensor("x", &[1], 0, 64)),
        ("a tensor's name is empty", tensor("", &[1], 0, 0)),
        ("length of a tensor's name is 4294967296", (1_u64 << 32).to_le_bytes().to_vec()),
    ];
    for (expected, broken) in cases {
        check(expected, |file| file.tensors.push(broken));
    }
}

#[test]
fn limits_hold_at_the_limit_and_not_one_past() {
    let named = |length: usize| {
        let mut file = GgufFile::small();
        file.keys.push(key_u32(&"k".repeat(length), 1));
        parse(file.bytes()).is_ok()
    };
    assert!(named(cursor::NAME_BYTES as usize));
    assert!(!named(cursor::NAME_BYTES as usize + 1));
    let aligned = |bytes: u64| {
        let mut file = GgufFile::small();
        file.alignment = bytes as usize;
        file.keys.push(key_u32("general.alignment", bytes as u32));
        file.tensors = vec![tensor("token_embd.weight", &[2, 3], 0, 0)];
        parse(file.bytes()).is_ok()
    };
    assert!(aligned(1));
    assert!(aligned(parse::ALIGNMENT_BYTES));
    assert!(!aligned(2 * parse::ALIGNMENT_BYTES));
    let elements = |count: u64| {
        let mut file = GgufFile::small();
        file.keys.push(key_array("x", 0, count, &vec![0; count as usize]));
        parse(file.bytes()).is_ok()
    };
    assert!(elements(cursor::ARRAY_ELEMENTS));
    assert!(!elements(cursor::ARRAY_ELEMENTS + 1));
}

#[test]
fn numbers_of_keys_and_tensors_are_limited() {
    let keys = |count: u64| {
        let mut file = GgufFile::empty();
        file.keys = (0..count).map(|index| key_u32(&format!("k{index}"), 1)).collect();
        parse(file.bytes()).is_ok()
    };
    assert!(keys(parse::KEYS));
    assert!(!keys(parse::KEYS + 1));
    let tensors = |count: u64| {
        let mut file = GgufFile::empty();
        let line = |index| tensor(&format!("t{index}"), &[1], 0, 32 * index);
        file.tensors = (0..count).map(line).collect();
        file.weights = vec![0; 32 * count as usize];
        parse(file.bytes()).is_ok()
    };
    assert!(tensors(parse::TENSORS));
    assert!(!tensors(parse::TENSORS + 1));
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let whole = GgufFile::small().bytes();
    assert!(parse(whole.clone()).is_ok());
    for length in 0..whole.len() {
        let error = parse(whole[..length].to_vec()).expect_err("a cut file").to_string();
        assert!(error.starts_with("test.gguf: "), "{length}: {error}");
    }
}

#[test]
fn mutated_files_never_panic() {
    let whole = GgufFile::small().bytes();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..=random(3) {
            let odd = [0, 1, 0x7f, 0x80, 0xff, random(256) as u8][random(6)];
            let at = random(bytes.len());
            bytes[at] = odd;
        }
        match parse(bytes) {
            Ok(gguf) => {
                // Whatever was accepted must be usable to the end.
                for tensor in gguf.tensors() {
                    assert_eq!(gguf.tensor_bytes(tensor).len(), tensor.length);
                }
                let _ = (hf_config(&gguf), end_tokens(&gguf));
                accepted += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(accepted > 100 && refused > 100, "{accepted} accepted, {refused} refused");
}

#[test]
fn large_vocabularies_are_read_in_linear_time() {
    let tokens: Vec<String> = (0..150_000).map(|id| format!("token{id}")).collect();
    let texts: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let mut file = GgufFile::empty();
    file.keys.push(key_texts("tokenizer.ggml.tokens", &texts));
    let gguf = parse(file.bytes()).unwrap();
    assert_eq!(gguf.strings("tokenizer.ggml.tokens").unwrap(), tokens);
}

#[test]
fn texts_are_written_as_the_format_says() {
    assert_eq!(text("ab"), [2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b']);
}

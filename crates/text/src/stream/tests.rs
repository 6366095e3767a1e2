//! Tests of incremental decoding, by table and against decoding at once.

use super::*;
use crate::gguf::GgufVocab;
use crate::pieces::alphabet;

/// A byte-level vocabulary of all bytes, `ab`, and a special token.
fn byte_level() -> Arc<Tokenizer> {
    let mut letters: Vec<(char, u8)> = alphabet().into_iter().collect();
    letters.sort_by_key(|(_, byte)| *byte);
    let mut tokens: Vec<String> = letters.iter().map(|(letter, _)| letter.to_string()).collect();
    tokens.extend(["ab".to_owned(), "<end>".to_owned()]);
    let mut token_types = vec![1; 257];
    token_types.push(3);
    let merges = vec!["a b".to_owned()];
    let kind = "gpt2".to_owned();
    let vocab = GgufVocab { kind, tokens, token_types, merges, ..GgufVocab::default() };
    Arc::new(Tokenizer::from_gguf(vocab).unwrap())
}

/// A SentencePiece vocabulary: `<s>`, all bytes, then pieces.
fn sentence() -> Arc<Tokenizer> {
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let mut tokens = vec!["<s>".to_owned()];
    tokens.extend(bytes);
    tokens.extend(["▁", "▁time", "é", "a"].map(str::to_owned));
    let mut token_types = vec![6; 257];
    token_types[0] = 3;
    token_types.resize(tokens.len(), 1);
    let scores = vec![0.0; tokens.len()];
    let kind = "llama".to_owned();
    let vocab = GgufVocab { kind, tokens, scores, token_types, ..GgufVocab::default() };
    Arc::new(Tokenizer::from_gguf(vocab).unwrap())
}

fn pieces(stream: &mut TextStream, ids: &[u32]) -> Vec<String> {
    let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
    pieces.push(stream.finish());
    pieces
}

#[test]
fn whole_characters_come_as_soon_as_they_are_certain() {
    let bad = "\u{FFFD}";
    let (a, end, unknown) = (u32::from(b'a'), 257, 9_999);
    let cases: [(&[u32], Vec<&str>); 12] = [
        (&[], vec![""]),
        (&[a, 256], vec!["a", "ab", ""]),
        (&[0xC3, 0xA9], vec!["", "é", ""]),
        (&[0xF0, 0x9F, 0x98, 0x80], vec!["", "", "", "😀", ""]),
        (&[0xF0, 0x9F, 0x98], vec!["", "", "", bad]),
        (&[0xF0, 0x9F, a], vec!["", "", "\u{FFFD}a", ""]),
        (&[0x80, a], vec![bad, "a", ""]),
        (&[0xC3, 0xC3, 0xA9], vec!["", bad, "é", ""]),
        (&[0xE0, 0x80], vec!["", "\u{FFFD}\u{FFFD}", ""]),
        (&[a, end, a], vec!["a", "", "a", ""]),
        (&[0xC3, end, 0xA9], vec!["", "", "é", ""]),
        (&[unknown, a], vec!["", "a", ""]),
    ];
    let tokenizer = byte_level();
    for (ids, expected) in cases {
        let found = pieces(&mut TextStream::new(tokenizer.clone()), ids);
        assert_eq!(found, expected, "{ids:?}");
        assert_eq!(found.concat(), tokenizer.decode(ids, true), "{ids:?}");
    }
}

#[test]
fn special_tokens_are_kept_on_demand() {
    let tokenizer = byte_level();
    let ids = [u32::from(b'a'), 257, 0xC3];
    let found = pieces(&mut TextStream::with_special(tokenizer.clone()), &ids);
    assert_eq!(found, ["a", "<end>", "", "\u{FFFD}"]);
    assert_eq!(found.concat(), tokenizer.decode(&ids, false));
}

#[test]
fn a_space_after_the_prompt_is_kept() {
    let tokenizer = sentence();
    let (time, a) = (258, 260);
    assert_eq!(pieces(&mut TextStream::new(tokenizer.clone()), &[time, a]).concat(), " timea");
    // A text of its own has no such space.
    assert_eq!(tokenizer.decode(&[time, a], true), "timea");
    assert_eq!(tokenizer.decode(&[a, time], true), "a time");
    assert_eq!(tokenizer.decode(&[0, time], true), "time");
    assert_eq!(tokenizer.decode(&[0, time], false), "<s> time");
    let emoji = [0xF0, 0x9F, 0x98, 0x80].map(|byte| byte + 1);
    assert_eq!(pieces(&mut TextStream::new(tokenizer.clone()), &emoji), ["", "", "", "😀", ""]);
    assert_eq!(tokenizer.token_bytes(emoji[0]), [0xF0]);
    assert_eq!(tokenizer.token_bytes(time), b" time");
    assert_eq!(tokenizer.token_bytes(0), b"<s>");
    assert!(tokenizer.token_bytes(261).is_empty());
}

#[test]
fn random_tokens_are_what_decoding_at_once_gives() {
    for (name, tokenizer) in [("byte level", byte_level()), ("sentence", sentence())] {
        for seed in 1..2000_u64 {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // Bytes that begin and continue characters, and some of everything.
                let byte =
                    [0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xA9, 0xE2, 0x41][(state >> 33) as usize % 8];
                if (state >> 50).is_multiple_of(4) { (state >> 40) as u32 % 262 } else { byte }
            };
            let ids: Vec<u32> = (0..12).map(|_| next()).collect();
            for special in [false, true] {
                let mut stream = TextStream::new(tokenizer.clone());
                stream.special = special;
                let found = pieces(&mut stream, &ids).concat();
                // After a text, so that no space is dropped.
                let text = tokenizer.encode("a", false).unwrap();
                let prompt = tokenizer.decode(&text, false);
                let whole = tokenizer.decode(&[text, ids.clone()].concat(), !special);
                assert_eq!(prompt + &found, whole, "{name}, seed {seed}: {ids:?}");
            }
        }
    }
}

#[test]
fn a_token_costs_the_same_late_as_early() {
    let tokenizer = byte_level();
    let mut stream = TextStream::new(tokenizer);
    for _ in 0..100_000 {
        stream.push(0xF0);
        assert!(stream.pending.len() <= 3 && stream.pending.capacity() < 64);
    }
}

#[test]
fn special_tokens_are_shown_where_they_mark_something() {
    let tokenizer = byte_level();
    let end = tokenizer.special("<end>").unwrap();
    assert_eq!((end, tokenizer.special("ab"), tokenizer.special("<")), (257, None, None));
    for (shown, expected) in [(vec![], "aa"), (vec![end], "a<end>a")] {
        let mut stream = TextStream::showing(tokenizer.clone(), shown.into());
        let a = u32::from(b'a');
        assert_eq!(pieces(&mut stream, &[a, end, a]).concat(), expected);
    }
}

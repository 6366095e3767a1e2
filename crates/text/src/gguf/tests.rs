//! Tests of GGUF vocabularies: what is refused, and what the metadata changes.

use super::*;
use crate::tokenizer::Tokenizer;

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn gpt2() -> GgufVocab {
    GgufVocab {
        kind: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens: texts(&["a", "b", "ab", "<s>", "<u>", "[PAD5]"]),
        token_types: vec![1, 1, 1, 3, 4, 4],
        merges: texts(&["a b"]),
        bos: Some(3),
        eos: Some(3),
        ..GgufVocab::default()
    }
}

fn llama() -> GgufVocab {
    GgufVocab {
        kind: "llama".to_owned(),
        tokens: texts(&["<unk>", "<s>", "<0x0A>", "▁", "a", "b", "ab", "▁ab", "ba"]),
        token_types: vec![2, 3, 6, 1, 1, 1, 1, 1, 1],
        scores: vec![0.0, 0.0, 0.0, -10.0, -11.0, -12.0, -2.0, -3.0, -1.0],
        bos: Some(1),
        ..GgufVocab::default()
    }
}

fn message(vocab: GgufVocab) -> String {
    let message = Tokenizer::from_gguf(vocab).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

type Change = fn(&mut GgufVocab);

#[test]
fn contradictions_are_refused_with_what_and_where() {
    let cases: [(GgufVocab, Change, &str); 20] = [
        (gpt2(), |v| v.kind = "bert".to_owned(), "those supported: gpt2, llama"),
        (gpt2(), |v| v.tokens.clear(), "it has no tokens"),
        (gpt2(), |v| v.scores = vec![0.0; 5], "6 tokens have 5 scores"),
        (gpt2(), |v| v.scores = vec![0.0; 7], "6 tokens have 7 scores"),
        (gpt2(), |v| v.token_types.truncate(5), "6 tokens have 5 token_types"),
        (gpt2(), |v| v.bos = Some(6), "bos is token 6 of 6"),
        (gpt2(), |v| v.eos = Some(u32::MAX), "eos is token 4294967295 of 6"),
        (gpt2(), |v| v.pre = Some("odd".to_owned()), "pre-tokenizer \"odd\" is not known"),
        (gpt2(), |v| v.pre = Some("odd".to_owned()), "llama-bpe"),
        (gpt2(), |v| v.merges.clear(), "needs merges"),
        (gpt2(), |v| v.merges = texts(&["ab"]), "merge 0 is \"ab\""),
        (gpt2(), |v| v.merges = texts(&["a b", " b"]), "merge 1 is \" b\""),
        (gpt2(), |v| v.merges = texts(&["a "]), "merge 0 is \"a \""),
        (gpt2(), |v| v.merges = texts(&["a c"]), "needs \"c\", which is no token"),
        (gpt2(), |v| v.merges = texts(&["b a"]), "needs \"ba\", which is no token"),
        (gpt2(), |v| (v.bos, v.add_bos) = (None, Some(true)), "add_bos is set but no bos"),
        (gpt2(), |v| (v.eos, v.add_eos) = (None, Some(true)), "add_eos is set but no eos"),
        (llama(), |v| v.scores.clear(), "needs scores"),
        (llama(), |v| v.scores[4] = f32::NAN, "the score of token 4 is not a number"),
        (llama(), |v| v.tokens[4] = "x".repeat(sentence::PIECE_BYTES + 1), "token 4 has more than"),
    ];
    for (mut vocab, change, expected) in cases {
        change(&mut vocab);
        let found = message(vocab);
        assert!(found.contains(expected), "{found:?} has no {expected:?}");
    }
}

#[test]
fn what_is_allowed_loads() {
    let changes: [(GgufVocab, Change); 7] = [
        (gpt2(), |v| v.token_types.clear()),
        (gpt2(), |v| v.scores = vec![0.0; 6]),
        (gpt2(), |v| v.pre = None),
        (gpt2(), |v| v.tokens[1] = "a".to_owned()),
        (gpt2(), |v| v.tokens[4].clear()),
        (llama(), |v| v.tokens[4] = "x".repeat(sentence::PIECE_BYTES)),
        (llama(), |v| v.scores[4] = f32::NEG_INFINITY),
    ];
    for (index, (mut vocab, change)) in changes.into_iter().enumerate() {
        change(&mut vocab);
        // A token twice leaves its merge without a part; all else must load.
        match Tokenizer::from_gguf(vocab) {
            Ok(tokenizer) => assert!(tokenizer.encode("", false).unwrap().is_empty(), "{index}"),
            Err(error) => assert!(index == 3 && error.to_string().contains("\"b\""), "{error}"),
        }
    }
}

#[test]
fn ends_are_added_as_the_file_says() {
    let cases: [(GgufVocab, Change, &[u32]); 7] = [
        (gpt2(), |_| (), &[2]),
        (gpt2(), |v| v.add_bos = Some(true), &[3, 2]),
        (gpt2(), |v| v.add_eos = Some(true), &[2, 3]),
        (gpt2(), |v| v.pre = Some("llama-bpe".to_owned()), &[3, 2]),
        (llama(), |_| (), &[1, 7]),
        (llama(), |v| v.add_bos = Some(false), &[7]),
        (llama(), |v| v.bos = None, &[7]),
    ];
    for (index, (mut vocab, change, expected)) in cases.into_iter().enumerate() {
        change(&mut vocab);
        let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
        assert_eq!(tokenizer.encode("ab", true).unwrap(), expected, "{index}");
        let first = expected.first().copied().filter(|_| [1, 3, 4].contains(&index));
        assert_eq!(tokenizer.begins_with(), first, "{index}");
        assert!(!tokenizer.encode("ab", false).unwrap().contains(&3), "{index}");
    }
}

#[test]
fn types_say_what_is_found_in_a_text_and_what_is_special() {
    let tokenizer = Tokenizer::from_gguf(gpt2()).unwrap();
    assert_eq!(tokenizer.encode("a<s>b<u>[PAD5]", false).unwrap(), [0, 3, 1, 4]);
    let special: Vec<bool> = (0..7).map(|id| tokenizer.is_special(id)).collect();
    assert_eq!(special, [false, false, false, true, false, false, false]);
    assert_eq!(tokenizer.decode(&[0, 3, 1, 4], true), "ab<u>");
    assert_eq!(tokenizer.decode(&[0, 3, 1, 4, 99], false), "a<s>b<u>");
    assert_eq!((tokenizer.vocab_len(), tokenizer.bos()), (6, Some(3)));
}

#[test]
fn scores_order_the_merges_and_bytes_stand_for_the_rest() {
    let cases: [(Option<bool>, &str, &[u32]); 7] = [
        (None, "ab", &[7]),
        (Some(true), "b", &[3, 5]),
        (Some(false), "ab", &[6]),
        // "ba" has the higher score, though "ab" comes first.
        (Some(false), "aba", &[4, 8]),
        (Some(false), " ab", &[7]),
        (Some(false), "a\nz", &[4, 2, 0]),
        (None, "a<s>b", &[3, 4, 1, 3, 5]),
    ];
    for (add_space_prefix, text, expected) in cases {
        let vocab = GgufVocab { add_space_prefix, ..llama() };
        let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{text:?}");
        if !text.contains('z') {
            assert_eq!(
                tokenizer.decode(expected, false),
                text.replace("<s>b", "<s> b"),
                "{text:?}"
            );
        }
    }
}

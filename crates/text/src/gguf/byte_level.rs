//! Byte-level BPE vocabularies (`gpt2`): every byte a character of GPT-2's alphabet, merges in the
//! file, and a name for the way text is cut into words.

use serde_json::{Value, json};
use tokenizers::models::bpe::Merges;

use super::{GgufVocab, Plan, bpe, ids, part, wrong};
use crate::error::Error;
use crate::pieces::Spelling;

/// How a family cuts text into words before it merges.
struct Cut {
    /// Names in `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// One after the other, each on the pieces of the one before.
    splits: &'static [&'static str],
    /// Whether GPT-2's own expression comes after them.
    gpt2: bool,
    /// Whether a word that is a token is taken whole. The same families begin texts with BOS.
    ignore_merges: bool,
    /// Whether the text is composed (NFC) first.
    composes: bool,
}

const PLAIN: Cut =
    Cut { names: &[], splits: &[], gpt2: false, ignore_merges: false, composes: false };

/// `'s`, words with the sign before, runs of digits of this length, signs, lines, spaces.
macro_rules! words {
    ($digits:literal) => {
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

/// Words with a capital apart, as GPT-4o has them; `$suffix` takes `'s` to the word.
macro_rules! capitals {
    ($suffix:literal, $digits:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $suffix,
            "|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

const CUTS: [Cut; 10] = [
    Cut { names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4"], gpt2: true, ..PLAIN },
    Cut {
        // What llama.cpp does for a file that does not say.
        names: &["default"],
        splits: &[
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            "[0-9][0-9][0-9]",
        ],
        ..PLAIN
    },
    Cut {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"],
        splits: &[r"\p{N}"],
        gpt2: true,
        ..PLAIN
    },
    Cut {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2"],
        splits: &[words!(r"\p{N}{1,3}")],
        ignore_merges: true,
        ..PLAIN
    },
    Cut {
        names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"],
        splits: &[words!(r"\p{N}{1,3}")],
        ..PLAIN
    },
    Cut { names: &["qwen2"], splits: &[words!(r"\p{N}")], composes: true, ..PLAIN },
    Cut {
        names: &["deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"],
        splits: &[words!(r"\p{N}")],
        ..PLAIN
    },
    Cut {
        names: &["deepseek-v3"],
        splits: &[
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
                r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|",
                r"\s+(?!\S)|\s+"
            ),
        ],
        ..PLAIN
    },
    Cut { names: &["tekken"], splits: &[capitals!("", r"\p{N}")], ignore_merges: true, ..PLAIN },
    Cut {
        names: &["gpt-4o", "llama4"],
        splits: &[capitals!("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}")],
        ..PLAIN
    },
];

pub(super) fn plan(vocab: &GgufVocab) -> Result<Plan, Error> {
    let cut = cut(vocab.pre.as_deref().unwrap_or("default"))?;
    let mut steps: Vec<Value> = cut.splits.iter().map(|regex| split(regex)).collect();
    steps.push(json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cut.gpt2,
    }));
    let normalizer = if cut.composes { json!({"type": "NFC"}) } else { Value::Null };
    let merges = merges(vocab)?;
    Ok(Plan {
        model: bpe(vocab, merges, |builder| builder.ignore_merges(cut.ignore_merges))?,
        normalizer: part(normalizer)?,
        words: part(json!({"type": "Sequence", "pretokenizers": steps}))?,
        spelling: Spelling::ByteLevel,
        adds_bos: cut.ignore_merges,
    })
}

fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

fn cut(pre: &str) -> Result<&'static Cut, Error> {
    if let Some(cut) = CUTS.iter().find(|cut| cut.names.contains(&pre)) {
        return Ok(cut);
    }
    let known: Vec<&str> = CUTS.iter().flat_map(|cut| cut.names).copied().collect();
    wrong(format!("pre-tokenizer {pre:?} is not known; those known: {}", known.join(", ")))
}

fn merges(vocab: &GgufVocab) -> Result<Merges, Error> {
    if vocab.merges.is_empty() {
        return wrong("a gpt2 vocabulary needs merges; convert the model again");
    }
    let ids = ids(vocab);
    let mut merges = Merges::with_capacity(vocab.merges.len());
    for (index, merge) in vocab.merges.iter().enumerate() {
        let parts =
            merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        let Some((left, right)) = parts else {
            return wrong(format!(
                "merge {index} is {merge:?}, not two tokens with a space between"
            ));
        };
        let whole = format!("{left}{right}");
        if let Some(missing) =
            [left, right, &whole].into_iter().find(|text| !ids.contains_key(text))
        {
            return wrong(format!(
                "merge {index} ({merge:?}) needs {missing:?}, which is no token"
            ));
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_compiles_and_names_are_unique() {
        let mut names: Vec<&str> = Vec::new();
        for cut in &CUTS {
            for regex in cut.splits {
                part::<tokenizers::PreTokenizerWrapper>(split(regex)).unwrap();
            }
            names.extend(cut.names);
        }
        let len = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), len);
    }
}

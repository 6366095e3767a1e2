//! `GgufVocab`: the vocabulary of a GGUF file, made into a tokenizer. What the file says of itself
//! is checked here: it never makes the tokenizers library panic.

mod byte_level;
mod sentence;

use std::collections::HashMap;

use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};

use crate::error::Error;
use crate::pieces::{Pieces, Spelling};
use crate::tokenizer::{Ends, Parts};

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// The `tokenizer.ggml.*` metadata of a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// `tokenizer.ggml.model`: `gpt2` or `llama`.
    pub kind: String,
    /// `tokenizer.ggml.pre`: how `gpt2` text is cut into words.
    pub pre: Option<String>,
    /// Text of each token.
    pub tokens: Vec<String>,
    /// Score of each token, of `llama` vocabularies; or empty.
    pub scores: Vec<f32>,
    /// Kind of each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; or
    /// empty.
    pub token_types: Vec<i32>,
    /// Pairs of tokens, a space between, of `gpt2` vocabularies, the first merged first.
    pub merges: Vec<String>,
    /// Token that begins a text.
    pub bos: Option<u32>,
    /// Token that ends a text.
    pub eos: Option<u32>,
    /// Whether texts begin with it; `None`: as is usual for the kind.
    pub add_bos: Option<bool>,
    /// Whether texts end with it; `None`: as is usual for the kind.
    pub add_eos: Option<bool>,
    /// Whether `llama` texts get a space before; `None`: they do.
    pub add_space_prefix: Option<bool>,
    /// `general.architecture`: what the file does not say of its tokens follows from it.
    pub architecture: Option<String>,
}

/// A vocabulary before its tokenizer: what the kinds differ in.
struct Plan {
    model: BPE,
    normalizer: Option<tokenizers::NormalizerWrapper>,
    words: Option<tokenizers::PreTokenizerWrapper>,
    spelling: Spelling,
    adds_bos: bool,
}

/// Checks a vocabulary and builds its tokenizer.
pub(crate) fn parts(vocab: &GgufVocab) -> Result<Parts, Error> {
    check(vocab)?;
    let plan = match vocab.kind.as_str() {
        "gpt2" => byte_level::plan(vocab)?,
        "llama" => sentence::plan(vocab)?,
        kind => {
            return wrong(format!("kind {kind:?} is not supported; those supported: gpt2, llama"));
        }
    };
    let adds_bos = vocab.add_bos.unwrap_or(plan.adds_bos && vocab.bos.is_some());
    let before = end("bos", adds_bos, vocab.bos)?;
    let after = end("eos", vocab.add_eos.unwrap_or(false), vocab.eos)?;

    let mut inner = tokenizers::Tokenizer::new(plan.model);
    inner.with_normalizer(plan.normalizer).map_err(|error| refused(&*error))?;
    inner.with_pre_tokenizer(plan.words);
    inner.add_tokens(added(vocab)).map_err(|error| refused(&*error))?;

    let texts: Vec<Option<&str>> = vocab.tokens.iter().map(|text| Some(text.as_str())).collect();
    let special = (0..texts.len()).map(|id| is_special(vocab, id)).collect();
    let pieces = Pieces::new(&texts, special, plan.spelling)?;
    Ok(Parts {
        inner,
        pieces,
        spelling: plan.spelling,
        bos: vocab.bos,
        ends: Ends::Ids(before, after),
    })
}

fn wrong<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::Vocabulary(what.into()))
}

/// What the tokenizers library says, on one line.
fn refused(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Error {
    Error::Vocabulary(error.to_string().replace('\n', " "))
}

/// A part of the tokenizer, written as in a tokenizer.json; null: there is none.
fn part<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<Option<T>, Error> {
    serde_json::from_value(value).map_err(|error| refused(&error))
}

fn check(vocab: &GgufVocab) -> Result<(), Error> {
    let len = vocab.tokens.len();
    if len == 0 {
        return wrong("it has no tokens");
    }
    let lists = [("scores", vocab.scores.len()), ("token_types", vocab.token_types.len())];
    for (name, found) in lists {
        if found != 0 && found != len {
            return wrong(format!("{len} tokens have {found} {name}; the file is damaged"));
        }
    }
    for (name, id) in [("bos", vocab.bos), ("eos", vocab.eos)] {
        if let Some(id) = id.filter(|id| *id as usize >= len) {
            return wrong(format!("{name} is token {id} of {len}; the file is damaged"));
        }
    }
    Ok(())
}

fn end(name: &str, adds: bool, id: Option<u32>) -> Result<Option<u32>, Error> {
    if adds && id.is_none() {
        return wrong(format!("add_{name} is set but no {name} token is named"));
    }
    Ok(id.filter(|_| adds))
}

/// Ids by text; of two with the same text the later, as llama.cpp and Python's dict have it.
fn ids(vocab: &GgufVocab) -> HashMap<&str, u32> {
    vocab.tokens.iter().zip(0..).map(|(text, id)| (text.as_str(), id)).collect()
}

fn token_type(vocab: &GgufVocab, id: usize) -> i32 {
    vocab.token_types.get(id).copied().unwrap_or(1)
}

fn is_special(vocab: &GgufVocab, id: usize) -> bool {
    matches!(token_type(vocab, id), UNKNOWN | CONTROL)
}

/// Tokens that are found in a text as they are written.
fn added(vocab: &GgufVocab) -> Vec<AddedToken> {
    let wanted = |(id, text): &(usize, &String)| {
        let kind = token_type(vocab, *id);
        // Converters fill a vocabulary up to the size of the matrix with [PAD<id>], some as
        // user-defined tokens; the model has never seen them.
        let filler = **text == format!("[PAD{id}]");
        matches!(kind, UNKNOWN | CONTROL | USER_DEFINED) && !text.is_empty() && !filler
    };
    let tokens = vocab.tokens.iter().enumerate().filter(wanted);
    let added = tokens.map(|(id, text)| {
        let token = AddedToken::from(text.clone(), is_special(vocab, id)).normalized(false);
        token.rstrip(takes_spaces(vocab, text))
    });
    added.collect()
}

/// Whether a token takes the spaces and line ends behind it. Those of Phi-3 do, as its
/// tokenizer.json says; a GGUF file has no place for it. Phi-4-mini, of the same architecture, has
/// a vocabulary of the other kind.
fn takes_spaces(vocab: &GgufVocab, text: &str) -> bool {
    vocab.kind == "llama"
        && vocab.architecture.as_deref() == Some("phi3")
        && !["<unk>", "<s>", "<|endoftext|>"].contains(&text)
}

/// The model. Every merge must be of two tokens and give a third, or the library would panic.
fn bpe(
    vocab: &GgufVocab,
    merges: Merges,
    configure: impl FnOnce(BpeBuilder) -> BpeBuilder,
) -> Result<BPE, Error> {
    let ids = ids(vocab);
    let vocab: Vocab = ids.iter().map(|(text, id)| ((*text).to_owned(), *id)).collect();
    configure(BPE::builder().vocab_and_merges(vocab, merges))
        .build()
        .map_err(|error| refused(&*error))
}

#[cfg(test)]
mod tests;

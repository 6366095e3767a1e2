//! `Tokenizer`: text to ids and back. Encoding is the tokenizers library's; decoding joins the
//! bytes of the tokens, so that it is the same whole and in a stream.

use std::path::Path;

use crate::error::Error;
use crate::gguf::{self, GgufVocab};
use crate::pieces::{Pieces, Spelling};

/// Largest tokenizer.json, bytes. The largest known have 34 million.
const FILE_BYTES: u64 = 256 << 20;

/// Largest id: it sizes a table, so a wrong file must not choose it freely.
const MAX_ID: u32 = 1 << 22;

/// A model's tokenizer.
pub struct Tokenizer {
    /// `None`: it knows no text.
    inner: Option<tokenizers::Tokenizer>,
    pieces: Pieces,
    spelling: Spelling,
    bos: Option<u32>,
    ends: Ends,
}

/// Who adds the tokens that begin and end a text.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ends {
    /// The file's own post-processor.
    Inner,
    /// These.
    Ids(Option<u32>, Option<u32>),
}

/// A tokenizer with what its file says beside it.
pub(crate) struct Parts {
    pub(crate) inner: tokenizers::Tokenizer,
    pub(crate) pieces: Pieces,
    pub(crate) spelling: Spelling,
    pub(crate) bos: Option<u32>,
    pub(crate) ends: Ends,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A vocabulary is no use in a log.
        let (len, bos, spelling) = (self.vocab_len(), self.bos, self.spelling);
        write!(f, "Tokenizer {{ vocab_len: {len}, bos: {bos:?}, spelling: {spelling:?} }}")
    }
}

impl Tokenizer {
    /// Reads a tokenizer.json.
    pub fn from_json_file(path: &Path) -> Result<Self, Error> {
        let wrong = |what: String| Error::TokenizerFile {
            path: path.display().to_string(),
            what: what.replace('\n', " "),
        };
        let found = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
        if found.len() > FILE_BYTES {
            return Err(wrong(format!("has more than {FILE_BYTES} bytes")));
        }
        // The library panics at some merges that its own trainer would not write.
        let read = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_file(path));
        let read = read.map_err(|_| wrong("its merges make no tokens".to_owned()))?;
        let mut inner = read.map_err(|error| wrong(error.to_string()))?;
        // A file made for training would cut or fill up every text.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| wrong(error.to_string()))?;
        let decoder = serde_json::to_value(inner.get_decoder());
        let decoder = decoder.map_err(|error| wrong(error.to_string()))?;
        let spelling = Spelling::of_decoder(&decoder).map_err(&wrong)?;
        let pieces = pieces(&inner, spelling).map_err(wrong)?;
        let (inner, ends) = (Some(inner), Ends::Inner);
        let mut tokenizer = Self { inner, pieces, spelling, bos: None, ends };
        tokenizer.bos = tokenizer.added_first()?;
        Ok(tokenizer)
    }

    /// Builds one of the vocabulary of a GGUF file.
    #[expect(clippy::needless_pass_by_value, reason = "callers make it for the call")]
    pub fn from_gguf(vocab: GgufVocab) -> Result<Self, Error> {
        let Parts { inner, pieces, spelling, bos, ends } = gguf::parts(&vocab)?;
        Ok(Self { inner: Some(inner), pieces, spelling, bos, ends })
    }

    /// One for a model without a vocabulary: no text can be encoded, and the text of a token is
    /// its id, after a space.
    pub fn of_ids(vocab: usize) -> Result<Self, Error> {
        let ids = 0..vocab.min(MAX_ID as usize + 1);
        let texts: Vec<String> = ids.map(|id| format!("▁{id}")).collect();
        let texts: Vec<Option<&str>> = texts.iter().map(|text| Some(text.as_str())).collect();
        let spelling = Spelling::Sentence { drops_space: true };
        let pieces = Pieces::new(&texts, vec![false; texts.len()], spelling)?;
        Ok(Self { inner: None, pieces, spelling, bos: None, ends: Ends::Ids(None, None) })
    }

    /// Ids of a text. Special tokens that are written in it are recognised; `add_special` adds
    /// those that begin and end a text of this model.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Error> {
        let Some(tokenizer) = &self.inner else { return Err(Error::IdsAlone) };
        let inner = add_special && matches!(self.ends, Ends::Inner);
        let encoding = tokenizer.encode_fast(text, inner);
        let encoding = encoding.map_err(|error| Error::Encode(error.to_string()))?;
        let ids = encoding.get_ids();
        let (before, after) = match self.ends {
            Ends::Ids(before, after) if add_special => (before, after),
            _ => (None, None),
        };
        Ok(before.into_iter().chain(ids.iter().copied()).chain(after).collect())
    }

    /// Text of ids; U+FFFD where the bytes are no UTF-8, nothing for ids outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let kept = ids.iter().filter(|id| !(skip_special && self.is_special(**id)));
        let bytes: Vec<u8> = kept.flat_map(|id| self.bytes(*id)).copied().collect();
        let drops_space = self.spelling == Spelling::Sentence { drops_space: true };
        let bytes = match bytes.strip_prefix(b" ") {
            Some(rest) if drops_space => rest,
            _ => bytes.as_slice(),
        };
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Bytes of one token: of a special one its text; empty outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.bytes(id).to_vec()
    }

    /// Whether decoding leaves it out on demand.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// The special token with this text, if there is one.
    pub fn special(&self, text: &str) -> Option<u32> {
        let mut ids = 0..self.vocab_len() as u32;
        ids.find(|id| self.is_special(*id) && self.bytes(*id) == text.as_bytes())
    }

    /// Number of ids: one more than the largest.
    pub fn vocab_len(&self) -> usize {
        self.pieces.len()
    }

    /// Token that begins a text, if this model has one and its files say which.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that encoding puts first with `add_special`, if texts of the model begin with one.
    pub fn begins_with(&self) -> Option<u32> {
        match self.ends {
            Ends::Inner => self.bos,
            Ends::Ids(before, _) => before,
        }
    }

    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        self.pieces.get(id)
    }

    /// The token that encoding puts first. A tokenizer.json does not name it otherwise.
    fn added_first(&self) -> Result<Option<u32>, Error> {
        let (plain, whole) = (self.encode("a", false)?, self.encode("a", true)?);
        let added = whole.len() > plain.len() && whole.first() != plain.first();
        Ok(whole.first().copied().filter(|_| added))
    }
}

fn pieces(inner: &tokenizers::Tokenizer, spelling: Spelling) -> Result<Pieces, String> {
    let vocab = inner.get_vocab(true);
    let Some(largest) = vocab.values().copied().max() else {
        return Err("its vocabulary is empty".to_owned());
    };
    if largest > MAX_ID {
        return Err(format!("token id {largest} is larger than {MAX_ID}"));
    }
    let mut texts = vec![None; largest as usize + 1];
    for (text, id) in &vocab {
        texts[*id as usize] = Some(text.as_str());
    }
    let mut special = vec![false; texts.len()];
    for (id, token) in inner.get_added_tokens_decoder() {
        special[id as usize] = token.special;
    }
    Pieces::new(&texts, special, spelling).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(name: &str, text: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("kvant-text-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn tokenizer_json(merges: &[&str], decoder: &serde_json::Value) -> String {
        let vocab = json!({"a": 0, "b": 1, "ab": 4});
        let model = json!({"type": "BPE", "vocab": vocab, "merges": merges});
        let added = json!([
            {"id": 3, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true},
        ]);
        let padding = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0,
            "pad_type_id": 0, "pad_token": "a", "pad_to_multiple_of": null});
        let truncation = json!({"max_length": 1, "strategy": "LongestFirst", "stride": 0,
            "direction": "Right"});
        json!({
            "version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": decoder, "model": model, "padding": padding,
            "truncation": truncation,
        })
        .to_string()
    }

    #[test]
    fn wrong_files_are_refused_with_their_name() {
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true});
        let pieces = json!({"type": "WordPiece", "prefix": "#", "cleanup": true});
        for (name, text, expected) in [
            ("empty.json", String::new(), "EOF"),
            ("list.json", "[]".to_owned(), ""),
            ("merge.json", tokenizer_json(&["a c"], &bytes), "out of vocabulary"),
            ("long.json", tokenizer_json(&["ab ab"], &bytes), "merges make no tokens"),
            ("decoder.json", tokenizer_json(&["a b"], &pieces), "type WordPiece"),
            ("none.json", tokenizer_json(&["a b"], &json!(null)), "type none"),
        ] {
            let error = Tokenizer::from_json_file(&file(name, &text)).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(expected), "{name}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let missing = Tokenizer::from_json_file(Path::new("nowhere/tokenizer.json"));
        assert!(missing.unwrap_err().to_string().starts_with("nowhere/tokenizer.json: "));
    }

    #[test]
    fn without_a_vocabulary_the_text_of_a_token_is_its_id() {
        let tokenizer = Tokenizer::of_ids(2000).unwrap();
        assert_eq!((tokenizer.vocab_len(), tokenizer.begins_with()), (2000, None));
        assert_eq!(tokenizer.decode(&[0, 17, 1999], true), "0 17 1999");
        assert_eq!(tokenizer.token_bytes(256), b" 256");
        assert!(tokenizer.token_bytes(2000).is_empty());
        let error = tokenizer.encode("17", false).unwrap_err().to_string();
        assert!(error.contains("token ids") && !error.contains('\n'), "{error}");
        assert_eq!(Tokenizer::of_ids(usize::MAX).unwrap().vocab_len(), MAX_ID as usize + 1);
    }

    #[test]
    fn a_file_cuts_and_fills_no_text() {
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true});
        let path = file("fine.json", &tokenizer_json(&["a b"], &bytes));
        let tokenizer = Tokenizer::from_json_file(&path).unwrap();
        assert_eq!(tokenizer.encode("abba<s>", true).unwrap(), [4, 1, 0, 3]);
        assert_eq!((tokenizer.vocab_len(), tokenizer.bos()), (5, None));
        // No token has the id 2, and 5 is outside.
        assert_eq!(tokenizer.decode(&[4, 2, 3, 5], false), "ab<s>");
        assert!(tokenizer.token_bytes(2).is_empty() && tokenizer.token_bytes(5).is_empty());
        let line = format!("{tokenizer:?}");
        assert!(line.len() < 100, "{line}");
    }
}

//! `Gguf`: a validated GGUF file (version 2 or 3, little-endian): metadata by key, tensors by name.

mod config;
mod cursor;
mod names;
mod parse;
mod unpermute;
mod value;

#[cfg(test)]
pub(crate) mod build;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use value::{Array, Value};

use crate::{Bytes, Error, WeightDtype};

pub(crate) use config::{end_tokens, hf_config};
pub(crate) use names::hf_name;
pub(crate) use unpermute::unpermute_rows;

/// Metadata by key.
type Values = BTreeMap<String, Value>;

/// A GGUF file. Tensors stay where they are in `bytes`; metadata is copied out.
#[derive(Clone, Debug)]
pub struct Gguf {
    file: String,
    bytes: Bytes,
    values: Values,
    tensors: Vec<GgufTensor>,
}

/// A tensor of the list, its place checked against the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GgufTensor {
    /// Name in the file, e.g. `blk.0.attn_q.weight`.
    pub(crate) name: String,
    /// Number format.
    pub(crate) dtype: WeightDtype,
    /// Row-major, outermost first (the file has it the other way round).
    pub(crate) shape: Vec<usize>,
    /// First byte in the file.
    pub(crate) start: usize,
    /// Bytes of the tensor.
    pub(crate) length: usize,
}

impl Gguf {
    /// Reads and validates everything but the weights themselves; `file` is the name in messages.
    pub fn parse(bytes: Bytes, file: &str) -> Result<Self, Error> {
        let (values, tensors) = parse::parse(&bytes, file)?;
        Ok(Self { file: file.to_owned(), bytes, values, tensors })
    }

    /// Keys of the metadata, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// Value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Text of a key; `None` if absent or of another type, as in all getters.
    pub fn str(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number that is not negative, of any width.
    pub fn u64(&self, key: &str) -> Option<u64> {
        match *self.value(key)? {
            Value::U64(number) => Some(number),
            Value::I64(number) => number.try_into().ok(),
            _ => None,
        }
    }

    /// A number of any type.
    pub fn f64(&self, key: &str) -> Option<f64> {
        match *self.value(key)? {
            Value::U64(number) => Some(number as f64),
            Value::I64(number) => Some(number as f64),
            Value::F64(number) => Some(number),
            _ => None,
        }
    }

    /// A flag.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match *self.value(key)? {
            Value::Bool(flag) => Some(flag),
            _ => None,
        }
    }

    /// An array of texts.
    pub fn strings(&self, key: &str) -> Option<&[String]> {
        match self.value(key)? {
            Value::Strings(texts) => Some(texts),
            _ => None,
        }
    }

    /// An array of floats of any width.
    pub fn f32s(&self, key: &str) -> Option<Vec<f32>> {
        match self.value(key)? {
            Value::Array(array) => array.f32s(),
            _ => None,
        }
    }

    /// An array of whole numbers of any width that all fit.
    pub fn i32s(&self, key: &str) -> Option<Vec<i32>> {
        match self.value(key)? {
            Value::Array(array) => array.i32s(),
            _ => None,
        }
    }

    /// Name of the file, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// `general.architecture`, or nothing.
    pub fn architecture(&self) -> &str {
        self.str("general.architecture").unwrap_or_default()
    }

    pub(crate) fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Bytes of a tensor of this file, without a copy.
    pub(crate) fn tensor_bytes(&self, tensor: &GgufTensor) -> Bytes {
        let range = tensor.start..tensor.start + tensor.length;
        self.bytes.slice(range).expect("tensor ranges were checked when the file was parsed")
    }
}

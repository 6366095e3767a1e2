//! `Safetensors`: one validated file. The header is checked here before anything else sees it.

mod header;

#[cfg(test)]
pub(crate) mod build;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use crate::files::TensorView;
use crate::{Bytes, Error, WeightDtype};

/// A file of tensors.
#[derive(Clone, Debug)]
pub(crate) struct Safetensors {
    file: String,
    bytes: Bytes,
    tensors: BTreeMap<String, Stored>,
}

/// A tensor of the header, its place checked against the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    dtype: String,
    shape: Vec<usize>,
    /// Bytes of the file.
    range: Range<usize>,
}

impl Safetensors {
    /// Reads and validates the header; `file` is the name in messages.
    pub(crate) fn parse(bytes: Bytes, file: &str) -> Result<Self, Error> {
        let tensors = header::read(&bytes, file)?;
        Ok(Self { file: file.to_owned(), bytes, tensors })
    }

    /// Name of the file, for messages.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of a tensor, 0 if it is not here.
    pub(crate) fn tensor_bytes(&self, name: &str) -> u64 {
        self.tensors.get(name).map_or(0, |stored| stored.range.len() as u64)
    }

    /// A tensor whose format is served.
    pub(crate) fn tensor(&self, name: &str) -> Result<TensorView, Error> {
        let stored = self.tensors.get(name).ok_or_else(|| Error::missing(&self.file, name))?;
        let dtype = match stored.dtype.as_str() {
            "F32" => WeightDtype::F32,
            "F16" => WeightDtype::F16,
            "BF16" => WeightDtype::BF16,
            other => {
                let what = format!("has the type {other}; served from safetensors: F32, F16, BF16");
                return Err(Error::unsupported(&self.file, format!("tensor {name}"), what));
            }
        };
        let bytes = self.bytes.slice(stored.range.clone());
        let bytes = bytes.expect("tensor ranges were checked when the header was read");
        Ok(TensorView { dtype, shape: stored.shape.clone(), bytes })
    }
}

/// A JSON object whose keys are all different; serde_json alone would keep the last of two.
#[derive(Debug)]
pub(crate) struct UniqueKeys<V>(pub(crate) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueKeys<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Object<V> {
            type Value = UniqueKeys<V>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut values = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value()?;
                    if values.contains_key(&key) {
                        return Err(A::Error::custom(format!("key {key:?} is there twice")));
                    }
                    values.insert(key, value);
                }
                Ok(UniqueKeys(values))
            }
        }
        deserializer.deserialize_map(Object(PhantomData))
    }
}

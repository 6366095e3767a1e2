//! `Cursor`: reads little-endian values out of untrusted bytes; never past their end.

use super::value::{Array, Kind, Value};
use crate::{Bytes, Error};

/// Most elements of a metadata array: a vocabulary has some 260 thousand.
pub(super) const ARRAY_ELEMENTS: u64 = 1 << 24;

/// Longest key or tensor name, bytes: those of models have some thirty.
pub(super) const NAME_BYTES: u64 = 1 << 10;

/// A place in the bytes of a file.
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a Bytes,
    pub(super) at: usize,
    pub(super) file: &'a str,
}

impl Cursor<'_> {
    /// An error at the current place.
    pub(super) fn malformed(&self, what: impl Into<String>) -> Error {
        Error::malformed(self.file, format!("byte {}", self.at), what)
    }

    fn take(&mut self, count: usize, what: &str) -> Result<&[u8], Error> {
        let left = self.bytes.len() - self.at;
        if count > left {
            return Err(self.malformed(format!("{what} needs {count} bytes, {left} are left")));
        }
        let start = self.at;
        self.at += count;
        Ok(&self.bytes[start..self.at])
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Error> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Error> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes were taken")))
    }

    /// A count of things of at least `least_bytes` each: refused before anything is allocated for
    /// them if the rest of the file cannot hold so many, or if it is above `most`.
    pub(super) fn count(
        &mut self,
        what: &str,
        least_bytes: usize,
        most: u64,
    ) -> Result<usize, Error> {
        let place = self.at;
        let count = self.u64(what)?;
        let room = (self.bytes.len() - self.at) / least_bytes;
        if count > most || count > room as u64 {
            let limit = most.min(room as u64);
            let what = format!("{what} is {count}; the file has room for at most {limit}");
            return Err(Error::malformed(self.file, format!("byte {place}"), what));
        }
        Ok(count as usize)
    }

    /// UTF-8 text after its length.
    pub(super) fn text(&mut self, what: &str) -> Result<String, Error> {
        self.text_within(what, u64::MAX)
    }

    /// A key or a tensor's name: short and printable, since it goes into messages.
    pub(super) fn name(&mut self, what: &str) -> Result<String, Error> {
        let name = self.text_within(what, NAME_BYTES)?;
        if name.is_empty() || name.contains(char::is_control) {
            return Err(self.malformed(format!("{what} is empty or has control characters")));
        }
        Ok(name)
    }

    fn text_within(&mut self, what: &str, most: u64) -> Result<String, Error> {
        let length = self.count(&format!("length of {what}"), 1, most)?;
        let place = self.at;
        let bytes = self.take(length, what)?;
        let text = std::str::from_utf8(bytes).map(str::to_owned);
        text.map_err(|_| {
            Error::malformed(self.file, format!("byte {place}"), format!("{what} is not UTF-8"))
        })
    }

    /// A metadata value after its type.
    pub(super) fn value(&mut self, key: &str) -> Result<Value, Error> {
        match self.kind(key)? {
            Kind::Str => Ok(Value::Str(self.text(key)?)),
            Kind::Array => self.array(key),
            kind => {
                let scalar = kind.scalar(self.take(kind.least_bytes(), key)?);
                scalar.ok_or_else(|| self.malformed(format!("{key} is a flag, neither 0 nor 1")))
            }
        }
    }

    fn kind(&mut self, key: &str) -> Result<Kind, Error> {
        let id = self.u32(key)?;
        Kind::from_id(id).ok_or_else(|| self.malformed(format!("{key} has the unknown type {id}")))
    }

    fn array(&mut self, key: &str) -> Result<Value, Error> {
        let kind = self.kind(key)?;
        if kind == Kind::Array {
            return Err(
                self.malformed(format!("{key} is an array of arrays, which no model needs"))
            );
        }
        let least = kind.least_bytes();
        let count = self.count(&format!("elements of {key}"), least, ARRAY_ELEMENTS)?;
        if kind == Kind::Str {
            // Not all at once: a text takes three times the bytes of the shortest encoding.
            let mut texts = Vec::new();
            for _ in 0..count {
                texts.push(self.text(key)?);
            }
            return Ok(Value::Strings(texts));
        }
        let start = self.at;
        let flags = self.take(count * least, key)?;
        if kind == Kind::Bool && flags.iter().any(|&flag| flag > 1) {
            return Err(self.malformed(format!("{key} has a flag that is neither 0 nor 1")));
        }
        let bytes = self.bytes.slice(start..self.at).expect("these bytes were taken");
        Ok(Value::Array(Array { kind, bytes }))
    }
}

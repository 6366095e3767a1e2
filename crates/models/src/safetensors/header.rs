//! The header of a safetensors file: eight bytes of length, then one JSON object of tensors, then
//! their bytes.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::{Stored, UniqueKeys};
use crate::Error;

/// Longest header, bytes; the format's own limit.
pub(super) const HEADER_BYTES: u64 = 100_000_000;
/// Most dimensions of a tensor.
pub(super) const RANK: usize = 8;

const LENGTH_BYTES: usize = 8;

/// One tensor as written; offsets count from the end of the header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The object: tensors by name, and notes under `__metadata__`, which are checked and dropped.
struct Header(BTreeMap<String, Entry>);

/// Tensors by name, their ranges counted from the start of the file.
pub(super) fn read(bytes: &[u8], file: &str) -> Result<BTreeMap<String, Stored>, Error> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        let what = format!("the file has {} bytes, no header fits", bytes.len());
        return Err(Error::malformed(file, "byte 0", what));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES || length > rest.len() as u64 {
        let most = HEADER_BYTES.min(rest.len() as u64);
        let what = format!("the header is {length} bytes long, at most {most} are possible");
        return Err(Error::malformed(file, "byte 0", what));
    }
    let (json, weights) = rest.split_at(length as usize);
    if json.first() != Some(&b'{') {
        return Err(Error::malformed(file, "byte 8", "the header is no JSON object"));
    }
    let Header(entries) = serde_json::from_slice(json).map_err(|error| {
        let place = format!("header line {} column {}", error.line(), error.column());
        Error::malformed(file, place, error.to_string())
    })?;
    let first = LENGTH_BYTES + length as usize;
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries {
        let stored = stored(entry, first, weights.len())
            .map_err(|what| Error::malformed(file, format!("tensor {name:?}"), what))?;
        tensors.insert(name, stored);
    }
    without_gaps(&tensors, file, first..bytes.len())?;
    Ok(tensors)
}

/// Checks one tensor by itself.
fn stored(entry: Entry, first: usize, weight_bytes: usize) -> Result<Stored, String> {
    let Entry { dtype, shape, data_offsets: (start, stop) } = entry;
    let bits = bits(&dtype).ok_or_else(|| format!("has the unknown type {dtype:?}"))?;
    if shape.len() > RANK {
        return Err(format!("has {} dimensions, at most {RANK} are possible", shape.len()));
    }
    if start > stop || stop > weight_bytes as u64 {
        return Err(format!("is at {start}..{stop} of {weight_bytes} bytes of weights"));
    }
    let bits = shape.iter().try_fold(bits, |product, &size| product.checked_mul(size));
    if bits.is_none_or(|bits| !bits.is_multiple_of(8) || bits / 8 != stop - start) {
        return Err(format!("of shape {shape:?} and type {dtype} is not {} bytes", stop - start));
    }
    // A shape with a zero can have other sizes of any magnitude.
    let shape = shape.into_iter().map(usize::try_from).collect::<Result<_, _>>();
    let shape = shape.map_err(|_| "has an impossible dimension".to_owned())?;
    Ok(Stored { dtype, shape, range: first + start as usize..first + stop as usize })
}

/// Checks that the tensors, one after the other, are all the bytes after the header.
fn without_gaps(
    tensors: &BTreeMap<String, Stored>,
    file: &str,
    weights: std::ops::Range<usize>,
) -> Result<(), Error> {
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|(_, stored)| (stored.range.start, stored.range.end));
    let mut at = weights.start;
    for (name, stored) in sorted {
        if stored.range.start != at {
            let what = format!("starts at byte {}, expected at {at}", stored.range.start);
            return Err(Error::malformed(file, format!("tensor {name:?}"), what));
        }
        at = stored.range.end;
    }
    if at != weights.end {
        let what = format!("the file goes on to byte {} after the last tensor", weights.end);
        return Err(Error::malformed(file, format!("byte {at}"), what));
    }
    Ok(())
}

/// Bits of an element of every type of the format.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut tensors = BTreeMap::new();
        let mut noted = false;
        while let Some(name) = map.next_key::<String>()? {
            let again = if name == "__metadata__" {
                map.next_value::<UniqueKeys<String>>()?;
                std::mem::replace(&mut noted, true)
            } else {
                let again = tensors.contains_key(&name);
                tensors.insert(name.clone(), map.next_value::<Entry>()?);
                again
            };
            if again {
                return Err(A::Error::custom(format!("key {name:?} is there twice")));
            }
        }
        Ok(Header(tensors))
    }
}

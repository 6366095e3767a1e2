//! From bytes to the parts of a `Gguf`: every count, length and offset is checked before use.

use std::collections::HashSet;

use super::cursor::Cursor;
use super::{GgufTensor, Value, Values};
use crate::{Bytes, Error, WeightDtype};

/// Most metadata keys: models have some thirty.
pub(super) const KEYS: u64 = 1 << 16;
/// Most tensors: the largest models have some two thousand.
pub(super) const TENSORS: u64 = 1 << 16;
/// Largest alignment of tensors, bytes.
pub(super) const ALIGNMENT_BYTES: u64 = 1 << 20;

/// Length of a key, one letter, a type and the smallest value.
const LEAST_KEY_BYTES: usize = 8 + 1 + 4 + 1;
/// Length of a name, one letter, the number of dimensions, one of them, type and offset.
const LEAST_TENSOR_BYTES: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// A tensor as listed; its offset counts from the start of the tensor data, which is known only
/// after the list.
struct Listed {
    name: String,
    dtype: WeightDtype,
    shape: Vec<usize>,
    offset: u64,
    length: usize,
}

/// Metadata and tensors of a file.
pub(super) fn parse(bytes: &Bytes, file: &str) -> Result<(Values, Vec<GgufTensor>), Error> {
    let mut cursor = Cursor { bytes, at: 0, file };
    version(&mut cursor)?;
    let tensor_count = cursor.count("number of tensors", LEAST_TENSOR_BYTES, TENSORS)?;
    let key_count = cursor.count("number of metadata keys", LEAST_KEY_BYTES, KEYS)?;
    let values = metadata(&mut cursor, key_count)?;
    whole_file(&values, file)?;
    let alignment = alignment(&values, file)?;
    let mut names = HashSet::new();
    let mut listed = Vec::new();
    for _ in 0..tensor_count {
        let tensor = tensor(&mut cursor)?;
        if !names.insert(tensor.name.clone()) {
            return Err(cursor.malformed(format!("tensor {} is listed twice", tensor.name)));
        }
        listed.push(tensor);
    }
    let tensors = place(&cursor, listed, alignment)?;
    Ok((values, tensors))
}

fn version(cursor: &mut Cursor<'_>) -> Result<(), Error> {
    let magic = cursor.u32("the magic number")?;
    if magic != u32::from_le_bytes(*b"GGUF") {
        return Err(Error::malformed(cursor.file, "byte 0", "is no GGUF file: it lacks the magic"));
    }
    let version = cursor.u32("the version")?;
    if version.swap_bytes() < 1 << 8 && version > 3 {
        let what = "is big-endian; convert it to little-endian";
        return Err(Error::unsupported(cursor.file, "version", what));
    }
    if !(2..=3).contains(&version) {
        let what = format!("is {version}; 2 and 3 are served, convert the model again");
        return Err(Error::unsupported(cursor.file, "version", what));
    }
    Ok(())
}

fn metadata(cursor: &mut Cursor<'_>, count: usize) -> Result<Values, Error> {
    let mut values = Values::new();
    for _ in 0..count {
        let key = cursor.name("a metadata key")?;
        let value = cursor.value(&key)?;
        if values.contains_key(&key) {
            return Err(cursor.malformed(format!("metadata key {key} is there twice")));
        }
        values.insert(key, value);
    }
    Ok(values)
}

/// Refuses one part of a model that is split over several files.
fn whole_file(values: &Values, file: &str) -> Result<(), Error> {
    match values.get("split.count") {
        None | Some(Value::U64(0 | 1) | Value::I64(0 | 1)) => Ok(()),
        Some(_) => {
            let what = "is one part of a split model; join the parts (llama-gguf-split --merge)";
            Err(Error::unsupported(file, "split.count", what))
        }
    }
}

fn alignment(values: &Values, file: &str) -> Result<u64, Error> {
    let key = "general.alignment";
    match values.get(key) {
        None => Ok(32),
        Some(&Value::U64(bytes)) if bytes.is_power_of_two() && bytes <= ALIGNMENT_BYTES => {
            Ok(bytes)
        }
        Some(_) => {
            let what = format!("is not a power of two within 1..={ALIGNMENT_BYTES}");
            Err(Error::malformed(file, key, what))
        }
    }
}

fn tensor(cursor: &mut Cursor<'_>) -> Result<Listed, Error> {
    let name = cursor.name("a tensor's name")?;
    let rank = cursor.u32(&name)?;
    if !(1..=4).contains(&rank) {
        return Err(cursor.malformed(format!("tensor {name} has {rank} dimensions, not 1 to 4")));
    }
    let mut shape = Vec::new();
    for _ in 0..rank {
        match usize::try_from(cursor.u64(&name)?) {
            Ok(size) if size > 0 => shape.insert(0, size),
            _ => return Err(cursor.malformed(format!("tensor {name} has an impossible dimension"))),
        }
    }
    let id = cursor.u32(&name)?;
    let dtype = WeightDtype::from_gguf_id(id).ok_or_else(|| {
        let what =
            format!("has the weight type {}; served: {}", dtype_name(id), WeightDtype::served());
        Error::unsupported(cursor.file, format!("tensor {name}"), what)
    })?;
    let length = length(&shape, dtype)
        .map_err(|what| cursor.malformed(format!("tensor {name} of shape {shape:?} {what}")))?;
    let offset = cursor.u64(&name)?;
    Ok(Listed { name, dtype, shape, offset, length })
}

/// Bytes of a tensor whose rows are whole blocks.
fn length(shape: &[usize], dtype: WeightDtype) -> Result<usize, String> {
    let too_large = || "is too large".to_owned();
    let columns = shape.last().copied().unwrap_or(1);
    if !columns.is_multiple_of(dtype.block_elements()) {
        return Err(format!("has rows that are no whole blocks of {}", dtype.block_elements()));
    }
    let elements = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    dtype.bytes(elements.ok_or_else(too_large)?).ok_or_else(too_large)
}

/// Checks that tensors are aligned, within the file, and apart from each other.
fn place(cursor: &Cursor<'_>, listed: Vec<Listed>, align: u64) -> Result<Vec<GgufTensor>, Error> {
    let end = cursor.bytes.len();
    let first = (cursor.at as u64).next_multiple_of(align);
    let mut tensors = Vec::new();
    for Listed { name, dtype, shape, offset, length } in listed {
        let start = first.checked_add(offset).and_then(|start| usize::try_from(start).ok());
        let stop = start.and_then(|start| start.checked_add(length));
        let (Some(start), Some(stop)) = (start, stop) else {
            return Err(Error::malformed(
                cursor.file,
                format!("tensor {name}"),
                "has an impossible offset",
            ));
        };
        if !offset.is_multiple_of(align) || stop > end {
            let what = format!(
                "is at offset {offset}, alignment {align}: bytes {start}..{stop} of a file of {end}"
            );
            return Err(Error::malformed(cursor.file, format!("tensor {name}"), what));
        }
        tensors.push(GgufTensor { name, dtype, shape, start, length });
    }
    apart(cursor.file, &tensors)?;
    Ok(tensors)
}

fn apart(file: &str, tensors: &[GgufTensor]) -> Result<(), Error> {
    let mut sorted: Vec<&GgufTensor> = tensors.iter().collect();
    sorted.sort_by_key(|tensor| tensor.start);
    for pair in sorted.windows(2) {
        if pair[0].start + pair[0].length > pair[1].start {
            let what = format!("overlaps tensor {}", pair[0].name);
            return Err(Error::malformed(file, format!("tensor {}", pair[1].name), what));
        }
    }
    Ok(())
}

/// Names of the types that are met in files but not served.
fn dtype_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24..=28 => return format!("{id} (integers or f64)"),
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("{id} (unknown)"),
    };
    name.to_owned()
}

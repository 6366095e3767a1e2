//! `Value`: one metadata value. Numeric arrays stay in the file and are converted when asked for.

use crate::Bytes;

/// A metadata value. Numbers of all widths become the widest of their kind.
#[derive(Clone, Debug)]
pub enum Value {
    /// u8, u16, u32, u64.
    U64(u64),
    /// i8, i16, i32, i64.
    I64(i64),
    /// f32, f64.
    F64(f64),
    /// A flag.
    Bool(bool),
    /// UTF-8 text.
    Str(String),
    /// An array of texts.
    Strings(Vec<String>),
    /// An array of numbers or flags.
    Array(Array),
}

/// An array of numbers or flags as it is in the file.
#[derive(Clone, Debug)]
pub struct Array {
    pub(super) kind: Kind,
    pub(super) bytes: Bytes,
}

/// Type of a value, by its id in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const BY_ID: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Str,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    pub(super) fn from_id(id: u32) -> Option<Self> {
        Self::BY_ID.get(id as usize).copied()
    }

    /// Bytes of a number or flag; smallest possible bytes of a text (its length) or array (type and
    /// count).
    pub(super) fn least_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Str => 8,
            Self::Array => 12,
        }
    }

    /// Number or flag from exactly `least_bytes` bytes; `None` for a flag that is neither 0 nor 1.
    pub(super) fn scalar(self, bytes: &[u8]) -> Option<Value> {
        Some(match self {
            Self::U8 => Value::U64(bytes[0].into()),
            Self::I8 => Value::I64(bytes[0].cast_signed().into()),
            Self::U16 => Value::U64(u16::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I16 => Value::I64(i16::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::U32 => Value::U64(u32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I32 => Value::I64(i32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::F32 => Value::F64(f32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::U64 => Value::U64(u64::from_le_bytes(bytes.try_into().ok()?)),
            Self::I64 => Value::I64(i64::from_le_bytes(bytes.try_into().ok()?)),
            Self::F64 => Value::F64(f64::from_le_bytes(bytes.try_into().ok()?)),
            Self::Bool if bytes[0] <= 1 => Value::Bool(bytes[0] == 1),
            Self::Bool | Self::Str | Self::Array => return None,
        })
    }
}

impl Array {
    /// Elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.kind.least_bytes()
    }

    /// No elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements, one by one.
    pub fn values(&self) -> impl Iterator<Item = Value> {
        let scalars = self.bytes.chunks_exact(self.kind.least_bytes());
        scalars.filter_map(|bytes| self.kind.scalar(bytes))
    }

    /// All elements as floats; `None` if they are something else.
    pub fn f32s(&self) -> Option<Vec<f32>> {
        let float = |value| match value {
            Value::F64(number) => Some(number as f32),
            _ => None,
        };
        self.values().map(float).collect()
    }

    /// All elements as whole numbers; `None` if they are something else or one does not fit.
    pub fn i32s(&self) -> Option<Vec<i32>> {
        let whole = |value| match value {
            Value::U64(number) => number.try_into().ok(),
            Value::I64(number) => number.try_into().ok(),
            _ => None,
        };
        self.values().map(whole).collect()
    }
}

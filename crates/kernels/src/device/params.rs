//! Arguments of the kernels, field by field as in `device/params.h`; a test compares sizes and
//! offsets. Every field is of 4 bytes.

use kvant_turboquant::{Rotation, ScaleRule};

/// What a struct of arguments is to a device: a row of words.
pub trait Params {
    /// Name of the struct in the dialect.
    const NAME: &'static str;
    /// Name, offset and size of every field, in bytes.
    const FIELDS: &'static [(&'static str, usize, usize)];

    /// The fields in the order of memory.
    fn words(&self) -> Vec<u32>;
}

/// A field: how it becomes words.
trait Field {
    fn push(&self, words: &mut Vec<u32>);
}

impl Field for u32 {
    fn push(&self, words: &mut Vec<u32>) {
        words.push(*self);
    }
}

impl Field for f32 {
    fn push(&self, words: &mut Vec<u32>) {
        words.push(self.to_bits());
    }
}

impl<const N: usize> Field for [u32; N] {
    fn push(&self, words: &mut Vec<u32>) {
        words.extend(self);
    }
}

macro_rules! params {
    ($(#[$about:meta])* $name:ident as $c_name:literal {
        $($(#[$field_about:meta])* $field:ident: $type:ty,)*
    }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_about])* pub $field: $type,)*
        }

        impl Params for $name {
            const NAME: &'static str = $c_name;
            const FIELDS: &'static [(&'static str, usize, usize)] = &[$((
                stringify!($field),
                std::mem::offset_of!($name, $field),
                std::mem::size_of::<$type>(),
            ),)*];

            fn words(&self) -> Vec<u32> {
                let mut words = Vec::new();
                $(self.$field.push(&mut words);)*
                words
            }
        }
    };
}

mod ops;

pub use ops::{
    AnglesParams, BiasParams, CastParams, GateParams, LookupParams, MatvecParams, NormParams,
    PickParams, PlaceParams, SampleParams, SampleRowParams, SkinnyParams, SoftCapParams,
    SplitParams,
};

params! {
    /// Of `rotate` and `restore`.
    RotateParams as "KvRotateParams" {
        /// Signs of the rotation, `sign_words`.
        signs: [u32; 8],
        /// Vectors to take.
        vectors: u32,
    }
}

params! {
    /// Of `encode` and `gather`: pages between a dense layout and tiles. A dense vector is at
    /// page · page_stride + head · head_stride + slot · token_stride, in numbers.
    PagesParams as "KvPagesParams" {
        /// Signs of the keys' rotation.
        key_signs: [u32; 8],
        /// Signs of the values' rotation.
        value_signs: [u32; 8],
        /// Tokens from the first page's first slot on; later slots are zero vectors.
        tokens: u32,
        /// Key heads.
        kv_heads: u32,
        /// Numbers from one dense page to the next.
        page_stride: u32,
        /// Numbers from one head to the next.
        head_stride: u32,
        /// Numbers from one token to the next.
        token_stride: u32,
        /// `rule_code` of the keys' scale rule.
        key_rule: u32,
        /// `rule_code` of the values' scale rule.
        value_rule: u32,
        /// 1: nothing that is read was written by the last launch or the one before it, and
        /// neither is anything else than `encode` of other tiles; it may run beside them.
        apart: u32,
    }
}

params! {
    /// Consecutive query tokens of one sequence.
    RowParams as "KvRow" {
        /// Index of the first among all query tokens.
        query: u32,
        /// Number of query tokens.
        tokens: u32,
        /// Position of the first.
        position: u32,
        /// Where its packed pages begin in the list of pages.
        packed_at: u32,
        /// Packed pages, from position 0 on.
        packed: u32,
        /// Where its 16-bit pages begin in the list of pages.
        tail_at: u32,
    }
}

params! {
    /// A part of the attention of a row: some of its packed pages. The parts of a row are
    /// neighbours in their list, in order; the last one takes the 16-bit tokens too. One with
    /// `parts` 0 is nothing.
    PartParams as "KvPart" {
        /// Index of the row's first query token among all query tokens.
        query: u32,
        /// Query tokens of the row.
        tokens: u32,
        /// Position of the first.
        position: u32,
        /// Which part of the row this is.
        part: u32,
        /// How many the row has.
        parts: u32,
        /// Index of the part's first packed page in the row.
        first: u32,
        /// Packed pages of the part.
        pages: u32,
        /// Where they begin in the list of pages.
        pages_at: u32,
        /// Packed pages of the row, from position 0 on.
        packed: u32,
        /// Where the 16-bit pages with what follows begin in the list of pages.
        tail_at: u32,
        /// Tokens from position 0 on that are read from a 16-bit page instead.
        sinks: u32,
        /// That page.
        sink_page: u32,
        /// Where `[tokens, position + tokens]` of the row begins in the mask, or `NO_MASK`.
        mask_at: u32,
        /// The first packed pages of the part, and
        ahead: [u32; 4],
        /// the first page of the tail: what the lists say too, for a group's first reads.
        tail_page: u32,
    }
}

params! {
    /// Of `attend` and `combine`.
    AttendParams as "KvAttendParams" {
        /// Signs of the keys' rotation, `sign_words`.
        key_signs: [u32; 8],
        /// Signs of the values' rotation.
        value_signs: [u32; 8],
        /// Query heads; a multiple of the key heads.
        q_heads: u32,
        /// Key heads.
        kv_heads: u32,
        /// Stride of partial results: the most query tokens of any row.
        tokens: u32,
        /// A token sees this many tokens including itself; 0 sees all.
        window: u32,
        /// 1: one logit a query head takes weight and gives no value.
        sink_logits: u32,
        /// Factor of q·k.
        scale: f32,
        /// Scores become cap · tanh(score / cap), before the mask; 0 leaves them.
        soft_cap: f32,
        /// Of results: 0 those of queries, 1 `F16`, 2 `BF16`.
        numbers: u32,
    }
}

params! {
    /// Of `append`.
    AppendParams as "KvAppendParams" {
        /// New tokens.
        tokens: u32,
        /// Key heads.
        kv_heads: u32,
        /// Of every token: 1, or 2 with the other places and pages.
        targets: u32,
    }
}

params! {
    /// Consecutive query tokens of one sequence, all of whose pages are of 16 bits.
    DenseRowParams as "KvDenseRow" {
        /// Index of the first among all query tokens.
        query: u32,
        /// Number of query tokens; 0 for a row that is not used.
        tokens: u32,
        /// Position of the first.
        position: u32,
        /// Where its pages begin in the list of pages, that of position 0 first.
        pages_at: u32,
    }
}

params! {
    /// Of `attend_dense` and `merge`.
    DenseParams as "KvDenseParams" {
        /// Query heads; a multiple of the key heads.
        q_heads: u32,
        /// Key heads.
        kv_heads: u32,
        /// In how many parts the pages of a row are taken.
        parts: u32,
        /// Query vectors of a group, a multiple of 16.
        block: u32,
        /// A token sees this many tokens including itself; 0 sees all.
        window: u32,
        /// Factor of q·k.
        scale: f32,
        /// Scores become cap · tanh(score / cap); 0 leaves them.
        soft_cap: f32,
        /// Of results: 0 f32, 1 `F16`, 2 `BF16`.
        numbers: u32,
    }
}

/// Signs of a rotation as the kernels take them: bit d mod 32 of word d / 32 is 1 for minus. None
/// of a full matrix, which is a buffer of its own.
///
/// # Panics
/// If the rotation is larger than 256.
pub fn sign_words(rotation: &Rotation) -> [u32; 8] {
    let mut words = [0; 8];
    for (d, sign) in rotation.signs().unwrap_or_default().iter().enumerate() {
        words[d / 32] |= u32::from(*sign < 0.0) << (d % 32);
    }
    words
}

/// A scale rule as the kernels take it.
pub fn rule_code(rule: ScaleRule) -> u32 {
    match rule {
        ScaleRule::Plain => 0,
        ScaleRule::Matched => 1,
        ScaleRule::LeastSquares => 2,
        ScaleRule::Unbiased => 3,
    }
}

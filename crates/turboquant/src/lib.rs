//! The TurboQuant codec of keys and values, on slices: no device, no server.
//!
//! A vector (one token, one key head) is rotated by a random orthogonal matrix, after which its
//! coordinates look like independent normal numbers; each becomes a short code of a fixed table,
//! and one 16-bit scale stays beside the codes. `docs/turboquant.md` explains the codec with its
//! formulas. The functions here define the result; `kvant-kernels` computes the same faster.

mod codebook;
mod codec;
mod error;
mod page;
mod qjl;
mod rotation;
mod scale;
mod signs;
mod tables;
mod width;

pub use codebook::Codebook;
pub use codec::{Codec, Encoded};
pub use error::{Error, NonFinite};
pub use page::{KeyPlane, PAGE_TOKENS, PageLayout, ValuePlane, width_pairs};
pub use qjl::{Qjl, Sketched, SketchedQuery};
pub use rotation::{Rotated, Rotation};
pub use scale::ScaleRule;
pub use signs::{Key, Side};
pub use tables::{LEVELS, LLOYD_MAX, UNITS};
pub use width::{Width, Widths};

//! Where keys and values live: pages, formats, staging.
//!
//! [`PagePool`] counts pages, [`PageStore`] owns their memory, [`Staging`] keeps the 16-bit keys
//! and values of prompts still in prefill, [`decide`] says how each layer is kept and why. Knows
//! pages and numbers; never a model, prompt text or the order of work.

mod dense;
mod device;
mod eligibility;
mod error;
mod format;
mod layout;
mod loans;
mod packed;
mod pages;
mod reference;
mod signature;
mod snapshot;
mod staging;
mod store;

pub use device::{Chunk, DeviceAttention, DeviceRoom, DeviceStore, StepLayout};
pub use eligibility::{
    LayerTraits, Preset, Reason, Wish, WishError, average_bits, bits, decide, layer_presets,
    scale_rule,
};
pub use error::Error;
pub use format::{CacheLayer, CacheShape, Format, LayerShape, pages_for};
pub use kvant_kernels::PAGE_TOKENS;
pub use layout::{BatchLayout, Mask};
pub use pages::{PageId, PageList, PagePool};
pub use reference::{ReferenceParams, attend_reference};
pub use signature::Signature;
pub use staging::Staging;
pub use store::{Conversions, PageStore, Row, Span, Tiles};

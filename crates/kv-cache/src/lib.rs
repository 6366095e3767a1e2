//! Where keys and values live: pages, formats, staging.
//!
//! [`PagePool`] counts pages, [`PageStore`] owns their memory, [`Staging`] keeps the 16-bit keys
//! and values of prompts still in prefill, [`formats`] says how each layer is kept and why. Knows
//! pages and numbers; never a model, prompt text or the order of work.

mod dense;
mod error;
mod format;
mod pages;
mod staging;
mod store;

pub use error::Error;
pub use format::{
    CacheShape, Format, LayerShape, Reason, bytes_per_token, formats, page_bytes, pages_for,
};
pub use kvant_kernels::PAGE_TOKENS;
pub use pages::{PageId, PageList, PagePool};
pub use staging::Staging;
pub use store::{PageStore, RowSlot};

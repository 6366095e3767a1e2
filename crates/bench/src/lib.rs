//! Measurements through the engine's door: `offline` runs one `Load` and gives one `Row`, a `Table`
//! shows the rows.
//!
//! Knows token ids only: no text, no files, no HTTP.

mod offline;
mod table;

pub use offline::{Load, Row, offline};
pub use table::Table;

//! Measurements: `offline` runs one `Load` through the engine's door and gives one `Row`, a `Table`
//! shows the rows; `kernels` runs the cache's kernels alone and gives a `KernelTable`.
//!
//! Knows token ids only: no text, no files, no HTTP.

mod kernels;
mod offline;
mod quality;
mod random;
mod table;

pub use kernels::{HeadShape, KernelLoad, KernelTable, NamedWidths, kernels};
pub use offline::{Load, Row, offline};
pub use quality::{Candidate, QualityLoad, QualityRow, markdown, quality};
pub use table::Table;

//! Measurements: `offline` runs one `Load` through the engine's door and gives one `Row`, a `Table`
//! shows the rows; `kernels` runs the cache's kernels alone and gives a `KernelTable`; `quality`,
//! `needles` and `occupancy` hold caches against the 16-bit one; `check_cache` and `agreement`
//! hold a GPU against the CPU; `Served` is the arithmetic on what
//! a client of a server saw.
//!
//! Knows token ids only: no text, no files, no HTTP.

mod doctor;
mod kernels;
mod needle;
mod occupancy;
mod offline;
mod quality;
pub mod random;
mod served;
mod stats;
mod table;

pub use doctor::{
    Agreement, Check, PairLoad, agreement, ahead_agreement, check_cache, check_model,
    model_agreement, processor_path, replay_agreement, sample_requests,
};
pub use kernels::{HeadShape, KernelLoad, KernelTable, NamedWidths, kernels};
pub use needle::{
    DepthScore, Draw, Needle, NeedleRow, Score, Sentence, draws, hide, needle_markdown, needles,
};
pub use occupancy::{OccupancyRow, converting_bytes, occupancy, occupancy_markdown};
pub use offline::{Case, Load, Row, offline};
pub use quality::{Candidate, QualityLoad, QualityRow, markdown, quality, with_dense};
pub use served::{Answer, Bounds, Failure, Failures, Goodput, Served};
pub use stats::Spread;
pub use table::Table;

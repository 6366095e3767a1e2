//! Device operations on slices and tensors, and their CPU twins.
//!
//! A kernel knows numbers and shapes, never a sequence, a request or a model. The result of a row
//! never depends on its neighbours or on the number of threads.

pub mod cpu;
pub mod device;
mod stash;

pub use kvant_turboquant::PAGE_TOKENS;
pub use stash::{Stash, of_length};

//! Keys and values in the memory of a GPU: page numbers, formats and semantics of `PageStore` and
//! `Staging`.
//!
//! What differs is when things are said: a step's rows are laid out as lists and uploaded once, by
//! [`DeviceStore::begin`], and every layer's kernels read them there. A layer of 16 bits needs no
//! staging: prompts are written to its pages at once. A prompt's last page goes to the tail as its
//! tokens come, so that nothing is copied when the prompt is complete.

mod lists;
mod packed;
mod pages;
mod scratch;
mod store;

pub use lists::Chunk;
pub use store::{DeviceAttention, DeviceRoom, DeviceStore, StepLayout};

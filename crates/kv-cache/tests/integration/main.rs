//! Tests of the cache from outside, one binary.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

mod layout;
mod occupancy;
mod oracle;
mod random;
mod random_ops;
mod reference;
mod snapshots;
mod staging;
mod world;

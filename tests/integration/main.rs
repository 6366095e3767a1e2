//! Integration tests of the root package, one binary: the built `kvant` from outside, and the rules
//! of the tree.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

mod cli;
mod client;
#[cfg(any(feature = "cuda", feature = "metal"))]
mod device;
mod eval;
mod http;
mod load;
mod real;
mod server;
mod tidy;
mod words;

//! Integration tests of the root package, one binary: the built `kvant` from outside, and the rules
//! of the tree.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

mod aborts;
mod cli;
mod client;
#[cfg(any(feature = "cuda", feature = "metal"))]
mod device;
mod eval;
mod guided;
mod http;
mod load;
mod production;
mod real;
mod server;
mod tidy;
mod words;

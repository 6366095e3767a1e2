//! The server over real connections, with an engine that says its prompt again and stops when told.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

mod access;
mod client;
mod embeddings;
mod endpoints;
mod errors;
mod leaving;
mod messages;
mod page;
mod responses;
mod scores;
mod script;
mod server;
mod status;
mod streams;
mod strict;
mod time;
mod tools;
mod trouble;
mod whole;

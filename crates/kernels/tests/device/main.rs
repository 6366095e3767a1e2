//! The device kernels without a device: their source compiled for the CPU and run under a race
//! detector, compared with the CPU twins, and the Metal spelling checked by a strict front end.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

mod append;
mod attend;
#[cfg(feature = "cuda")]
mod cuda;
mod dense;
mod emulator;
mod encode;
mod faults;
mod layout;
mod machine;
#[cfg(all(feature = "metal", not(feature = "cuda")))]
mod metal;
mod ops;
mod random;
mod rotate;
mod sample;
#[cfg(feature = "cuda")]
mod skinny;
mod strict;

//! When and with whom a token is computed.
//!
//! [`Handle`] is the door: a [`GenerateRequest`] goes in, a [`TokenStream`] comes out. Behind it
//! one thread runs the [`Engine`]: take, plan ([`Scheduler`]), run ([`Runner`]), commit. Knows
//! token ids; never text, JSON, HTTP or files.

mod constraint;
mod device;
mod engine;
mod figures;
mod handle;
mod heartbeat;
pub mod memory;
mod pace;
mod queue;
mod request;
mod runner;
mod sampler;
mod scheduler;
mod sequence;
mod step;

pub use constraint::{Constraint, TokenMask};
pub use device::{Device, DeviceError, DeviceName, build_name};
pub use engine::{Engine, EngineOptions};
pub use figures::Gauges;
pub use handle::{Handle, Health, Limits, TokenStream, Turn};
pub use heartbeat::Heartbeat;
pub use kvant_kernels::device::Gpu;
pub use kvant_kv_cache::PAGE_TOKENS;
pub use request::{
    FinishReason, GenerateRequest, Pooling, Rejected, SamplingParams, SeqId, StopRules, TokenEvent,
    TokenId, TokenLogprob, Usage,
};
pub use runner::{
    AttentionRoad, DeviceRunner, ModelRunner, Prompts, Reading, Replay, RunError, Runner, Teacher,
    Window, prefill_alone,
};
pub use scheduler::{Emit, Scheduler, SchedulerLimits};
pub use sequence::PhaseKind;
pub use step::{DecodeRow, Place, PrefillChunk, PromptLogprobs, SampleRow, Sampled, Step};

//! Weights and arithmetic of a decoder: its files, their configuration, and the forward pass.

mod attend;
mod bytes;
mod decoder;
mod dtype;
mod dummy;
mod embedding;
mod error;
mod experts;
mod family;
mod files;
mod floats;
mod gguf;
mod gpu;
mod hf_config;
mod linear;
mod load;
mod mlp;
mod norm;
mod rope;
mod safetensors;
mod site;
mod spec;
mod split;
mod workspace;

pub use attend::Attend;
pub use bytes::Bytes;
pub use decoder::Decoder;
pub use dtype::WeightDtype;
pub use embedding::Embedding;
pub use error::Error;
pub use files::{ModelFiles, TensorView};
pub use floats::{with_floats, with_floats_mut};
pub use gguf::{Array, Gguf, Value};
pub use hf_config::{
    AttentionConfig, ExpertConfig, HfConfig, OutputConfig, RopeConfig, RopeScalingConfig,
    SizeConfig,
};
pub use linear::Linear;
pub use norm::RmsNorm;
pub use rope::Rotary;
pub use site::Site;
pub use spec::{
    Activation, Bias, DecoderSpec, Ends, ExpertSpec, Heads, LayerSpec, MlpSpec, NormSpec, Rope,
    RopeScaling,
};
pub use workspace::Workspace;

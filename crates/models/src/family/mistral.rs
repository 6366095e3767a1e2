//! Mistral: every layer may slide. Mixtral: experts.

use super::{experts, llama, windowed};
use crate::{DecoderSpec, Error, ExpertSpec, HfConfig, MlpSpec};

pub(super) fn mistral(config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    let plain = llama::spec(config, file)?;
    windowed(DecoderSpec { family: "mistral", ..plain }, config, file, |_| true)
}

pub(super) fn mixtral(config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    let plain = mistral(config, file)?;
    let experts = ExpertSpec { normed: true, mixtral_names: true, ..experts(config, file)? };
    let mlp = MlpSpec { experts: Some(experts), ..plain.mlp };
    Ok(DecoderSpec { family: "mixtral", mlp, ..plain })
}

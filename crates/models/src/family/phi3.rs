//! Phi-3, 3.5 and Phi-4: q, k, v in one matrix, gate and up in one; factors for long contexts; in
//! Phi-4-mini rope turns a part of a head.

use super::{llama, windowed};
use crate::{DecoderSpec, Error, HfConfig};

/// Context before stretching where config.json is silent.
const DEFAULT_ORIGINAL: usize = 4096;

pub(super) fn spec(config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    let mut config = config.clone();
    if let Some(scaling) = &mut config.rope.rope_scaling {
        // Older files call longrope by the names that it had first.
        if matches!(scaling.kind(), "su" | "yarn") {
            scaling.rope_type = Some("longrope".to_owned());
        }
        if scaling.original_max_position_embeddings.is_none() {
            config.rope.original_max_position_embeddings.get_or_insert(DEFAULT_ORIGINAL);
        }
    }
    let plain = llama::spec(&config, file)?;
    let spec = DecoderSpec { family: "phi3", fused: true, ..plain };
    windowed(spec, &config, file, |_| true)
}

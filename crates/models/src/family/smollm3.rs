//! SmolLM3: every fourth layer has no rope.

use super::{llama, windowed};
use crate::{DecoderSpec, Ends, Error, HfConfig};

/// What the reference library takes where config.json is silent.
const DEFAULT_INTERVAL: usize = 4;
const DEFAULT_THETA: f64 = 2e6;

pub(super) fn spec(config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    let mut config = config.clone();
    if config.rope.theta().is_none() {
        config.rope.rope_theta = Some(DEFAULT_THETA);
    }
    let mut spec = llama::spec(&config, file)?;
    let interval = config.rope.no_rope_layer_interval.unwrap_or(DEFAULT_INTERVAL).max(1);
    let written = config.rope.no_rope_layers.as_deref();
    if let Some(layers) = written.filter(|layers| layers.len() != spec.layers.len()) {
        let what = format!("{} entries for {} layers", layers.len(), spec.layers.len());
        return Err(Error::config(file, "no_rope_layers", what));
    }
    // The list has 1 for a layer with rope.
    let turned =
        |layer: usize| written.map_or(!(layer + 1).is_multiple_of(interval), |l| l[layer] != 0);
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        if !turned(index) {
            layer.rope.rotated = 0;
        }
    }
    let tied_head = config.output.tie_word_embeddings.unwrap_or(true);
    let spec = DecoderSpec { family: "smollm3", ends: Ends { tied_head, ..spec.ends }, ..spec };
    if config.attention.use_sliding_window != Some(true) {
        return Ok(spec);
    }
    windowed(spec, &config, file, |layer| !turned(layer))
}

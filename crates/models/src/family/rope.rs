//! `rope`: from the keys of a configuration to the rotary embedding of its layers.

use super::within;
use crate::{Error, HfConfig, Rope, RopeScaling, RopeScalingConfig};

/// What the reference library takes where config.json is silent.
const DEFAULT_THETA: f64 = 10_000.0;
const DEFAULT_FAST: f64 = 32.0;
const DEFAULT_SLOW: f64 = 1.0;

/// Rotary embedding of a layer for which the file says nothing of its own.
pub(super) fn rope(config: &HfConfig, file: &str) -> Result<Rope, Error> {
    let (rope, dim) = (&config.rope, config.size.head_size());
    let theta = rope.theta().unwrap_or(DEFAULT_THETA);
    within(file, "rope_theta", theta, 1.0, 1e12)?;
    let part = rope.part();
    within(file, "partial_rotary_factor", part, 0.0, 1.0)?;
    let rotated = (dim as f64 * part) as usize;
    if rotated == 0 || !rotated.is_multiple_of(2) {
        let what = format!("rope turns {rotated} elements of {dim}, which must be an even number");
        return Err(Error::config(file, "head_dim", what));
    }
    let plain = Rope { theta, rotated, scaling: RopeScaling::None, magnitude: 1.0 };
    match (&rope.factors, rope.scaling()) {
        (Some(factors), _) => with_factors(&plain, factors, "rope_freqs.weight", file),
        (None, None) => Ok(plain),
        (None, Some(written)) => scaled(&plain, written, config, file),
    }
}

fn scaled(
    plain: &Rope,
    written: &RopeScalingConfig,
    config: &HfConfig,
    file: &str,
) -> Result<Rope, Error> {
    let required = |key: &str, value: Option<f64>| {
        let key = format!("rope_scaling.{key}");
        let Some(value) = value else {
            return Err(Error::config(file, key, "is missing"));
        };
        within(file, &key, value, 0.0, 1e9)?;
        Ok(value)
    };
    let original = written.original_max_position_embeddings;
    let scaling = match written.kind() {
        "linear" => RopeScaling::Linear(required("factor", written.factor)?),
        "llama3" => {
            let low = required("low_freq_factor", written.low_freq_factor)?;
            let high = required("high_freq_factor", written.high_freq_factor)?;
            above(file, "high_freq_factor", high, ("low_freq_factor", low))?;
            RopeScaling::Llama3 {
                factor: required("factor", written.factor)?,
                low,
                high,
                original_context: required("original_max_position_embeddings", original)?,
            }
        }
        "yarn" => {
            let factor = required("factor", written.factor)?;
            let fast = required("beta_fast", written.beta_fast.or(Some(DEFAULT_FAST)))?;
            let slow = required("beta_slow", written.beta_slow.or(Some(DEFAULT_SLOW)))?;
            above(file, "beta_fast", fast, ("beta_slow", slow))?;
            let original = original.unwrap_or(config.size.max_position_embeddings as f64);
            let original = required("original_max_position_embeddings", Some(original))?;
            let usual = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
            let magnitude = written.attention_factor.unwrap_or(usual);
            within(file, "rope_scaling.attention_factor", magnitude, 0.0, 1e3)?;
            let scaling = RopeScaling::Yarn { factor, fast, slow, original_context: original };
            return Ok(Rope { scaling, magnitude: magnitude as f32, ..*plain });
        }
        "longrope" => return longrope(plain, written, config, file),
        other => {
            let what =
                format!("{other} is not served; served: default, linear, llama3, yarn, longrope");
            return Err(Error::unsupported(file, "rope_scaling.rope_type", what));
        }
    };
    Ok(Rope { scaling, ..*plain })
}

/// The long factors where the context is longer than the original one, else the short ones: one
/// choice for all positions, as keys that were turned by one cannot be read by the other.
fn longrope(
    plain: &Rope,
    written: &RopeScalingConfig,
    config: &HfConfig,
    file: &str,
) -> Result<Rope, Error> {
    let context = config.size.max_position_embeddings as f64;
    let original = config.rope.original_max_position_embeddings.map(|tokens| tokens as f64);
    let original = original.or(written.original_max_position_embeddings).unwrap_or(context);
    within(file, "original_max_position_embeddings", original, 1.0, 1e9)?;
    let stretch = context / original;
    let usual = if stretch > 1.0 { (1.0 + stretch.ln() / original.ln()).sqrt() } else { 1.0 };
    let magnitude = written.attention_factor.unwrap_or(usual);
    within(file, "rope_scaling.attention_factor", magnitude, 0.0, 1e3)?;
    let (key, factors) = if stretch > 1.0 {
        ("rope_scaling.long_factor", &written.long_factor)
    } else {
        ("rope_scaling.short_factor", &written.short_factor)
    };
    let factors = factors.as_ref().ok_or_else(|| Error::config(file, key, "is missing"))?;
    let rope = with_factors(plain, factors, key, file)?;
    Ok(Rope { magnitude: magnitude as f32, ..rope })
}

fn with_factors(plain: &Rope, factors: &[f32], key: &str, file: &str) -> Result<Rope, Error> {
    if factors.len() != plain.rotated / 2 {
        let what = format!("{} factors for {} elements of a head", factors.len(), plain.rotated);
        return Err(Error::config(file, key, what));
    }
    for factor in factors {
        within(file, key, f64::from(*factor), 0.0, 1e9)?;
    }
    Ok(Rope { scaling: RopeScaling::Factors(factors.to_vec()), ..*plain })
}

fn above(file: &str, key: &str, value: f64, (other, least): (&str, f64)) -> Result<(), Error> {
    if value > least {
        return Ok(());
    }
    let what = format!("{value} is not above {other}, {least}");
    Err(Error::config(file, format!("rope_scaling.{key}"), what))
}

//! `decide`: which format each layer gets, and why. One pure function of what a model is and what
//! the user asked for.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use kvant_turboquant::{ScaleRule, Width, Widths};

use crate::format::{CacheLayer, CacheShape, Format, LayerShape};

/// Query heads of one key head from which on 4-bit keys cost too much.
const MANY_QUERIES: usize = 6;

/// What is known of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerTraits {
    /// Its heads.
    pub shape: LayerShape,
    /// Query heads of one key head.
    pub queries_per_key: usize,
    /// Keys get a bias, which can be a hundred times larger than what it is added to.
    pub key_bias: bool,
    /// Only so many tokens are seen, so the layer's cache is small anyway.
    pub window: Option<usize>,
}

/// Widths by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Every layer 16-bit.
    F16,
    /// Widths for all layers that can take them.
    Packed(Widths),
    /// Keys of 8 and values of 4 bits, with the rules.
    Auto,
}

/// Names of the presets with bits of keys and values.
const PACKED: [(&str, usize, usize); 6] =
    [("tq8", 8, 8), ("k8v4", 8, 4), ("tq4", 4, 4), ("k4v3", 4, 3), ("tq3", 3, 3), ("tq2", 2, 2)];

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// For all layers.
    pub preset: Preset,
    /// Bits of keys in place of the preset's; no rule changes them.
    pub key_bits: Option<Width>,
    /// Bits of values in place of the preset's; no rule changes them.
    pub value_bits: Option<Width>,
    /// Whether the rules may give more bits than the preset.
    pub protect: bool,
    /// Single layers, later ones over earlier ones; no rule changes them.
    pub layers: Vec<(RangeInclusive<usize>, Preset)>,
    /// Which scale packed pages get; `None`: the default of each side and width.
    pub scale_rule: Option<ScaleRule>,
}

/// Why a layer has its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The preset, or the widths that were asked for.
    Asked,
    /// `cache.layers` names the layer.
    Override,
    /// Keys have a bias: 8 bits for them.
    KeyBias,
    /// Many query heads share a key head: 8 bits for keys.
    ManyQueries,
    /// The first or the last layer: at least 8 bits where keys have fewer.
    EdgeLayer,
    /// A sliding window: stays dense.
    Window,
    /// A head size that the kernels do not serve: stays dense.
    HeadDim,
}

/// The wish cannot be fulfilled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// No preset of this name.
    #[error(
        "no cache preset {name:?}; there are: auto, f16, tq8, tq4, tq3, tq2, and kNvM (such as \
         k8v4) with 2, 3, 4, 6 or 8 bits for keys and values"
    )]
    Preset {
        /// As written.
        name: String,
    },
    /// No scale rule of this name.
    #[error("no scale rule {name:?}; there are: default, plain, matched, least_squares, unbiased")]
    Rule {
        /// As written.
        name: String,
    },
    /// A list of layers that cannot be read.
    #[error(
        "{text:?} is no list of layers; write for example \"0=f16, 4-7=tq8\" with layers from 0"
    )]
    Layers {
        /// As written.
        text: String,
    },
    /// A layer that the model does not have.
    #[error("layer {layer} is named, but the model has {layers} layers, from 0 on")]
    NoLayer {
        /// As written.
        layer: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// Widths without kernels.
    #[error("{bits} bits are not served; served: 2, 3, 4, 6, 8")]
    Bits {
        /// As written.
        bits: String,
    },
    /// A packed cache was asked for and every layer stays dense.
    #[error(
        "a packed cache was asked for, but no layer can take it ({why}); start with --kv-cache f16"
    )]
    NoneCan {
        /// The reason of the first layer.
        why: String,
    },
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            preset: Preset::Auto,
            key_bits: None,
            value_bits: None,
            protect: true,
            layers: Vec::new(),
            scale_rule: None,
        }
    }
}

impl FromStr for Preset {
    type Err = WishError;

    fn from_str(name: &str) -> Result<Self, WishError> {
        match name {
            "f16" => Ok(Self::F16),
            "auto" => Ok(Self::Auto),
            _ => {
                let found = PACKED.iter().find(|(known, ..)| *known == name);
                let found = found.map(|(_, keys, values)| widths_of(*keys, *values));
                let found = found.or_else(|| spelled(name));
                found.map(Self::Packed).ok_or_else(|| WishError::Preset { name: name.to_owned() })
            }
        }
    }
}

/// Widths that are spelled out: `k3v8`.
fn spelled(name: &str) -> Option<Widths> {
    let (keys, values) = name.strip_prefix('k')?.split_once('v')?;
    let width = |text: &str| bits(text.parse().ok()?).ok()?;
    Some(Widths { keys: width(keys)?, values: width(values)? })
}

/// Reads widths like `4` or `3.5` (keys the lower, values the upper whole number).
pub fn average_bits(text: &str) -> Result<Widths, WishError> {
    let refused = || WishError::Bits { bits: text.to_owned() };
    let average: f64 = text.parse().map_err(|_| refused())?;
    let widths = Widths::from_average(average).map_err(|_| refused())?;
    let served = |width| Width::CACHE.contains(&width);
    if served(widths.keys) && served(widths.values) { Ok(widths) } else { Err(refused()) }
}

/// Reads one width; 0 stands for none.
pub fn bits(count: usize) -> Result<Option<Width>, WishError> {
    let refused = || WishError::Bits { bits: count.to_string() };
    if count == 0 {
        return Ok(None);
    }
    let width = Width::new(count).map_err(|_| refused())?;
    if Width::CACHE.contains(&width) { Ok(Some(width)) } else { Err(refused()) }
}

/// Reads the name of a scale rule; `default` stands for none.
pub fn scale_rule(name: &str) -> Result<Option<ScaleRule>, WishError> {
    if name == "default" {
        return Ok(None);
    }
    let found = ScaleRule::ALL.into_iter().find(|rule| rule.to_string() == name);
    found.map(Some).ok_or_else(|| WishError::Rule { name: name.to_owned() })
}

/// Reads layers with their presets: `0=f16, 4-7=tq8`.
pub fn layer_presets(text: &str) -> Result<Vec<(RangeInclusive<usize>, Preset)>, WishError> {
    let refused = || WishError::Layers { text: text.to_owned() };
    let mut layers = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (range, preset) = entry.split_once('=').ok_or_else(refused)?;
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| refused());
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(refused());
        }
        layers.push((first..=last, preset.trim().parse()?));
    }
    Ok(layers)
}

/// The format of each layer, with its reasons: the only place where it is decided.
pub fn decide(layers: &[LayerTraits], wish: &Wish) -> Result<CacheShape, WishError> {
    let named = wish.layers.iter().map(|(range, _)| *range.end());
    if let Some(layer) = named.max().filter(|last| *last >= layers.len()) {
        return Err(WishError::NoLayer { layer, layers: layers.len() });
    }
    let count = layers.len();
    let decided = layers.iter().enumerate();
    let decided = decided.map(|(index, traits)| layer(index, count, traits, wish));
    let shape = CacheShape { layers: decided.collect(), scale_rule: wish.scale_rule };
    let wants = |preset: &Preset| *preset != Preset::F16;
    let wanted = wants(&wish.preset) || wish.key_bits.is_some() || wish.value_bits.is_some();
    // `auto` promises nothing: a model without a layer to pack is served in 16 bits.
    let promised = wanted && (wish.preset != Preset::Auto || wish.key_bits.is_some());
    if promised && !shape.is_packed() && wish.layers.is_empty() {
        let why = shape.layers.first().map(CacheLayer::why).unwrap_or_default();
        return Err(WishError::NoneCan { why });
    }
    Ok(shape)
}

fn layer(index: usize, count: usize, traits: &LayerTraits, wish: &Wish) -> CacheLayer {
    let shape = traits.shape;
    let dense = |reasons| CacheLayer { shape, format: Format::Dense, reasons };
    let own = wish.layers.iter().rev().find(|(range, _)| range.contains(&index));
    let (asked, mut reasons) = match own {
        Some((_, preset)) => (preset_widths(*preset), vec![Reason::Override]),
        None => (wished(wish), vec![Reason::Asked]),
    };
    let Some(mut widths) = asked else { return dense(reasons) };
    if traits.window.is_some() {
        return dense(vec![Reason::Window]);
    }
    // Tiles are made of lines of 16 numbers.
    if !shape.dim.is_multiple_of(16) {
        return dense(vec![Reason::HeadDim]);
    }
    let eight = widths_of(8, 8);
    // Bits that were asked for by number are not changed, nor are those of a single layer.
    if own.is_none() && wish.protect && wish.key_bits.is_none() && widths.keys < eight.keys {
        if traits.key_bias {
            reasons.push(Reason::KeyBias);
        }
        if traits.queries_per_key >= MANY_QUERIES {
            reasons.push(Reason::ManyQueries);
        }
        if index == 0 || index + 1 == count {
            reasons.push(Reason::EdgeLayer);
            widths.values = wish.value_bits.unwrap_or(eight.values);
        }
        if reasons.len() > 1 {
            widths.keys = eight.keys;
        }
    }
    CacheLayer { shape, format: Format::TurboQuant(widths), reasons }
}

/// The preset's widths with single bits in their place; `None`: dense.
fn wished(wish: &Wish) -> Option<Widths> {
    let preset = preset_widths(wish.preset);
    if wish.key_bits.is_none() && wish.value_bits.is_none() {
        return preset;
    }
    let Widths { keys, values } = preset.unwrap_or_else(|| widths_of(8, 8));
    Some(Widths { keys: wish.key_bits.unwrap_or(keys), values: wish.value_bits.unwrap_or(values) })
}

fn preset_widths(preset: Preset) -> Option<Widths> {
    match preset {
        Preset::F16 => None,
        Preset::Packed(widths) => Some(widths),
        Preset::Auto => Some(widths_of(8, 4)),
    }
}

fn widths_of(keys: usize, values: usize) -> Widths {
    let width = |bits| Width::new(bits).expect("presets have widths of the codec");
    Widths { keys: width(keys), values: width(values) }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "as asked for",
            Self::Override => "cache.layers",
            Self::KeyBias => "keys have a bias: K 8 bits",
            Self::ManyQueries => "6 or more query heads a key head: K 8 bits",
            Self::EdgeLayer => "first or last layer: 8 bits",
            Self::Window => "sliding window: dense",
            Self::HeadDim => "head size is no multiple of 16: dense",
        })
    }
}

#[cfg(test)]
mod tests;

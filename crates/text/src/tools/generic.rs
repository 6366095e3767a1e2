//! Calls as JSON without a marker, or in a fence: for templates that know no tools.

use super::body::BodyKind;
use super::{Opening, Spelling};

/// A block of JSON, which may just as well be no call.
pub(super) const FENCE: Opening =
    Opening { marker: "```json", close: "```", body: BodyKind::Json, known: true };

pub(super) const SPELLING: Spelling = Spelling { openings: &[FENCE], bare: true };

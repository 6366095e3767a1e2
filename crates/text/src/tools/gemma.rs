//! Gemma: Python in a fence, as its documentation shows, or JSON.

use super::body::BodyKind;
use super::{Opening, Spelling, generic};

pub(super) const SPELLING: Spelling = Spelling {
    openings: &[
        Opening { marker: "```tool_code", close: "", body: BodyKind::Python("```"), known: true },
        Opening { marker: "```tool_call", close: "```", body: BodyKind::Json, known: true },
        generic::FENCE,
    ],
    bare: true,
};

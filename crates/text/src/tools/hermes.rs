//! Hermes, and with it Qwen 2.5, Qwen 3 and SmolLM:
//! `<tool_call>{"name": …, "arguments": …}</tool_call>`.

use super::body::BodyKind;
use super::{Opening, Spelling, generic};

pub(super) const SPELLING: Spelling = Spelling {
    openings: &[
        Opening {
            marker: "<tool_call>",
            close: "</tool_call>",
            body: BodyKind::Json,
            known: false,
        },
        // What the smaller ones fall back to.
        generic::FENCE,
    ],
    bare: true,
};

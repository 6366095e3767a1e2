//! Phi 4 mini: `<|tool_call|>[{"name": …, "arguments": …}]<|/tool_call|>`, or `functools[…]` as it
//! was told in its first template.

use super::body::BodyKind;
use super::{Opening, Spelling, generic};

pub(super) const SPELLING: Spelling = Spelling {
    openings: &[
        Opening {
            marker: "<|tool_call|>",
            close: "<|/tool_call|>",
            body: BodyKind::Json,
            known: false,
        },
        Opening { marker: "functools", close: "", body: BodyKind::Json, known: true },
        generic::FENCE,
    ],
    bare: true,
};

//! Llama 3: `{"name": …, "parameters": …}`, several with semicolons between them, perhaps behind
//! `<|python_tag|>`.

use super::body::BodyKind;
use super::{Opening, Spelling, generic};

pub(super) const SPELLING: Spelling = Spelling {
    openings: &[
        Opening { marker: "<|python_tag|>", close: "", body: BodyKind::Json, known: false },
        generic::FENCE,
    ],
    bare: true,
};

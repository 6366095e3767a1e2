//! `prompt` of /v1/completions: a text, a list of texts, a list of token ids, or a list of those.

use serde_json::Value;

use crate::error::ApiError;
use crate::json::{Fields, token_id, wrong_type};
use crate::options::SEQUENCES_MAX;
use crate::order::Prompt;
use crate::served::Served;

const NAME: &str = "prompt";

/// Takes the prompts; each will be continued `n` times.
pub(crate) fn read(
    served: &Served,
    fields: &mut Fields,
    n: usize,
) -> Result<Vec<Prompt>, ApiError> {
    let special = fields.flag("add_special_tokens", true)?;
    let value = fields.take(NAME).ok_or_else(|| ApiError::missing(NAME))?;
    let values = separate(value)?;
    if values.len() * n > SEQUENCES_MAX {
        let message = format!(
            "{} prompts with n = {n} are {} sequences, at most {SEQUENCES_MAX} are taken",
            values.len(),
            values.len() * n
        );
        return Err(ApiError::value(NAME, message));
    }
    values.into_iter().map(|value| one(served, value, special)).collect()
}

/// The single prompts of the field.
fn separate(value: Value) -> Result<Vec<Value>, ApiError> {
    match value {
        Value::Array(list) if list.is_empty() => {
            Err(ApiError::value(NAME, "prompt is an empty array, it needs at least one"))
        }
        Value::Array(list) if list[0].is_number() => Ok(vec![Value::Array(list)]),
        Value::Array(list) => Ok(list),
        one => Ok(vec![one]),
    }
}

fn one(served: &Served, value: Value, special: bool) -> Result<Prompt, ApiError> {
    match value {
        Value::String(text) => {
            let tokens = served.encode(NAME, &text, special)?;
            Ok(Prompt { text: Some(text), tokens })
        }
        Value::Array(list) if list.is_empty() => {
            Err(ApiError::value(NAME, "prompt has an empty array of tokens"))
        }
        Value::Array(list) => {
            let vocab = served.app.handle.limits().vocab;
            let tokens: Result<Vec<u32>, _> =
                list.iter().map(|id| token_id(NAME, id, vocab)).collect();
            Ok(Prompt { text: None, tokens: tokens?.into() })
        }
        other => {
            let wanted = "a string, an array of strings, of token ids, or of arrays of token ids";
            Err(wrong_type(NAME, &other, wanted))
        }
    }
}

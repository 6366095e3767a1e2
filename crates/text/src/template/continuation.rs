//! `continue_final_message`: the text is cut where the last message's content ends. As the
//! transformers library does, a mark put after the content is looked for in the text.

use serde_json::{Map, Value};

use crate::error::Error;

/// The library's own mark. The space at its end shows whether the template trims contents.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Puts the mark after the content of the last message and returns the content.
pub(super) fn mark(message: &mut Map<String, Value>) -> Result<String, Error> {
    let content = message.get_mut("content").ok_or(Error::FinalMessage(
        "the last message has no content; put the text to continue there",
    ))?;
    let text = match content {
        Value::String(text) => text,
        Value::Array(parts) => {
            let text = parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
                Some(Value::String(text)) => Some(text),
                _ => None,
            });
            text.ok_or(Error::FinalMessage("the last message has no text; add a part with one"))?
        }
        _ => return Err(Error::FinalMessage("the last message's content must be a text")),
    };
    let before = text.clone();
    text.push_str(MARK);
    Ok(before)
}

/// The text up to the mark.
pub(super) fn cut(mut text: String, content: &str) -> Result<String, Error> {
    let place = text.rfind(MARK.trim_end()).filter(|_| text.contains(content.trim()));
    let place = place.ok_or(Error::FinalMessage(
        "the template leaves the last message's content out; end with another message",
    ))?;
    let keeps_spaces = text[place..].starts_with(MARK);
    text.truncate(place);
    if !keeps_spaces {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

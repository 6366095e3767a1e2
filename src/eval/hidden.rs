//! Sentences to hide: the code of something, in words, and the same as tokens of a model.

use anyhow::Result;
use kvant_bench::{Draw, Needle, Sentence, draws, hide};
use kvant_text::Tokenizer;

use crate::cli::EvalArgs;

const COLOURS: [&str; 8] = ["amber", "black", "blue", "golden", "green", "red", "silver", "white"];
const THINGS: [&str; 12] = [
    "anchor", "bridge", "candle", "castle", "garden", "harbour", "lantern", "library", "mirror",
    "river", "tower", "wagon",
];

/// The needles of a context, each in a part of the text of its own.
pub(super) fn needles(
    args: &EvalArgs,
    tokenizer: &Tokenizer,
    text: &[u32],
    context: usize,
) -> Result<Vec<Needle>> {
    let draws = draws(args.seed, &args.depths, args.needles as usize);
    // A window is cut out of the text, so it needs the token that begins one before it.
    let begin = tokenizer.begins_with();
    let own = context - begin.iter().len();
    let needle = |draw: &Draw| {
        let room = text.len().saturating_sub(own) as u64 + 1;
        let start = (draw.start % room) as usize;
        let mut needle = hide(&text[start..], &sentence(tokenizer, draw)?, draw.depth, own)?;
        needle.window.prompt += begin.iter().len();
        needle.window.tokens.splice(0..0, begin);
        Ok(needle)
    };
    draws.iter().map(needle).collect()
}

/// The answer is what the whole sentence's tokens have behind those of the question, so that it is
/// cut as the tokenizer cuts it inside a text.
fn sentence(tokenizer: &Tokenizer, draw: &Draw) -> Result<Sentence> {
    let key = draw.key as usize % (COLOURS.len() * THINGS.len());
    let (colour, thing) = (COLOURS[key % COLOURS.len()], THINGS[key / COLOURS.len()]);
    let asked = format!("\nThe secret code of the {colour} {thing} is");
    let told = format!("{asked} {}", draw.number);
    let told_tokens = tokenizer.encode(&told, false)?;
    let asked_tokens = tokenizer.encode(&asked, false)?;
    let same = told_tokens.iter().zip(&asked_tokens).take_while(|(told, asked)| told == asked);
    let (question, answer) = told_tokens.split_at(same.count());
    Ok(Sentence {
        hidden: tokenizer.encode(&format!("{told}.\n"), false)?,
        question: question.to_vec(),
        answer: answer.to_vec(),
    })
}

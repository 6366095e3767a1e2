//! `best_of`: of the sequences of each prompt, the `n` likeliest are told.

use crate::sampling::Sampling;
use crate::sequence::Piece;

/// The pieces that are told, the likeliest first, prompt by prompt. Log-probabilities are compared
/// by token, so that long answers are not behind short ones.
pub(crate) fn told(pieces: Vec<Piece>, sampling: &Sampling) -> Vec<Piece> {
    let Sampling { n, best_of, .. } = *sampling;
    if best_of == n {
        return pieces;
    }
    let mut pieces = pieces.into_iter();
    let mut told = Vec::new();
    loop {
        let mut drawn: Vec<Piece> = pieces.by_ref().take(best_of).collect();
        if drawn.is_empty() {
            return told;
        }
        // The prompt is told of by the sequence that was drawn first.
        let prompt = std::mem::take(&mut drawn[0].prompt);
        drawn.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        drawn.truncate(n);
        drawn[0].prompt = prompt;
        told.append(&mut drawn);
    }
}

/// Mean log-probability of the generated tokens; an echoed prompt's stand before them.
fn mean(piece: &Piece) -> f64 {
    let generated = piece.scores.iter().rev().take(piece.tokens.len());
    let logprobs = generated.filter_map(|score| score.logprob).map(f64::from);
    let (sum, count) = logprobs.fold((0.0, 0.0), |(sum, count), one| (sum + one, count + 1.0));
    // Nothing but an end token: as likely as it gets.
    if count == 0.0 { 0.0 } else { sum / count }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Fields;
    use crate::sampling::{Asks, read};
    use crate::sequence::Score;

    fn piece(number: u32, logprobs: &[f32]) -> Piece {
        let score = |logprob: &f32| Score {
            token: number,
            logprob: Some(*logprob),
            top: Vec::new(),
            offset: 0,
        };
        // One more in front, as an echoed prompt has.
        let scores = std::iter::once(&-90.0).chain(logprobs).map(score).collect();
        Piece { tokens: vec![number; logprobs.len()], scores, ..Piece::default() }
    }

    #[test]
    fn the_likeliest_of_each_prompt_are_told() {
        let mut fields = Fields::parse(br#"{"n": 2, "best_of": 3}"#).unwrap();
        let sampling = read(&mut fields, Asks::Text { echo: false }, 10).unwrap();
        let pieces = vec![
            piece(0, &[-3.0]),
            piece(1, &[-1.0, -2.0, -1.0]),
            piece(2, &[-1.5, -0.5]),
            piece(3, &[-1.0]),
            piece(4, &[-2.0]),
            piece(5, &[-0.5]),
        ];
        let told = told(pieces, &sampling);
        let numbers: Vec<u32> = told.iter().map(|piece| piece.tokens[0]).collect();
        assert_eq!(numbers, [2, 1, 5, 3]);
    }
}

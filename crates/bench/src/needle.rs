//! `needles`: a sentence hidden in a text and asked for at its end, and whether each cache still
//! has the answer.

use std::fmt::Write;
use std::sync::Arc;

use anyhow::{Result, ensure};
use kvant_engine::{Prompts, Reading, Teacher, Window};
use kvant_models::Decoder;
use serde::Serialize;

use crate::quality::{Candidate, normaliser, with_dense};
use crate::random::next;

/// Texts in one batch. A row's bits do not depend on its neighbours, so it is no setting.
const BATCH: usize = 8;

/// What is random of a needle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Part of the text before the sentence, 0 to 1.
    pub depth: f64,
    /// Picks what is asked for.
    pub key: u64,
    /// The answer, four digits.
    pub number: u64,
    /// Picks where in the text the window begins.
    pub start: u64,
}

/// A sentence in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// As it is hidden.
    pub hidden: Vec<u32>,
    /// Its beginning, repeated at the end of the text.
    pub question: Vec<u32>,
    /// What should follow.
    pub answer: Vec<u32>,
}

/// A text that hides a sentence; question and answer are decoded, what is before is the prompt.
#[derive(Clone, Debug)]
pub struct Needle {
    /// Part of the text before the sentence.
    pub depth: f64,
    /// The text.
    pub window: Window,
    /// Tokens of the answer, the last ones.
    pub answer: usize,
}

/// Answers to some needles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    /// Needles.
    pub asked: usize,
    /// Those of which all tokens of the answer are the likeliest ones.
    pub answered: usize,
    /// The same through the 16-bit cache.
    pub reference_answered: usize,
    /// Those that both answer.
    pub kept: usize,
    /// Mean log-probability of an answer's token, nats.
    pub log_prob: f64,
}

/// The needles of one depth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DepthScore {
    /// Part of the text before the sentence.
    pub depth: f64,
    /// Its answers.
    #[serde(flatten)]
    pub score: Score,
}

/// Answers of a cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NeedleRow {
    /// Name of the cache.
    pub name: String,
    /// To all needles.
    #[serde(flatten)]
    pub score: Score,
    /// By depth, ascending.
    pub depths: Vec<DepthScore>,
}

/// One needle through one cache.
#[derive(Clone, Copy, Debug)]
struct Answer {
    /// Mean of its tokens.
    log_prob: f64,
    all_likeliest: bool,
}

/// `each` needles of every depth; the same for the same seed.
pub fn draws(seed: u64, depths: &[f64], each: usize) -> Vec<Draw> {
    let mut state = seed;
    let mut draw = |depth: f64| Draw {
        depth,
        key: next(&mut state),
        number: 1000 + next(&mut state) % 9000,
        start: next(&mut state),
    };
    depths.iter().flat_map(|depth| vec![*depth; each]).map(&mut draw).collect()
}

/// A window of `context` tokens: the beginning of `text` with the sentence at `depth`, then the
/// question and the answer.
pub fn hide(text: &[u32], sentence: &Sentence, depth: f64, context: usize) -> Result<Needle> {
    let Sentence { hidden, question, answer } = sentence;
    ensure!(!question.is_empty() && !answer.is_empty(), "a needle needs a question and an answer");
    let own = hidden.len() + question.len() + answer.len();
    ensure!(
        own < context,
        "a needle of {own} tokens does not fit into a context of {context}; raise --context or \
         set --needles 0"
    );
    let around = context - own;
    ensure!(text.len() >= around, "the text ends before a context of {context} tokens");
    let (before, after) = text[..around].split_at((depth * around as f64).round() as usize);
    Ok(Needle {
        depth,
        window: Window {
            tokens: [before, hidden, after, question, answer].concat(),
            prompt: around + hidden.len(),
        },
        answer: answer.len(),
    })
}

/// Asks every cache; the first row is the 16-bit one. `progress` gets tokens done and all.
pub fn needles(
    decoder: &Arc<Decoder>,
    candidates: &[Candidate],
    needles: &[Needle],
    seed: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<NeedleRow>> {
    let caches = with_dense(candidates)?;
    let all: usize = needles.iter().map(|needle| needle.window.tokens.len()).sum();
    let mut answers: Vec<Vec<Answer>> = vec![Vec::new(); caches.len()];
    let mut done = 0;
    for batch in needles.chunks(BATCH) {
        let windows: Vec<Window> = batch.iter().map(|needle| needle.window.clone()).collect();
        done += windows.iter().map(|window| window.tokens.len() as u64).sum::<u64>();
        let prompts = Prompts::new(decoder, &caches[0].shape, windows)?;
        for (cache, answers) in caches.iter().zip(&mut answers) {
            let mut teacher = Teacher::new(&prompts, &cache.shape, seed)?;
            let mut found = vec![Answer { log_prob: 0.0, all_likeliest: true }; batch.len()];
            while let Some(readings) = teacher.read()? {
                for reading in &readings {
                    found[reading.window].add(&batch[reading.window], reading);
                }
            }
            answers.append(&mut found);
        }
        progress(done, all as u64);
    }
    let rows =
        caches.iter().zip(&answers).map(|(cache, own)| row(cache, needles, own, &answers[0]));
    Ok(rows.collect())
}

impl Answer {
    /// Takes the reading before each token of the answer.
    fn add(&mut self, needle: &Needle, reading: &Reading) {
        let tokens = &needle.window.tokens;
        let at = reading.position + 1;
        if at < tokens.len() - needle.answer || at >= tokens.len() {
            return;
        }
        let wanted = tokens[at] as usize;
        let (top, normal) = normaliser(&reading.logits);
        self.log_prob += (f64::from(reading.logits[wanted]) - normal) / needle.answer as f64;
        self.all_likeliest &= top == wanted;
    }
}

fn row(cache: &Candidate, needles: &[Needle], own: &[Answer], reference: &[Answer]) -> NeedleRow {
    let mut depths: Vec<f64> = needles.iter().map(|needle| needle.depth).collect();
    depths.sort_unstable_by(f64::total_cmp);
    depths.dedup();
    let score = |depth: Option<f64>| {
        let answers = needles.iter().zip(own.iter().zip(reference));
        let of_depth =
            answers.filter(|(needle, _)| depth.is_none_or(|depth| needle.depth == depth));
        score(of_depth.map(|(_, (own, reference))| (*own, reference.all_likeliest)))
    };
    let by_depth = |depth| DepthScore { depth, score: score(Some(depth)) };
    NeedleRow {
        name: cache.name.clone(),
        score: score(None),
        depths: depths.into_iter().map(by_depth).collect(),
    }
}

/// Answers, each with whether the 16-bit cache has it.
fn score(answers: impl Iterator<Item = (Answer, bool)>) -> Score {
    let mut score = Score::default();
    for (own, reference) in answers {
        score.asked += 1;
        score.answered += usize::from(own.all_likeliest);
        score.reference_answered += usize::from(reference);
        score.kept += usize::from(own.all_likeliest && reference);
        score.log_prob += own.log_prob;
    }
    score.log_prob /= score.asked.max(1) as f64;
    score
}

/// The rows as a Markdown table.
pub fn needle_markdown(rows: &[NeedleRow]) -> String {
    let mut text = String::from("| cache | log-probability a token | answered | kept |");
    let depths: &[DepthScore] = rows.first().map_or(&[], |row| &row.depths);
    for DepthScore { depth, .. } in depths {
        let _ = write!(text, " depth {depth} |");
    }
    let _ = writeln!(text, "\n|{}", "---|".repeat(4 + depths.len()));
    for NeedleRow { name, score, depths } in rows {
        let Score { asked, answered, reference_answered, kept, log_prob } = score;
        let _ = write!(
            text,
            "| {name} | {log_prob:.4} | {answered} of {asked} | {kept} of {reference_answered} |"
        );
        for DepthScore { score, .. } in depths {
            let _ = write!(text, " {} of {} |", score.kept, score.reference_answered);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence() -> Sentence {
        Sentence { hidden: vec![91, 92, 93], question: vec![91, 92], answer: vec![93, 94] }
    }

    #[test]
    fn a_sentence_is_hidden_at_its_depth() {
        let text: Vec<u32> = (0..20).collect();
        for (depth, at) in [(0.0, 0), (0.5, 5), (0.26, 3), (1.0, 10)] {
            let needle = hide(&text, &sentence(), depth, 17).unwrap();
            let Window { tokens, prompt } = &needle.window;
            assert_eq!((tokens.len(), *prompt, needle.answer), (17, 13, 2), "{depth}");
            assert_eq!(tokens[at..at + 3], [91, 92, 93], "{depth}");
            assert_eq!(tokens[13..], [91, 92, 93, 94], "{depth}");
            let around: Vec<u32> = tokens[..13].iter().copied().filter(|id| *id < 90).collect();
            assert_eq!(around, text[..10], "{depth}");
        }
    }

    #[test]
    fn needles_that_do_not_fit_are_refused() {
        let text: Vec<u32> = (0..20).collect();
        let refused = |sentence: &Sentence, context| {
            hide(&text, sentence, 0.5, context).unwrap_err().to_string()
        };
        assert!(hide(&text, &sentence(), 0.5, 8).is_ok());
        assert!(refused(&sentence(), 7).contains("7 tokens does not fit into a context of 7"));
        assert!(hide(&text, &sentence(), 0.5, 27).is_ok());
        assert!(refused(&sentence(), 28).contains("the text ends before a context of 28"));
        let none = Sentence { question: Vec::new(), ..sentence() };
        assert!(refused(&none, 20).contains("a question and an answer"));
    }

    #[test]
    fn draws_depend_on_the_seed_alone() {
        let depths = [0.1, 0.9];
        let all = draws(3, &depths, 3);
        assert_eq!(all, draws(3, &depths, 3));
        assert_ne!(all, draws(4, &depths, 3));
        assert_eq!(
            all.iter().map(|draw| draw.depth).collect::<Vec<_>>(),
            [0.1, 0.1, 0.1, 0.9, 0.9, 0.9]
        );
        assert!(all.iter().all(|draw| (1000..10_000).contains(&draw.number)));
        assert!(all.windows(2).all(|pair| pair[0].key != pair[1].key));
        assert!(draws(3, &depths, 0).is_empty());
    }

    #[test]
    fn an_answer_is_scored_at_the_tokens_before_it() {
        let text: Vec<u32> = (0..20).collect();
        let sentence = Sentence { hidden: vec![2], question: vec![0, 1], answer: vec![2, 0] };
        let needle = hide(&text, &sentence, 0.0, 10).unwrap();
        // Three tokens of the probabilities 1/2, 1/4, 1/4, the likeliest one by position.
        let reading = |position, top: usize| {
            let mut logits = vec![0.25_f32.ln() + 5.0; 3];
            logits[top] = 0.5_f32.ln() + 5.0;
            Reading { window: 0, position, logits }
        };
        for (tops, likeliest, log_prob) in [
            ([0, 2, 0, 1], true, 0.5_f64.ln()),
            ([0, 2, 1, 1], false, f64::midpoint(0.5_f64.ln(), 0.25_f64.ln())),
        ] {
            let mut answer = Answer { log_prob: 0.0, all_likeliest: true };
            for (position, top) in (6..10).zip(tops) {
                answer.add(&needle, &reading(position, top));
            }
            assert_eq!(answer.all_likeliest, likeliest);
            assert!((answer.log_prob - log_prob).abs() < 1e-6, "{}", answer.log_prob);
        }
    }

    #[test]
    fn scores_count_what_both_answer() {
        let answer = |log_prob, all_likeliest| Answer { log_prob, all_likeliest };
        let needle =
            |depth| Needle { depth, window: Window { tokens: Vec::new(), prompt: 0 }, answer: 1 };
        let needles = [0.9, 0.1, 0.9].map(needle);
        let own = [answer(-1.0, true), answer(-2.0, false), answer(-6.0, true)];
        let reference = [answer(0.0, true), answer(0.0, true), answer(0.0, false)];
        let cache = Candidate { name: "x".into(), shape: kvant_kv_cache::CacheShape::dense([]) };
        let row = row(&cache, &needles, &own, &reference);
        let all = Score { asked: 3, answered: 2, reference_answered: 2, kept: 1, log_prob: -3.0 };
        assert_eq!(row.score, all);
        let depths: Vec<_> = row.depths.iter().map(|d| (d.depth, d.score.kept)).collect();
        assert_eq!(depths, [(0.1, 0), (0.9, 1)]);
        let text = needle_markdown(&[row]);
        assert!(text.contains("| x | -3.0000 | 2 of 3 | 1 of 2 | 0 of 1 | 1 of 1 |"), "{text}");
        assert!(text.lines().all(|line| line.matches('|').count() == 7), "{text}");
    }
}

//! `Grammar`: what an output must be like, compiled for a tokenizer, and `Matcher`, an output under
//! way. The work on grammars is llguidance's; here are their spellings and their bounds.
//!
//! Nothing is fetched: a schema may refer to its own parts only.

mod gbnf;
mod matcher;
mod nesting;
mod numbers;
mod spec;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::api::{GrammarInit, ParserLimits};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use serde_json::Value;

use crate::error::Error;
use crate::tokenizer::Tokenizer;

pub use matcher::Matcher;

/// Stack of the thread that compiles: rules and references that name one another are followed in
/// depth, and a grammar of the largest size may be one chain.
const COMPILE_STACK: usize = 512 << 20;

/// What llguidance may spend on a mask: some 20 ms of either kind.
const MASK_LEXER_FUEL: u64 = 200_000;
const MASK_ITEMS: usize = 50_000;

/// What it may spend on the terminals of a grammar, and symbols of its rules.
const COMPILE_FUEL: u64 = 1_000_000;
const COMPILE_SYMBOLS: usize = 500_000;

/// How llguidance says that no token fits.
const DEAD_END: &str = "NoExtensionBias";

/// Characters of a message that are told.
const TOLD: usize = 300;

/// What an output must be like.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSpec {
    /// Any object of JSON.
    JsonObject,
    /// JSON that a schema describes. What the schema asks beyond what can be promised is an error,
    /// or left out if it is `lenient`.
    JsonSchema {
        /// The schema.
        schema: Value,
        /// Keywords that are not supported are left out.
        lenient: bool,
    },
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// One of some texts.
    Choice(Vec<String>),
    /// A grammar in llguidance's dialect of Lark, or in GBNF, as llama.cpp and XGrammar write it:
    /// rules with `::=`.
    Text(String),
    /// What either describes; neither is an `Either` itself.
    Either(Box<[GrammarSpec; 2]>),
}

/// Bounds of a grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrammarLimits {
    /// Bytes of its text; a schema's as JSON.
    pub bytes: usize,
    /// Brackets that are open at the same time; a schema's arrays and objects.
    pub nesting: usize,
    /// States of its lexer, 1 to 2 kB each, that one output may need.
    pub states: usize,
}

/// A tokenizer as grammars see it: its tokens in a trie. Takes a while to make and memory to keep;
/// one for all grammars.
pub struct GrammarEnv {
    factory: ParserFactory,
}

impl std::fmt::Debug for GrammarEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GrammarEnv {{ vocab: {} }}", self.factory.tok_env().tok_trie().vocab_size())
    }
}

impl GrammarEnv {
    /// Of a tokenizer with the tokens that end an output.
    pub fn new(tokenizer: &Tokenizer, ends: &[u32]) -> Result<Self, Error> {
        let vocab = tokenizer.vocab_len() as u32;
        let words: Vec<Vec<u8>> = (0..vocab).map(|id| word(tokenizer, id)).collect();
        let ends: Vec<u32> = ends.iter().copied().filter(|id| *id < vocab).collect();
        // The largest number stands for "none".
        let end = ends.first().copied().unwrap_or(u32::MAX);
        let mut trie = TokTrie::from(&TokRxInfo::new(vocab, end), &words);
        if ends.len() > 1 {
            trie = trie.with_eos_tokens(&ends);
        }
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| refused(&error.to_string()))?;
        factory.quiet();
        Ok(Self { factory })
    }
}

/// A token's bytes. A special one is no text: behind the mark, only a grammar that names it takes
/// it. A byte that is that mark is in no text either.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let mark = TokTrie::SPECIAL_TOKEN_MARKER;
    let bytes = tokenizer.bytes(id);
    if tokenizer.is_special(id) && !bytes.is_empty() {
        return [&[mark], bytes].concat();
    }
    if bytes.first() == Some(&mark) { Vec::new() } else { bytes.to_vec() }
}

/// A compiled grammar; outputs under it are made of it.
#[derive(Debug)]
pub struct Grammar {
    start: Matcher,
}

impl Grammar {
    /// Compiles a grammar within limits. Takes up to seconds: not for threads that serve.
    pub fn compile(
        env: &GrammarEnv,
        spec: &GrammarSpec,
        limits: &GrammarLimits,
    ) -> Result<Self, Error> {
        nesting::check(spec, limits)?;
        numbers::check(spec)?;
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(COMPILE_STACK);
            let compiling = thread.spawn_scoped(scope, || compile(env, spec, limits));
            let compiling = compiling.map_err(|error| refused(&error.to_string()))?;
            compiling.join().unwrap_or_else(|_| Err(refused("it cannot be compiled")))
        })
    }

    /// An output with nothing in it yet.
    pub fn matcher(&self) -> Matcher {
        self.start.fresh()
    }
}

fn compile(env: &GrammarEnv, spec: &GrammarSpec, limits: &GrammarLimits) -> Result<Grammar, Error> {
    let grammar = GrammarInit::Serialized(spec::grammar(spec)?);
    let limits = ParserLimits {
        initial_lexer_fuel: COMPILE_FUEL,
        step_lexer_fuel: MASK_LEXER_FUEL,
        step_max_items: MASK_ITEMS,
        max_lexer_states: limits.states,
        max_grammar_size: COMPILE_SYMBOLS,
        // It takes minutes where expressions are very large, and no fuel bounds it.
        precompute_large_lexemes: false,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    let quiet = llguidance::Logger::new(0, 0);
    let none = InferenceCapabilities::default();
    let parser = env.factory.create_parser_from_init_ext(grammar, quiet, none, limits);
    let parser = parser.map_err(|error| refused(&error.to_string()))?;
    Ok(Grammar { start: Matcher::new(parser)? })
}

/// What llguidance says, on one line and no longer than is of use.
fn refused(error: &str) -> Error {
    let first = error.split("\n<backtrace>").next().unwrap_or_default();
    if first.starts_with(DEAD_END) {
        return Error::Grammar("it leaves nothing that could come next".to_owned());
    }
    let words: Vec<&str> = first.split_whitespace().collect();
    let line = words.join(" ");
    let told: String = line.chars().take(TOLD).collect();
    let cut = if told.len() < line.len() { "…" } else { "" };
    Error::Grammar(format!("{told}{cut}"))
}

//! What an answer must be like: `response_format`, vLLM's `guided_…` and `structured_outputs`,
//! llama.cpp's `grammar` and `json_schema`; and the constraint that the engine asks.

mod fields;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use kvant_engine::{Constraint, TokenId, TokenMask};
use kvant_text::{Grammar, GrammarEnv, GrammarLimits, GrammarSpec, Matcher};
use tokio::sync::Semaphore;

use crate::error::ApiError;
use crate::served::Served;

pub(crate) use fields::read;

/// Compiled grammars that are kept: a client sends the same schema with every request.
const KEPT: usize = 16;

/// Grammars that compile at the same time.
pub(crate) const TURNS: usize = 4;

/// Bounds of what an answer can be made to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuideLimits {
    /// Of a grammar.
    pub grammar: GrammarLimits,
    /// How long one may take to compile; 400 after it.
    pub time: Duration,
}

impl Default for GuideLimits {
    fn default() -> Self {
        Self {
            grammar: GrammarLimits { bytes: 512 << 10, nesting: 64, states: 20_000 },
            time: Duration::from_secs(5),
        }
    }
}

/// What an answer must be like, and which field says so.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Guide {
    pub(crate) spec: GrammarSpec,
    pub(crate) field: &'static str,
    /// What it may be instead: a call.
    pub(crate) call: Option<GrammarSpec>,
}

impl Guide {
    /// The grammar of all that the answer may be.
    fn whole(&self) -> GrammarSpec {
        match &self.call {
            Some(call) => GrammarSpec::Either(Box::new([call.clone(), self.spec.clone()])),
            None => self.spec.clone(),
        }
    }

    /// The field to blame for a grammar that cannot be used.
    fn blamed(&self, served: &Served, limits: &GrammarLimits) -> Result<&'static str, ApiError> {
        let alone =
            self.call.is_some() && Grammar::compile(env(served)?, &self.spec, limits).is_ok();
        Ok(if alone { "tools" } else { self.field })
    }
}

/// What grammars of all requests share.
#[derive(Debug)]
pub(crate) struct Guides {
    /// To compile. Apart from other work on text, which goes on while hostile ones take long.
    turns: Arc<Semaphore>,
    /// Made for the first request that needs it; an error stays.
    env: OnceLock<Result<GrammarEnv, String>>,
    /// The newest last.
    kept: Mutex<VecDeque<(GrammarSpec, Arc<Grammar>)>>,
}

impl Default for Guides {
    fn default() -> Self {
        let turns = Arc::new(Semaphore::new(TURNS));
        Self { turns, env: OnceLock::new(), kept: Mutex::default() }
    }
}

impl Guides {
    fn find(&self, spec: &GrammarSpec) -> Option<Arc<Grammar>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().position(|(known, _)| known == spec)?;
        let found = kept.remove(found)?;
        let grammar = found.1.clone();
        kept.push_back(found);
        Some(grammar)
    }

    fn keep(&self, spec: GrammarSpec, grammar: Arc<Grammar>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((spec, grammar));
        if kept.len() > KEPT {
            kept.pop_front();
        }
    }
}

/// The grammar of a guide. What takes longer than the limit is refused, and keeps its turn until
/// its own bounds end it.
pub(crate) async fn compile(
    served: &Arc<Served>,
    guide: Option<&Guide>,
) -> Result<Option<Arc<Grammar>>, ApiError> {
    let Some(guide) = guide.cloned() else { return Ok(None) };
    let spec = guide.whole();
    if let Some(grammar) = served.guides.find(&spec) {
        return Ok(Some(grammar));
    }
    let (field, limit) = (guide.field, served.app.options.guide.time);
    let turn = tokio::time::timeout(limit, served.guides.turns.clone().acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        let message = format!("{field} waits for other grammars that take long; try again later");
        return Err(ApiError::unavailable("grammars_busy", message));
    };
    let shared = served.clone();
    let compiling = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let limits = &shared.app.options.guide.grammar;
        match Grammar::compile(env(&shared)?, &spec, limits) {
            Ok(grammar) => {
                let grammar = Arc::new(grammar);
                shared.guides.keep(spec, grammar.clone());
                Ok(Some(grammar))
            }
            Err(error) => Err(ApiError::value(guide.blamed(&shared, limits)?, error.to_string())),
        }
    });
    match tokio::time::timeout(limit, compiling).await {
        Ok(Ok(grammar)) => grammar,
        Ok(Err(error)) => {
            tracing::error!("compiling a grammar failed: {error}");
            Err(ApiError::internal("internal_error", "the grammar could not be compiled"))
        }
        Err(_) => {
            let seconds = limit.as_secs_f64();
            let message = format!("{field} takes longer than {seconds} s to compile");
            Err(ApiError::value(field, message))
        }
    }
}

fn env(served: &Served) -> Result<&GrammarEnv, ApiError> {
    let make = || GrammarEnv::new(&served.app.tokenizer, &served.app.model.eos_tokens);
    let env = served.guides.env.get_or_init(|| make().map_err(|error| error.to_string()));
    env.as_ref().map_err(|error| {
        tracing::error!("no output can be constrained: {error}");
        ApiError::internal("internal_error", "output cannot be constrained with this model")
    })
}

/// A grammar's constraint on one answer.
pub(crate) fn constraint(grammar: &Grammar) -> Box<dyn Constraint> {
    Box::new(Guided(grammar.matcher()))
}

#[derive(Debug)]
struct Guided(Matcher);

impl Constraint for Guided {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<(), String> {
        let allowed = self.0.allowed().map_err(|error| error.to_string())?;
        mask.insert_words(&allowed);
        Ok(())
    }

    fn take(&mut self, token: TokenId) -> Result<bool, String> {
        self.0.take(token).map_err(|error| error.to_string())
    }
}

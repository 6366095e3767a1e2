//! An order goes to the engine: all its sequences, or none.

use std::sync::Arc;
use std::time::Instant;

use kvant_engine::{Constraint, GenerateRequest, Rejected, StopRules};
use kvant_text::Grammar;

use crate::error::ApiError;
use crate::guide;
use crate::order::{Dialect, Order};
use crate::sampling::Sampling;
use crate::sequence::{Echo, Rules, Sequence};
use crate::sequences::Sequences;
use crate::served::Served;
use crate::stopwatch::Stopwatch;

/// Tokens of a completion that says nothing else; OpenAI's.
const TEXT_TOKENS: usize = 16;

/// Submits every sequence of an order. If one is refused, those before it are cancelled.
pub(crate) fn submit(
    served: &Served,
    order: &Order,
    grammar: Option<&Grammar>,
    arrived: Instant,
) -> Result<Sequences, ApiError> {
    check_queue(served, order)?;
    let requests = requests(served, order, grammar)?;
    let mut streams = Vec::with_capacity(requests.len());
    for request in requests {
        let stream = served.app.handle.submit(request);
        streams.push(stream.map_err(|rejected| served.rejected(rejected))?);
    }
    let rules = Arc::new(rules(served, order));
    let prompts = order.prompts.iter().flat_map(|prompt| vec![prompt; order.sampling.best_of]);
    let sequences = streams.into_iter().zip(prompts).map(|(stream, prompt)| {
        let (metrics, turn) = (served.metrics.clone(), stream.turn());
        let watch = Stopwatch::new(metrics, arrived, prompt.tokens.len(), turn);
        let echo = order.reply.echo.then(|| Echo {
            text: prompt.text.clone().unwrap_or_else(|| {
                served.app.tokenizer.decode(&prompt.tokens, order.reply.skip_special)
            }),
            tokens: prompt.tokens.clone(),
            scores: Vec::new(),
            top: order.sampling.params.logprobs.unwrap_or(0) as usize,
        });
        Sequence::new(stream, rules.clone(), echo, watch)
    });
    Ok(Sequences::new(sequences.collect()))
}

/// Refuses what would find the queue too full at any time: it is not worth trying again.
fn check_queue(served: &Served, order: &Order) -> Result<(), ApiError> {
    let limits = served.app.handle.limits();
    let Sampling { n, best_of, .. } = order.sampling;
    let sequences = order.prompts.len() * best_of;
    let param = match best_of {
        1 => prompt_field(order.dialect),
        _ if best_of > n => "best_of",
        _ => "n",
    };
    if sequences > limits.waiting_requests {
        let most = limits.waiting_requests;
        let message = format!("{sequences} sequences are asked for, this server queues {most}");
        return Err(ApiError::value(param, message));
    }
    let tokens = order.prompt_tokens() * best_of;
    if sequences > 1 && tokens > limits.waiting_tokens {
        let most = limits.waiting_tokens;
        let message = format!("the prompts have {tokens} tokens, this server queues {most}");
        return Err(ApiError::value(param, message));
    }
    Ok(())
}

fn prompt_field(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Chat => "messages",
        Dialect::Text => "prompt",
    }
}

fn requests(
    served: &Served,
    order: &Order,
    grammar: Option<&Grammar>,
) -> Result<Vec<GenerateRequest>, ApiError> {
    let echoed = order.sampling.params.logprobs.filter(|_| order.reply.echo);
    let asked = order.sampling.prompt_logprobs;
    let mut requests = Vec::new();
    for prompt in &order.prompts {
        let stop = stop_rules(served, order, prompt.tokens.len())?;
        let params = order.sampling.seeded().enumerate();
        requests.extend(params.map(|(index, params)| GenerateRequest {
            prompt: prompt.tokens.clone(),
            sampling: Arc::new(params),
            stop: stop.clone(),
            // The prompt of all answers is the same; the first one's tells of it.
            prompt_logprobs: echoed.max(asked.filter(|_| index == 0)),
            constraint: constraint(order, grammar),
            pooling: None,
        }));
    }
    Ok(requests)
}

/// What one answer must be like, its thoughts left alone.
fn constraint(order: &Order, grammar: Option<&Grammar>) -> Option<Box<dyn Constraint>> {
    let own = grammar.map(guide::constraint);
    match &order.thinking {
        Some(thinking) => thinking.constraint(own),
        None => own,
    }
}

fn stop_rules(served: &Served, order: &Order, prompt: usize) -> Result<StopRules, ApiError> {
    let stops = &order.sampling.stops;
    let eos_tokens = &served.app.model.eos_tokens;
    let limit = served.app.handle.limits().context_tokens;
    let left = limit.saturating_sub(prompt);
    let output = match (stops.max_tokens, order.dialect) {
        // The engine generates at least one; it is dropped.
        (Some(max), _) => max.max(1) as usize,
        (None, Dialect::Chat) => left.max(1),
        (None, Dialect::Text) => left.clamp(1, TEXT_TOKENS),
    };
    if output > left {
        let rejected = Rejected::TooLong { limit, prompt, output };
        return Err(served.rejected(rejected).of(prompt_field(order.dialect)));
    }
    if stops.min_tokens as usize > output {
        let min = stops.min_tokens;
        let message = format!("min_tokens is {min}, but at most {output} tokens are generated");
        return Err(ApiError::value("min_tokens", message));
    }
    Ok(StopRules {
        max_tokens: output as u32,
        min_tokens: stops.min_tokens,
        eos_tokens: if stops.ignore_eos { Vec::new() } else { eos_tokens.clone() },
        stop_tokens: stops.tokens.clone(),
    })
}

fn rules(served: &Served, order: &Order) -> Rules {
    let stops = &order.sampling.stops;
    Rules {
        tokenizer: served.app.tokenizer.clone(),
        stop_strings: stops.strings.clone(),
        stop_tokens: stops.tokens.clone(),
        min_tokens: stops.min_tokens,
        skip_special: order.reply.skip_special,
        shown: served.style.shown.clone(),
        answer: order.answer.clone(),
        prompt_only: stops.max_tokens == Some(0),
        scores: order.sampling.params.logprobs.is_some(),
        prompt_scores: order.sampling.prompt_logprobs.is_some(),
    }
}

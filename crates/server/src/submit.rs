//! An order goes to the engine: all its sequences, or none.

use std::sync::Arc;
use std::time::Instant;

use kvant_engine::{GenerateRequest, Rejected, StopRules};

use crate::error::ApiError;
use crate::order::{Dialect, Order};
use crate::sequence::{Echo, Rules, Sequence, Sequences};
use crate::served::Served;
use crate::stopwatch::Stopwatch;

/// Tokens of a completion that says nothing else; OpenAI's.
const TEXT_TOKENS: usize = 16;

/// Submits every sequence of an order. If one is refused, those before it are cancelled.
pub(crate) fn submit(
    served: &Served,
    order: &Order,
    arrived: Instant,
) -> Result<Sequences, ApiError> {
    check_queue(served, order)?;
    let requests = requests(served, order)?;
    let mut streams = Vec::with_capacity(requests.len());
    for request in requests {
        let stream = served.app.handle.submit(request);
        streams.push(stream.map_err(|rejected| served.rejected(rejected))?);
    }
    let rules = Arc::new(rules(served, order));
    let prompts = order.prompts.iter().flat_map(|prompt| vec![prompt; order.sampling.n]);
    let sequences = streams.into_iter().zip(prompts).map(|(stream, prompt)| {
        let watch = Stopwatch::new(served.metrics.clone(), arrived, prompt.tokens.len());
        let echo = order.reply.echo.then(|| Echo {
            text: prompt.text.clone().unwrap_or_else(|| {
                served.app.tokenizer.decode(&prompt.tokens, order.reply.skip_special)
            }),
            tokens: prompt.tokens.clone(),
            scores: Vec::new(),
        });
        Sequence::new(stream, rules.clone(), echo, watch)
    });
    Ok(Sequences::new(sequences.collect()))
}

/// Refuses what would find the queue too full at any time: it is not worth trying again.
fn check_queue(served: &Served, order: &Order) -> Result<(), ApiError> {
    let limits = served.app.handle.limits();
    let n = order.sampling.n;
    let sequences = order.prompts.len() * n;
    let param = if n > 1 { "n" } else { prompt_field(order.dialect) };
    if sequences > limits.waiting_requests {
        let most = limits.waiting_requests;
        let message = format!("{sequences} sequences are asked for, this server queues {most}");
        return Err(ApiError::value(param, message));
    }
    let tokens = order.prompt_tokens() * n;
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

fn requests(served: &Served, order: &Order) -> Result<Vec<GenerateRequest>, ApiError> {
    let scores = order.sampling.params.logprobs.filter(|_| order.reply.echo);
    let mut requests = Vec::new();
    for prompt in &order.prompts {
        let stop = stop_rules(served, order, prompt.tokens.len())?;
        requests.extend(order.sampling.seeded().map(|params| GenerateRequest {
            prompt: prompt.tokens.clone(),
            sampling: Arc::new(params),
            stop: stop.clone(),
            prompt_logprobs: scores,
        }));
    }
    Ok(requests)
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
        prompt_only: stops.max_tokens == Some(0),
        scores: order.sampling.params.logprobs.is_some(),
    }
}

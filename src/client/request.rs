//! `Server`: finds out what is at an address, sends one request and times its answer.

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use kvant_bench::{Answer, Failure};
use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body};

use super::Outcome;
use super::chunk::{self, message, one_line};
use super::plan::{Order, Plan};
use super::sse::EventStream;

/// Most bytes of an answer that is no stream.
const WHOLE_BYTES: u64 = 1 << 20;

/// A server and the model that it is asked for.
#[derive(Debug)]
pub(super) struct Server {
    agent: Agent,
    pub(super) url: String,
    pub(super) model: String,
    key: Option<String>,
}

impl Server {
    /// Asks the server for its models and picks the first, or checks the one wished for.
    pub(super) fn find(
        url: &str,
        model: Option<&str>,
        key: Option<&str>,
        timeout: Duration,
    ) -> Result<Self> {
        let url = url.trim_end_matches('/');
        let url = url.strip_suffix("/v1").unwrap_or(url).to_owned();
        if !["http://", "https://"].iter().any(|scheme| url.starts_with(scheme)) {
            bail!("--url {url}: it must be like http://127.0.0.1:8000");
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // What is measured is the server, not what stands between.
            .proxy(None)
            .accept_encoding("identity")
            // A connection a request: one that the server has meanwhile closed is no error of its.
            .max_idle_connections(0)
            .timeout_global(Some(timeout));
        let key = key.map(|key| format!("Bearer {key}"));
        let mut server = Self { agent: config.build().into(), url, model: String::new(), key };
        server.model = server.pick(model)?;
        Ok(server)
    }

    fn pick(&self, wished: Option<&str>) -> Result<String> {
        let url = &self.url;
        let mut request = self.agent.get(format!("{url}/v1/models"));
        if let Some(key) = &self.key {
            request = request.header("Authorization", key);
        }
        let answer = request.call().map_err(|error| {
            anyhow!("{url} cannot be reached: {}; is the server running?", failure(&error).what)
        })?;
        let status = answer.status().as_u16();
        let body = whole(answer);
        let listed = body["data"].as_array().into_iter().flatten();
        let names: Vec<&str> = listed.filter_map(|model| model["id"].as_str()).collect();
        match (status, wished, names.first()) {
            (401 | 403, ..) => bail!("{url}: {}; give --api-key", message(&body)),
            (200, Some(name), Some(_)) if !names.contains(&name) => {
                bail!("{url} has no model {name}; it has {}", one_line(&names.join(", ")))
            }
            // Not every server lists its models; it will say so itself if it has no such one.
            (_, Some(name), _) => Ok(name.to_owned()),
            (200, None, Some(name)) => Ok((*name).to_owned()),
            _ => bail!("{url}/v1/models lists no model (HTTP {status}); give --model NAME"),
        }
    }

    /// Sends a request that is not measured: what is wrong with all is said once, and the server is
    /// warm.
    pub(super) fn probe(&self, plan: &Plan) -> Result<()> {
        let order = plan.probe();
        let (url, path) = (&self.url, order.path);
        match self.complete(&order, Instant::now()) {
            Ok(_) => Ok(()),
            Err(Failure { kind, what }) if kind == "http 404" => {
                bail!("{url} has no {path} for model {}: {what}", self.model)
            }
            Err(Failure { what, .. }) => bail!("{url}{path}: {what}"),
        }
    }

    /// Sends a request; its times count from `due`.
    pub(super) fn complete(&self, order: &Order, due: Instant) -> Outcome {
        let mut request = self.agent.post(format!("{}{}", self.url, order.path));
        request = request.header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", key);
        }
        let answer = request.send(&order.body).map_err(|error| failure(&error))?;
        let status = answer.status();
        if !status.is_success() {
            let what = format!("HTTP {}: {}", status.as_u16(), message(&whole(answer)));
            return Err(Failure { kind: format!("http {}", status.as_u16()), what });
        }
        listen(answer.into_body().into_reader(), order, due)
    }
}

/// Reads a stream to its end.
pub(super) fn listen(mut body: impl Read, order: &Order, due: Instant) -> Outcome {
    let broken = |what: String| Failure { kind: "stream".to_owned(), what };
    // No server sends more events with tokens than tokens; what does would never end.
    let most = 2 * order.output_tokens as usize + 64;
    let (mut times, mut finished, mut usage) = (Vec::new(), None, None);
    let (mut stream, mut events, mut buffer) = (EventStream::default(), Vec::new(), [0; 16 << 10]);
    'read: loop {
        let count = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                let failed = failure(&ureq::Error::from(error));
                let kind = if failed.kind == "timeout" { failed.kind } else { "stream".to_owned() };
                return Err(Failure { kind, what: failed.what });
            }
        };
        let now = due.elapsed();
        let pushed = stream.push(&buffer[..count], &mut events);
        for event in events.drain(..) {
            let chunk = chunk::read(&event).map_err(broken)?;
            if chunk.token {
                times.push(now);
            }
            finished = finished.or(chunk.finished.then_some(now));
            usage = chunk.usage.or(usage);
            if chunk.last {
                finished = finished.or(Some(now));
                break 'read;
            }
        }
        pushed.map_err(|_| broken("an event is longer than 1 MiB".to_owned()))?;
        if times.len() > most {
            return Err(broken(format!("more than {most} tokens came")));
        }
    }
    let ended = format!("the stream ended after {} tokens, before its end", times.len());
    let finished = finished.ok_or_else(|| broken(ended))?;
    let counted = (u64::from(order.input_tokens), times.len() as u64);
    let (input_tokens, output_tokens) = usage.unwrap_or(counted);
    if times.is_empty() {
        // Tokens that are no text: the first is known to be there at the end.
        times.push(finished);
    }
    Ok(Answer {
        times,
        latency: due.elapsed(),
        input_tokens,
        output_tokens,
        asked_tokens: u64::from(order.output_tokens),
        told: usage.is_some(),
    })
}

/// An answer that is no stream: JSON, or its text.
fn whole(answer: Response<Body>) -> Value {
    let mut text = Vec::new();
    // What was cut or lost on the way is not what the message is about.
    let _ = answer.into_body().into_reader().take(WHOLE_BYTES).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    serde_json::from_str(&text).unwrap_or_else(|_| Value::from(text))
}

/// Why there is no answer.
fn failure(error: &ureq::Error) -> Failure {
    let (kind, what) = match error {
        ureq::Error::Timeout(_) => ("timeout", "no answer within --timeout".to_owned()),
        ureq::Error::Io(io) if io.kind() == ErrorKind::ConnectionRefused => {
            ("connection", "the connection is refused".to_owned())
        }
        ureq::Error::HostNotFound => ("connection", "there is no such host".to_owned()),
        other => ("connection", one_line(&other.to_string())),
    };
    Failure { kind: kind.to_owned(), what }
}

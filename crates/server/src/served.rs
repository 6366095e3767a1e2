//! `Served`: what all requests share.

use std::sync::Arc;

use kvant_engine::{Health, Rejected};
use tokio::sync::Semaphore;

use crate::App;
use crate::access::Cors;
use crate::error::ApiError;
use crate::guide::Guides;
use crate::json::Fields;
use crate::metrics::Metrics;
use crate::style::ChatStyle;

/// The app with what it counts.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) app: App,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) style: ChatStyle,
    pub(crate) cors: Cors,
    pub(crate) guides: Guides,
    text_tasks: Arc<Semaphore>,
}

impl Served {
    pub(crate) fn new(app: App) -> Self {
        let metrics = Metrics::new(&app.model.id, app.model.max_model_len);
        let text_tasks = Arc::new(Semaphore::new(app.options.text_tasks.max(1)));
        let style = ChatStyle::new(app.template.as_deref(), &app.tokenizer, &app.chat);
        let cors = Cors::new(app.origins.clone());
        let guides = Guides::default();
        Self { app, metrics: Arc::new(metrics), style, cors, guides, text_tasks }
    }

    /// Runs work on text away from the threads that serve. No more than `text_tasks` at a time:
    /// it bounds the memory of parsed bodies too.
    pub(crate) async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        task: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = self.text_tasks.clone().acquire_owned().await;
        let served = self.clone();
        let working = tokio::task::spawn_blocking(move || {
            // Kept until the work is over, whether or not somebody still waits for it.
            let _turn = turn;
            task(&served)
        });
        working.await.unwrap_or_else(|error| {
            tracing::error!("work on a request's text failed: {error}");
            Err(ApiError::internal("internal_error", "the request could not be read"))
        })
    }

    /// Refuses at once what `submit` would refuse after all the work on the text.
    pub(crate) fn check_open(&self) -> Result<(), ApiError> {
        let handle = &self.app.handle;
        let gauges = handle.gauges();
        let full = gauges.waiting >= handle.limits().waiting_requests as u64;
        match handle.health() {
            Health::Dead(_) => Err(self.rejected(Rejected::Dead)),
            Health::Draining => Err(self.rejected(Rejected::Closing)),
            Health::Ok | Health::Stalled(_) if full => Err(self.rejected(Rejected::QueueFull {
                waiting_requests: gauges.waiting as usize,
                waiting_tokens: gauges.waiting_tokens as usize,
            })),
            Health::Ok | Health::Stalled(_) => Ok(()),
        }
    }

    /// An error of a sequence as clients may see it: what killed an engine is for the log.
    pub(crate) fn public(&self, error: ApiError) -> ApiError {
        match self.app.handle.health() {
            Health::Dead(_) => ApiError::unavailable("engine_dead", "the engine has failed"),
            _ => error,
        }
    }

    /// Counts a rejection.
    pub(crate) fn rejected(&self, rejected: Rejected) -> ApiError {
        self.metrics.rejected(&rejected);
        rejected.into()
    }

    /// Takes `model`: an empty or missing one means the served one.
    pub(crate) fn check_model(&self, fields: &mut Fields) -> Result<(), ApiError> {
        match fields.text("model")? {
            Some(name) if !name.is_empty() && name != self.app.model.id => {
                Err(self.unknown_model(&name))
            }
            _ => Ok(()),
        }
    }

    /// 404 with the name that would do.
    pub(crate) fn unknown_model(&self, name: &str) -> ApiError {
        let name: String = name.chars().take(200).collect();
        let message = format!("the model {name:?} is not served here, {} is", self.app.model.id);
        let status = axum::http::StatusCode::NOT_FOUND;
        ApiError::refused(status, "model_not_found", message).of("model")
    }

    /// Tokens of a text, at least one.
    pub(crate) fn encode(
        &self,
        name: &str,
        text: &str,
        special: bool,
    ) -> Result<Arc<[u32]>, ApiError> {
        let tokens = self.app.tokenizer.encode(text, special);
        let tokens = tokens.map_err(|error| ApiError::value(name, error.to_string()))?;
        if tokens.is_empty() {
            return Err(ApiError::value(
                name,
                format!("{name} has no tokens, it needs at least one"),
            ));
        }
        Ok(tokens.into())
    }
}

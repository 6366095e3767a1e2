//! `Seat`: the runner that reads texts, where the decoder is.

use std::sync::Arc;
use std::time::Duration;

use kvant_kv_cache::{
    CacheShape, DeviceRoom, DeviceStore, PageStore, Row, Span, Staging, pages_for,
};
use kvant_models::Decoder;

use super::Window;
use crate::heartbeat::Heartbeat;
use crate::runner::{DeviceRunner, ModelRunner, RunError};
use crate::step::{Place, Step};

/// A runner on the CPU or on a GPU.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "few, and made once")]
pub(super) enum Seat {
    Cpu(ModelRunner),
    Gpu(DeviceRunner),
}

impl Seat {
    /// With so many pages and tails, and staging of so many tokens.
    pub(super) fn new(
        decoder: &Arc<Decoder>,
        shape: &CacheShape,
        (pages, tails): (usize, usize),
        staging_tokens: usize,
        seed: u64,
    ) -> Result<Self, RunError> {
        let Some(gpu) = decoder.site().gpu() else {
            let store = PageStore::new(shape, (pages, tails), seed);
            let staging = Staging::new(shape, staging_tokens);
            return Ok(Self::Cpu(ModelRunner::new(decoder.clone(), store, staging)));
        };
        let q_heads = decoder.spec().heads.q;
        let room = DeviceRoom { pages, tails, staging_tokens, q_heads };
        let store = DeviceStore::new(gpu, shape, room, seed)?;
        Ok(Self::Gpu(DeviceRunner::new(decoder.clone(), gpu, store)))
    }

    /// Whether each prompt needs pages of its own until it is taken. On the CPU prompts stay in
    /// staging, and nobody reads their pages; a GPU has no staging for 16 bits, and their pages are
    /// what is read.
    pub(super) fn keeps_pages(decoder: &Decoder) -> bool {
        decoder.site().gpu().is_some()
    }

    pub(super) fn decoder(&self) -> &Arc<Decoder> {
        match self {
            Self::Cpu(runner) => &runner.decoder,
            Self::Gpu(runner) => runner.decoder(),
        }
    }

    /// Computes a step, but for its logits.
    pub(super) fn forward(&mut self, step: &Step) -> Result<(), RunError> {
        let alive = Heartbeat::new(Duration::MAX);
        match self {
            // On a thread that computes, as the engine's steps.
            Self::Cpu(runner) => rayon::scope(|_| runner.forward(step, &alive)),
            Self::Gpu(runner) => {
                runner.forward(step, &alive)?;
                runner.settle()
            }
        }
    }

    /// Logits after some tokens of the last step.
    pub(super) fn logits<T: Send>(
        &mut self,
        rows: &[u32],
        each: impl Fn(usize, &mut [f32]) -> T + Sync,
    ) -> Result<Vec<T>, RunError> {
        match self {
            Self::Cpu(runner) => runner.logits(rows, each),
            Self::Gpu(runner) => runner.logits(rows, each),
        }
    }

    /// Brings a prompt that another seat has computed into pages.
    pub(super) fn take(
        &mut self,
        source: &Self,
        (key, window): (u64, &Window),
        (from, to): (&Place, &Place),
    ) -> Result<(), RunError> {
        let row = Row { pages: &to.pages, tail: to.tail, position: 0, tokens: 0 };
        match (self, source) {
            (Self::Cpu(own), Self::Cpu(source)) => {
                let span = Span { start: 0, end: window.prompt, total: window.prompt };
                for layer in 0..own.decoder.spec().layers.len() {
                    own.store.convert(layer, (&source.staging, key), span, row)?;
                }
                Ok(())
            }
            (Self::Gpu(own), Self::Gpu(source)) => {
                let from = &from.pages[..pages_for(window.prompt)];
                own.take(source, from, row, window.prompt)
            }
            _ => unreachable!("both have the decoder's place"),
        }
    }
}

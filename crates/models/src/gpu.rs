//! `GpuStep`: the operations of a step on a GPU, each a launch of a kernel on the memory of the
//! workspace's tensors. What changes from step to step, ids, positions and rows, lies in device
//! memory and goes up once a step.

mod copied;
mod ids;

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Error, Result, Tensor, bail};
use kvant_kernels::device::{
    Activations, AnglesParams, Arg, CastParams, GATE_NUMBERS, GateParams, Gpu, GpuBuffer, GpuError,
    Kernel, LookupParams, NormParams, Params, PickParams, Place, SoftCapParams, SplitParams,
};

use copied::{Copied, Lies};

use crate::split::Split;
use crate::workspace::Views;
use crate::{Activation, Embedding, RmsNorm, Rotary};

/// An argument, or why there is none.
pub(crate) type Put<'a> = std::result::Result<Arg<'a>, GpuError>;

/// Numbers that a group of most kernels takes.
const GROUP_NUMBERS: usize = 512;
/// Positions of a rotary table's finer part.
const FINE: usize = 256;
/// Positions that there are tables for at least, whatever the model's context.
const POSITIONS: usize = 1 << 18;

/// What a step on a GPU has beside its activations.
#[derive(Debug)]
pub(crate) struct GpuStep {
    gpu: Gpu,
    /// Tokens that there is room for.
    room: usize,
    /// Ids of the step's tokens, then their positions; from `2 * room` on rows to pick, and from
    /// `3 * room` on tokens that a kernel chose.
    words: GpuBuffer,
    /// The input of a product in the weights' numbers.
    narrow: GpuBuffer,
    /// What `narrow` has a copy of, and what products take.
    copied: Mutex<Copied>,
    tables: Vec<GpuBuffer>,
    /// Positions of the tables.
    positions: usize,
    /// Of a mixture of experts, those of all experts one after the other: rows of tokens, then,
    /// from the middle on, weights.
    visits: GpuBuffer,
}

/// What is added to the residual stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Added<'a> {
    Nothing,
    Delta,
    /// The norm of delta.
    Normed(&'a RmsNorm),
}

/// Numbers on both sides of a norm on a GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around {
    /// Of delta.
    pub(crate) delta: Activations,
    /// Of the copy that is the only thing read of it; `None` if its f32 are read.
    pub(crate) reader: Option<Activations>,
}

/// Sizes of a [`GpuStep`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepRoom {
    pub(crate) tokens: usize,
    /// The longest input of a product.
    pub(crate) input: usize,
    /// The model's.
    pub(crate) context: usize,
    /// Experts that a token uses; 0 where there are none.
    pub(crate) experts: usize,
}

impl GpuStep {
    pub(crate) fn new(gpu: &Gpu, room: StepRoom, rotaries: &[Rotary]) -> Result<Self> {
        let alloc = |bytes| gpu.alloc(bytes).map_err(Error::wrap);
        let positions = room.context.max(POSITIONS).next_multiple_of(FINE);
        let table = |rotary: &Rotary| {
            let bytes = rotary.table(FINE, positions / FINE);
            crate::site::upload(gpu, &[&bytes])
        };
        Ok(Self {
            gpu: gpu.clone(),
            room: room.tokens,
            words: alloc(4 * 4 * room.tokens)?,
            narrow: alloc(2 * room.tokens * room.input)?,
            copied: Mutex::default(),
            tables: rotaries.iter().map(table).collect::<Result<_>>()?,
            positions,
            visits: alloc(2 * 4 * room.tokens * room.experts)?,
        })
    }

    /// The device.
    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn put(&self, (to, at): (&GpuBuffer, usize), words: &[u32]) -> Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.gpu.write(to, 4 * at, &bytes).map_err(Error::wrap)
    }

    /// Angles of the step's positions by the table of a rotary embedding, `[tokens, rotated]`.
    pub(crate) fn angles(&self, rotary: usize, out: &Tensor) -> Result<()> {
        let (tokens, rotated) = out.dims2()?;
        let pairs = rotated / 2;
        let rows = (self.positions / FINE) as u32;
        self.launch(
            (Kernel::Angles, [pairs.div_ceil(128), tokens, 1]),
            [kept(&self.words, 4 * tokens), kept(&self.tables[rotary], 0), written(out)],
            &AnglesParams { pairs: pairs as u32, rows },
        )
    }

    /// Rows of the embedding by the step's ids.
    pub(crate) fn lookup(&self, out: &Tensor, embedding: &Embedding, scale: f32) -> Result<()> {
        let (tokens, hidden) = out.dims2()?;
        let Some((table, numbers)) = embedding.table() else { bail!("no embedding on the GPU") };
        let vocab = embedding.vocab() as u32;
        let numbers = numbers as u32;
        self.launch(
            (Kernel::Lookup, [hidden.div_ceil(GROUP_NUMBERS), tokens, 1]),
            [kept(&self.words, 0), kept(table, 0), written(out)],
            &LookupParams { hidden: hidden as u32, vocab, numbers, scale },
        )
    }

    /// The norm of the stream, with what is added to it before.
    pub(crate) fn norm(
        &self,
        views: &Views,
        (norm, around): (&RmsNorm, Around),
        added: Added<'_>,
    ) -> Result<()> {
        let (tokens, width) = views.residual.dims2()?;
        let (weight, eps) = norm.on_gpu()?;
        let (add, (post, post_eps)) = match added {
            Added::Nothing => (0, (weight, eps)),
            Added::Delta => (1, (weight, eps)),
            Added::Normed(post) => (2, post.on_gpu()?),
        };
        let numbers = self.copies(&views.normed);
        self.launch(
            (Kernel::Norm, [tokens, 1, 1]),
            [
                written(&views.residual),
                written(&views.normed),
                read(&views.delta),
                kept(post, 0),
                kept(weight, 0),
                self.narrowed(),
            ],
            &NormParams {
                width: width as u32,
                add,
                eps,
                post_eps,
                numbers,
                only: u32::from(around.reader.is_some_and(|of| of as u32 == numbers)),
                from: around.delta as u32,
            },
        )
    }

    /// q, k and v apart.
    pub(crate) fn split(&self, views: &Views, split: &Split<'_>, angles: &Tensor) -> Result<()> {
        let heads = split.heads;
        let tokens = views.tokens;
        let [q, k] = match split.norms {
            Some([q, k]) => [Some(q.on_gpu()?), Some(k.on_gpu()?)],
            None => [None, None],
        };
        let weight = |norm: Option<(_, f32)>| match norm {
            Some((weight, _)) => kept(weight, 0),
            None => read(&views.qkv),
        };
        let eps = |norm: Option<(_, f32)>| norm.map_or(0.0, |(_, eps)| eps);
        let rotated = split.rotary.rotated();
        // A layer without positions has no angles, and reads none.
        let angles = if rotated == 0 { read(&views.qkv) } else { read(angles) };
        let params = SplitParams {
            q_heads: heads.q as u32,
            kv_heads: heads.kv as u32,
            dim: heads.dim as u32,
            rotated: rotated as u32,
            tokens: tokens as u32,
            norms: u32::from(split.norms.is_some()),
            q_eps: eps(q),
            k_eps: eps(k),
        };
        self.launch(
            (Kernel::Split, params.grid()),
            [read(&views.qkv), angles, weight(q), weight(k), written(&views.heads)],
            &params,
        )
    }

    /// The gated product of gate and up, which are of `from` in the memory of `gate_up`; taken as
    /// its copy alone, if that is of the numbers of `reader`.
    pub(crate) fn gate(
        &self,
        gated: &Tensor,
        (gate_up, from): (&Tensor, Activations),
        (activation, reader): (u32, Option<Activations>),
    ) -> Result<()> {
        let (tokens, width) = gated.dims2()?;
        let numbers = self.copies(gated);
        self.launch(
            (Kernel::Gate, [width.div_ceil(GATE_NUMBERS), tokens, 1]),
            [read(gate_up), written(gated), self.narrowed()],
            &GateParams {
                width: width as u32,
                activation,
                numbers,
                only: u32::from(reader.is_some_and(|of| of as u32 == numbers)),
                from: from as u32,
            },
        )
    }

    /// Some rows of matrices, in the order asked for: of each pair those of the second one become
    /// the first one.
    pub(crate) fn pick<const N: usize>(
        &self,
        rows: &[u32],
        pairs: [[&Tensor; 2]; N],
    ) -> Result<()> {
        if rows.len() > self.room {
            bail!("{} rows after a step of {} tokens", rows.len(), self.room)
        }
        self.put((&self.words, 2 * self.room), rows)?;
        for [out, x] in pairs {
            let (tokens, width) = x.dims2()?;
            if let Some(row) = rows.iter().find(|row| **row as usize >= tokens) {
                bail!("row {row} of a step of {tokens} tokens")
            }
            self.launch(
                (Kernel::Pick, [width.div_ceil(GROUP_NUMBERS), rows.len(), 1]),
                [kept(&self.words, 8 * self.room), read(x), written(out)],
                &PickParams { width: width as u32, tokens: tokens as u32 },
            )?;
        }
        Ok(())
    }

    /// Which tokens the experts take, those of one after those of another, and the weights of what
    /// they give.
    pub(crate) fn visits(&self, rows: &[u32], weights: &[f32]) -> Result<()> {
        let room = self.visits.bytes() / 8;
        if rows.len() > room || rows.len() != weights.len() {
            bail!(
                "{} visits of experts, {} weights, in a room of {room}",
                rows.len(),
                weights.len()
            )
        }
        let weights: Vec<u32> = weights.iter().map(|weight| weight.to_bits()).collect();
        self.put((&self.visits, 0), rows)?;
        self.put((&self.visits, room), &weights)
    }

    /// The rows of x that visits from the `first` on name, as many as out has.
    pub(crate) fn visitors(&self, out: &Tensor, x: &Tensor, first: usize) -> Result<()> {
        let (tokens, width) = x.dims2()?;
        self.launch(
            (Kernel::Pick, [width.div_ceil(GROUP_NUMBERS), out.dim(0)?, 1]),
            [kept(&self.visits, 4 * first), read(x), written(out)],
            &PickParams { width: width as u32, tokens: tokens as u32 },
        )
    }

    /// Adds what an expert gave to those rows of out, with its weights.
    pub(crate) fn weigh(&self, out: &Tensor, x: &Tensor, first: usize) -> Result<()> {
        let (tokens, width) = out.dims2()?;
        let weights = self.visits.bytes() / 2 + 4 * first;
        self.launch(
            (Kernel::Weigh, [width.div_ceil(GROUP_NUMBERS), x.dim(0)?, 1]),
            [kept(&self.visits, 4 * first), kept(&self.visits, weights), read(x), written(out)],
            &PickParams { width: width as u32, tokens: tokens as u32 },
        )
    }

    /// `cap · tanh(x / cap)`
    pub(crate) fn soft_cap(&self, x: &Tensor, cap: f32) -> Result<()> {
        let count = x.elem_count();
        self.launch(
            (Kernel::SoftCap, [count.div_ceil(GROUP_NUMBERS), 1, 1]),
            [written(x)],
            &SoftCapParams { count: count as u32, cap },
        )
    }

    fn narrowed(&self) -> Put<'_> {
        Place::buffer(&self.narrow, 0).map(Arg::Out)
    }

    fn copied(&self) -> MutexGuard<'_, Copied> {
        self.copied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kind of numbers in which a kernel that makes x is to leave a copy beside it; 0: none.
    fn copies(&self, x: &Tensor) -> u32 {
        self.copied().leaves(x.id()).map_or(0, |numbers| numbers as u32)
    }

    /// Notes that the memory of x is of 16-bit numbers; the next product that reads x takes such.
    pub(crate) fn narrowed_itself(&self, x: &Tensor, numbers: Activations) {
        *self.copied() = Copied::instead(x.id(), numbers);
    }

    /// The copy of x in 16-bit numbers that its kernel left, if it did; from now on kernels that
    /// can leave one do.
    pub(crate) fn copy<'a>(
        &'a self,
        x: &'a Tensor,
        numbers: Activations,
    ) -> Result<Option<Place<'a>>> {
        let place = self.copied().take(x.id(), numbers).map(|lies| match lies {
            Lies::Beside => Place::buffer(&self.narrow, 0),
            Lies::Instead => Place::tensor(x),
        });
        place.transpose().map_err(Error::wrap)
    }

    /// x in 16-bit numbers, until the next call.
    pub(crate) fn narrow<'a>(&'a self, x: &'a Tensor, numbers: Activations) -> Result<Place<'a>> {
        if let Some(copy) = self.copy(x, numbers)? {
            return Ok(copy);
        }
        let count = x.elem_count();
        let out = Place::buffer(&self.narrow, 0).map_err(Error::wrap)?;
        out.holds("activations", 2 * count).map_err(Error::wrap)?;
        self.launch(
            (Kernel::Cast, [count.div_ceil(GROUP_NUMBERS), 1, 1]),
            [read(x), Ok(Arg::Out(out.clone()))],
            &CastParams { count: count as u32, numbers: numbers as u32 },
        )?;
        Ok(out)
    }

    /// Puts a kernel of the model into the queue.
    pub(crate) fn launch<const N: usize>(
        &self,
        (kernel, grid): (Kernel, [usize; 3]),
        args: [Put<'_>; N],
        params: &impl Params,
    ) -> Result<()> {
        let args =
            args.into_iter().collect::<std::result::Result<Vec<_>, _>>().map_err(Error::wrap)?;
        self.gpu.launch((self.gpu.ops(), kernel), grid, &args, params).map_err(Error::wrap)
    }
}

/// An activation in the arguments of kernels.
pub(crate) fn activation_code(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
    }
}

/// A tensor that a kernel reads.
pub(crate) fn read(tensor: &Tensor) -> Put<'_> {
    Arg::read(tensor)
}

/// A tensor that a kernel writes.
pub(crate) fn written(tensor: &Tensor) -> Put<'_> {
    Arg::written(tensor)
}

/// A buffer that a kernel reads, from a byte on.
pub(crate) fn kept(buffer: &GpuBuffer, at: usize) -> Put<'_> {
    Place::buffer(buffer, at).map(Arg::In)
}

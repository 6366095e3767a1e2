//! `Workspace`: the activations of a step, in buffers that are kept from step to step.
//!
//! Buffers grow to the largest step seen. They are tensors, narrowed to the tokens of a step, so
//! that operations on every device write into the same memory step after step.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use kvant_kernels::device::Place;

use crate::gpu::{GpuStep, StepRoom};
use crate::{DecoderSpec, ExpertSpec, Heads, Rotary, Site};

/// Buffers grow by whole multiples of so many tokens: rows in decode come beside a step's prompts,
/// one more or less each time.
const ROOM: usize = 64;

/// Buffers of one decoder's steps; whoever calls `Decoder::forward` owns them.
#[derive(Debug)]
pub struct Workspace {
    widths: Widths,
    site: Site,
    /// Of a GPU's tables.
    rotaries: Vec<Rotary>,
    step: Option<Activations>,
    /// The same for rows of logits.
    head: Option<(usize, [Tensor; 2], [Tensor; 2])>,
}

/// Those of the last step.
#[derive(Debug)]
struct Activations {
    /// Tokens that there is room for.
    room: usize,
    buffers: Buffers,
    views: Views,
    /// The end of the last layer, if the step was not asked for all of its tokens.
    end: Option<Views>,
}

/// Numbers of a token.
#[derive(Debug)]
struct Widths {
    hidden: usize,
    heads: Heads,
    intermediate: usize,
    vocab: usize,
    context: usize,
    experts: Option<ExpertSpec>,
    /// Turned elements of a head, of each rotary embedding.
    rotated: Vec<usize>,
    /// What attention's results are of: what the product with them takes.
    attended: DType,
}

/// `[room * width]` each. What is never needed at the same time shares one.
#[derive(Debug)]
struct Buffers {
    /// The residual stream and its normed copy.
    stream: Tensor,
    /// q, k and v joined; then gate and up joined.
    wide: Tensor,
    /// q, k and v apart.
    heads: Tensor,
    /// What attention gives, unless it is of 16 bits; then the gated product.
    inner: Tensor,
    /// What attention gives in 16 bits.
    narrow: Option<Tensor>,
    delta: Tensor,
    angles: Vec<Tensor>,
    gpu: Option<Arc<GpuStep>>,
    /// Of experts on a GPU: scores, what one of them takes, and what it gives.
    routed: Option<[Tensor; 3]>,
}

/// The activations of a step.
#[derive(Debug)]
pub(crate) struct Views {
    pub(crate) tokens: usize,
    /// `[2, tokens, hidden]`: the residual stream, then its normed copy. One tensor, because one
    /// operation writes both.
    pub(crate) stream: Tensor,
    /// `[tokens, hidden]`: the first half of `stream`.
    pub(crate) residual: Tensor,
    /// `[tokens, hidden]`: the second half of `stream`.
    pub(crate) normed: Tensor,
    /// `[tokens, (heads.q + 2 * heads.kv) * dim]`: q, k and v of a token side by side.
    pub(crate) qkv: Tensor,
    /// The same numbers one after the other: all of `q`, all of `k`, all of `v`.
    pub(crate) heads: Tensor,
    /// `[tokens, heads.q, dim]`
    pub(crate) q: Tensor,
    /// `[tokens, heads.kv, dim]`
    pub(crate) k: Tensor,
    /// `[tokens, heads.kv, dim]`
    pub(crate) v: Tensor,
    /// `[tokens, heads.q, dim]`, the only one that may be of 16 bits
    pub(crate) attended: Tensor,
    /// `[tokens, heads.q * dim]`: the same numbers.
    pub(crate) attended_rows: Tensor,
    /// `[tokens, 2 * intermediate]`
    pub(crate) gate_up: Tensor,
    /// `[tokens, intermediate]`
    pub(crate) gated: Tensor,
    /// `[tokens, hidden]`: what attention or the MLP adds to the residual stream.
    pub(crate) delta: Tensor,
    /// `[tokens, rotated]` of each rotary embedding: cosines, then sines.
    pub(crate) angles: Vec<Tensor>,
    /// What is on a GPU beside them, if they are.
    pub(crate) gpu: Option<Arc<GpuStep>>,
    /// Of experts on a GPU: their scores, `[tokens, count]`, and what one of them takes and gives,
    /// `[tokens, hidden]` each.
    pub(crate) routed: Option<[Tensor; 3]>,
}

impl Workspace {
    /// Empty; buffers come with the first step.
    pub(crate) fn new(
        spec: &DecoderSpec,
        rotaries: &[Rotary],
        (site, attended): (&Site, DType),
    ) -> Self {
        let widths = Widths {
            hidden: spec.hidden,
            heads: spec.heads,
            intermediate: spec.intermediate,
            vocab: spec.vocab,
            context: spec.context,
            experts: spec.mlp.experts,
            rotated: rotaries.iter().map(Rotary::rotated).collect(),
            attended,
        };
        Self { widths, site: site.clone(), rotaries: rotaries.to_vec(), step: None, head: None }
    }

    /// Tokens for which there is room after a step of so many: some more, since buffers that grow
    /// are all made anew, and recorded steps with them.
    pub fn room(tokens: usize) -> usize {
        tokens.saturating_add(2 * ROOM - 1) / ROOM * ROOM
    }

    /// Activations of a step of so many tokens, with the numbers of an earlier one.
    pub(crate) fn views(&mut self, tokens: usize) -> Result<&Views> {
        let step = match self.step.take() {
            Some(step) if tokens <= step.room => {
                let same = step.views.tokens == tokens;
                let views = || Views::new(&self.widths, &step.buffers, tokens);
                let views = if same { step.views } else { views()? };
                Activations { views, end: None, ..step }
            }
            // Freed before larger ones are made.
            before => {
                drop(before);
                let room = Self::room(tokens);
                let buffers = Buffers::new(&self.widths, room, (&self.site, &self.rotaries))?;
                let views = Views::new(&self.widths, &buffers, tokens)?;
                Activations { room, buffers, views, end: None }
            }
        };
        Ok(&self.step.insert(step).views)
    }

    /// The activations of the step that has begun, and those of the end of its last layer if only
    /// so many of its tokens are asked for.
    pub(crate) fn ending(
        &mut self,
        asked: Option<usize>,
    ) -> Result<Option<(&Views, Option<&Views>)>> {
        let Some(Activations { buffers, views, end, .. }) = &mut self.step else { return Ok(None) };
        let asked = asked.map(|asked| views.ending(&self.widths, buffers, asked));
        *end = asked.transpose()?;
        Ok(Some((views, end.as_ref())))
    }

    /// The activations of the last step.
    pub(crate) fn last(&self) -> Option<&Views> {
        self.step.as_ref().map(|step| &step.views)
    }

    /// Tokens and rows of logits that the buffers have room for: they are others when they have
    /// grown.
    pub fn rooms(&self) -> [usize; 2] {
        [
            self.step.as_ref().map_or(0, |step| step.room),
            self.head.as_ref().map_or(0, |head| head.0),
        ]
    }

    /// The logits that the last step of so many rows left, `[rows, vocab]`.
    pub fn logits(&mut self, rows: usize) -> Result<&Tensor> {
        Ok(&self.head(rows)?[1])
    }

    /// Hidden states after the final norm, of the last step's tokens that were asked for,
    /// `[tokens, hidden]` f32; overwritten by the next one.
    pub fn hidden(&self) -> Option<&Tensor> {
        self.step.as_ref().map(|step| &step.end.as_ref().unwrap_or(&step.views).normed)
    }

    /// Where a GPU's kernel may leave tokens that it chose after the last step, from a row on:
    /// words, which [`crate::Decoder::begin_chosen`] takes.
    pub fn chosen(&self, row: usize) -> Result<Place<'_>> {
        let step = self.last().and_then(|views| views.gpu.as_deref());
        let Some(step) = step else { bail!("no step on a GPU") };
        step.chosen(row)
    }

    /// What is on a GPU beside the activations of the last step.
    pub(crate) fn gpu(&self) -> Option<Arc<GpuStep>> {
        self.last().and_then(|views| views.gpu.clone())
    }

    /// `[rows, hidden]` for some rows of hidden states, and `[rows, vocab]` for their logits.
    pub(crate) fn head(&mut self, rows: usize) -> Result<&[Tensor; 2]> {
        let zeros = |length| zeros(length, self.site.device());
        let widths = [self.widths.hidden, self.widths.vocab];
        let (room, buffers, views) = match self.head.take() {
            Some((room, buffers, views)) if rows <= room => (room, buffers, views),
            before => {
                drop(before);
                let buffers = [zeros(rows * widths[0])?, zeros(rows * widths[1])?];
                let views = [&buffers[0], &buffers[1]].map(Tensor::clone);
                (rows, buffers, views)
            }
        };
        let views = if views[0].dims() == [rows, widths[0]] {
            views
        } else {
            let [hidden, logits] = &buffers;
            [first(hidden, &[rows, widths[0]])?, first(logits, &[rows, widths[1]])?]
        };
        Ok(&self.head.insert((room, buffers, views)).2)
    }
}

impl Widths {
    fn qkv(&self) -> usize {
        (self.heads.q + 2 * self.heads.kv) * self.heads.dim
    }
}

impl Buffers {
    fn new(widths: &Widths, room: usize, (site, rotaries): (&Site, &[Rotary])) -> Result<Self> {
        let Widths { hidden, heads, intermediate, context, .. } = *widths;
        let attended = heads.q * heads.dim;
        let narrow = widths.attended != DType::F32;
        let narrow = narrow.then(|| Tensor::zeros(room * attended, widths.attended, site.device()));
        let zeros = |length| zeros(length, site.device());
        let input = hidden.max(heads.q * heads.dim).max(intermediate);
        let experts = widths.experts.map_or(0, |experts| experts.used);
        let sizes = StepRoom { tokens: room, input, context, experts };
        let gpu = site.gpu().map(|gpu| GpuStep::new(gpu, sizes, rotaries).map(Arc::new));
        // A GPU has no memory of no bytes.
        let angles = widths.rotated.iter().map(|rotated| zeros((room * rotated).max(1)));
        Ok(Self {
            stream: zeros(room * 2 * hidden)?,
            wide: zeros(room * widths.qkv().max(2 * intermediate))?,
            heads: zeros(room * widths.qkv())?,
            inner: zeros(room * attended.max(intermediate))?,
            narrow: narrow.transpose()?,
            delta: zeros(room * hidden)?,
            angles: angles.collect::<Result<_>>()?,
            routed: match (widths.experts, &gpu) {
                (Some(experts), Some(_)) => Some([
                    zeros(room * experts.count)?,
                    zeros(room * hidden)?,
                    zeros(room * hidden)?,
                ]),
                _ => None,
            },
            gpu: gpu.transpose()?,
        })
    }
}

impl Views {
    fn new(widths: &Widths, buffers: &Buffers, tokens: usize) -> Result<Self> {
        let Widths { hidden, heads: Heads { q: q_heads, kv, dim }, intermediate, .. } = *widths;
        let stream = first(&buffers.stream, &[2, tokens, hidden])?;
        let heads = first(&buffers.heads, &[tokens * widths.qkv()])?;
        let part = |from: usize, count: usize| {
            let part = heads.narrow(0, tokens * from * dim, tokens * count * dim)?;
            part.reshape((tokens, count, dim))
        };
        let attended = buffers.narrow.as_ref().unwrap_or(&buffers.inner);
        let angles = buffers.angles.iter().zip(&widths.rotated);
        let angles = angles.map(|(angles, rotated)| first(angles, &[tokens, *rotated]));
        let routed = buffers.routed.as_ref().map(|[scores, taken, given]| {
            let count = scores.elem_count() / (taken.elem_count() / hidden);
            let [taken, given] = [taken, given].map(|of| first(of, &[tokens, hidden]));
            Ok::<_, candle_core::Error>([first(scores, &[tokens, count])?, taken?, given?])
        });
        Ok(Self {
            tokens,
            residual: stream.get(0)?,
            normed: stream.get(1)?,
            stream,
            qkv: first(&buffers.wide, &[tokens, widths.qkv()])?,
            q: part(0, q_heads)?,
            k: part(q_heads, kv)?,
            v: part(q_heads + kv, kv)?,
            heads,
            attended: first(attended, &[tokens, q_heads, dim])?,
            attended_rows: first(attended, &[tokens, q_heads * dim])?,
            gate_up: first(&buffers.wide, &[tokens, 2 * intermediate])?,
            gated: first(&buffers.inner, &[tokens, intermediate])?,
            delta: first(&buffers.delta, &[tokens, hidden])?,
            angles: angles.collect::<Result<_>>()?,
            gpu: buffers.gpu.clone(),
            routed: routed.transpose()?,
        })
    }

    /// Views of so many of the step's tokens for the end of the last layer, from `q` on, in memory
    /// that it has done with by then.
    fn ending(&self, widths: &Widths, buffers: &Buffers, asked: usize) -> Result<Self> {
        let heads = widths.heads;
        let views = Self::new(widths, buffers, asked)?;
        // In the place of q, k and v joined.
        let q = first(&buffers.wide, &[asked, heads.q, heads.dim])?;
        if self.gpu.is_none() {
            return Ok(Self { q, ..views });
        }
        // Rows of the residual stream come to where its normed copy was, and the other way round: a
        // kernel cannot move rows within a matrix.
        let [residual, normed] =
            [self.normed.narrow(0, 0, asked)?, self.residual.narrow(0, 0, asked)?];
        Ok(Self { residual, normed, q, ..views })
    }
}

fn zeros(length: usize, device: &Device) -> Result<Tensor> {
    Tensor::zeros(length, DType::F32, device)
}

/// The first numbers of a flat buffer, as a tensor of that shape in the same memory.
fn first(buffer: &Tensor, shape: &[usize]) -> Result<Tensor> {
    buffer.narrow(0, 0, shape.iter().product())?.reshape(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_some_tokens_more() {
        for tokens in [1, 63, 64, 65, 2048, 8192, 8193] {
            let room = Workspace::room(tokens);
            assert!((tokens + ROOM..tokens + 2 * ROOM).contains(&room), "{tokens}: {room}");
        }
        assert!(Workspace::room(usize::MAX) > usize::MAX - ROOM);
    }
}

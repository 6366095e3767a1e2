//! `Decoder`: one decoder for all families, over ragged `[tokens, hidden]` activations that stay in
//! a `Workspace`.

use candle_core::{CpuStorage, DType, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};
use kvant_kernels::device::Activations;

use crate::embedding::Lookup;
use crate::floats::{floats, floats_mut};
use crate::gpu::Around;
use crate::mlp::Mlp;
use crate::split::Split;
use crate::workspace::Views;
use crate::{Attend, DecoderSpec, Embedding, Heads, Linear, RmsNorm, Rotary, Site, Workspace};

/// Weights and arithmetic of a model. Knows neither pages nor sequences: it asks an [`Attend`].
#[derive(Debug)]
pub struct Decoder {
    pub(crate) spec: DecoderSpec,
    pub(crate) site: Site,
    pub(crate) embedding: Embedding,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: RmsNorm,
    pub(crate) head: Linear,
    /// The different rotary embeddings of the layers; a block names its own.
    pub(crate) rotaries: Vec<Rotary>,
}

/// A layer: attention, then the MLP, each on a normed copy and added to the residual stream.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) attention_norm: RmsNorm,
    pub(crate) qkv: Linear,
    /// Norms of every head of q and of k.
    pub(crate) qk_norms: Option<[RmsNorm; 2]>,
    pub(crate) output: Linear,
    pub(crate) mlp_norm: RmsNorm,
    pub(crate) mlp: Mlp,
    /// Norms of what attention and the MLP add to the residual stream.
    pub(crate) post_norms: Option<[RmsNorm; 2]>,
    /// Index into the decoder's rotary embeddings.
    pub(crate) rotary: usize,
}

impl Decoder {
    /// Buffers for steps of this decoder.
    pub fn workspace(&self) -> Workspace {
        Workspace::new(&self.spec, &self.rotaries, (&self.site, self.attended()))
    }

    /// What attention is to give: on a GPU the numbers of the matrices that take it, if they are of
    /// one kind.
    fn attended(&self) -> DType {
        let numbers = |block: &Block| block.output.matrix().map(|matrix| matrix.parts().1);
        let first = self.blocks.first().and_then(numbers);
        match first.filter(|_| self.blocks.iter().all(|block| numbers(block) == first)) {
            Some(Activations::F16) => DType::F16,
            Some(Activations::BF16) => DType::BF16,
            _ => DType::F32,
        }
    }

    /// Leaves the hidden states after the final norm in [`Workspace::hidden`], of the tokens that
    /// `attend` is asked for.
    ///
    /// ids and positions: one of each token of the step, of several sequences one after the other.
    /// A token's result depends on its own sequence only, through `attend`.
    pub fn forward(
        &self,
        ids: &[u32],
        positions: &[u32],
        attend: &mut dyn Attend,
        workspace: &mut Workspace,
    ) -> Result<()> {
        self.begin(ids, positions, workspace)?;
        self.compute(attend, workspace)
    }

    /// The first half of `forward`: what the host knows of the step. On a GPU it launches nothing.
    pub fn begin(&self, ids: &[u32], positions: &[u32], workspace: &mut Workspace) -> Result<()> {
        if ids.len() != positions.len() || ids.is_empty() {
            bail!("a step of {} tokens and {} positions", ids.len(), positions.len())
        }
        let views = workspace.views(ids.len())?;
        let (embedding, scale) = (&self.embedding, self.spec.ends.embedding_scale);
        if let Some(step) = &views.gpu {
            return step.begin(ids, positions, embedding.vocab());
        }
        for (rotary, angles) in self.rotaries.iter().zip(&views.angles) {
            rotary.angles(angles, positions)?;
        }
        views.residual.inplace_op1(&Lookup { embedding, ids, scale })
    }

    /// The same on a GPU of a step whose ids the host does not know yet: each is in a row of
    /// [`Workspace::chosen`], where a kernel that is queued already leaves it. One that is no token
    /// is looked up as zeros.
    ///
    /// An error in a workspace without room for so many tokens, which would move the rows.
    pub fn begin_chosen(
        &self,
        rows: &[u32],
        positions: &[u32],
        workspace: &mut Workspace,
    ) -> Result<()> {
        let [room, _] = workspace.rooms();
        if rows.len() != positions.len() || !(1..=room).contains(&rows.len()) {
            bail!("a step of {} tokens and {} positions in {room}", rows.len(), positions.len())
        }
        let Some(step) = &workspace.views(rows.len())?.gpu else { bail!("no step on a GPU") };
        step.begin_chosen(rows, positions)
    }

    /// The second half of `forward`, of the step that has begun. On a GPU it only launches, and if
    /// [`Self::repeats`], then the same for every step of as many tokens in a workspace of the same
    /// [`Workspace::rooms`] that asks for all of them, but for what `attend` does.
    pub fn compute(&self, attend: &mut dyn Attend, workspace: &mut Workspace) -> Result<()> {
        let tokens = workspace.last().map_or(0, |views| views.tokens);
        let asked = attend.asked().filter(|asked| asked.len() < tokens).map(<[u32]>::to_vec);
        let ending = workspace.ending(asked.as_ref().map(Vec::len))?;
        let Some((views, end)) = ending else { bail!("a step that has not begun") };
        if let Some(step) = &views.gpu {
            for (rotary, angles) in views.angles.iter().enumerate() {
                step.angles(rotary, angles)?;
            }
            step.lookup(&views.residual, &self.embedding, self.spec.ends.embedding_scale)?;
        }
        // Of the last norm others read the hidden states too.
        let norms = self.blocks.iter().map(|b| (&b.attention_norm, b.qkv.takes_copies()));
        let mut norms = norms.chain([(&self.norm, None)]);
        if let Some((norm, reader)) = norms.next() {
            norm.norm(views, Around { delta: Activations::F32, reader })?;
        }
        for (layer, (block, next)) in self.blocks.iter().zip(norms).enumerate() {
            let rotary = &self.rotaries[block.rotary];
            block.split(views, (self.spec.heads, rotary))?;
            let mut rest = views;
            if let (Some(asked), Some(end)) = (&asked, end)
                && layer + 1 == self.blocks.len()
            {
                pick_rows(views, end, asked)?;
                rest = end;
            }
            attend.attend(layer, [&rest.q, &views.k, &views.v], &rest.attended)?;
            if rest.tokens > 0 {
                block.attended(rest)?;
                block.feed_forward(rest, next)?;
            }
        }
        Ok(())
    }

    /// Whether a GPU's launches of a step follow from its number of tokens: those of experts follow
    /// from what the router says, and candle's products with blocks allocate.
    pub fn repeats(&self) -> bool {
        let repeats =
            |block: &Block| block.linears().is_some_and(|all| all.iter().all(|l| l.floats()));
        self.site.gpu().is_some() && self.head.floats() && self.blocks.iter().all(repeats)
    }

    /// Whether a GPU's steps are queued as a whole: with experts, the host waits in the middle of
    /// one for what the router says.
    pub fn queues(&self) -> bool {
        self.site.gpu().is_some() && self.blocks.iter().all(|block| block.linears().is_some())
    }

    /// Logits after some tokens of the last step, by their index in [`Workspace::hidden`]: `[rows,
    /// vocab]` f32, in the workspace, where the next call overwrites them.
    pub fn logits<'w>(&self, rows: &[u32], workspace: &'w mut Workspace) -> Result<&'w Tensor> {
        let Some(hidden) = workspace.hidden().cloned() else { bail!("logits before any step") };
        let gpu = workspace.gpu();
        let [picked, logits] = workspace.head(rows.len())?;
        let cap = self.spec.ends.logit_softcap;
        let Some(step) = gpu.as_deref() else {
            picked.inplace_op2(&hidden, &Pick(rows))?;
            self.head.forward(logits, picked)?;
            if let Some(cap) = cap {
                logits.inplace_op1(&SoftCap(cap))?;
            }
            return Ok(logits);
        };
        // A step of decoding wants all rows, as they are.
        let all = rows.len() == hidden.dim(0)? && rows.iter().zip(0..).all(|(row, at)| *row == at);
        if !all {
            step.pick(rows, [[picked, &hidden]])?;
        }
        self.head.apply(logits, if all { &hidden } else { picked }, Some(step))?;
        if let Some(cap) = cap {
            step.soft_cap(logits, cap)?;
        }
        Ok(logits)
    }

    /// Where weights and activations are.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Shape and arithmetic.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Bytes that the weights take, those of mapped files included.
    pub fn weight_bytes(&self) -> u64 {
        // A tied head in blocks is a copy; in floats it is the embedding's own bytes.
        let shared = self.spec.ends.tied_head && !self.embedding.dtype().is_quantized();
        let embedding = if shared { 0 } else { self.embedding.bytes() };
        let blocks = self.blocks.iter().map(Block::bytes).sum::<u64>();
        embedding + blocks + self.norm.bytes() + self.head.bytes()
    }
}

impl Block {
    /// q, k and v, from the normed copy of the stream.
    fn split(&self, views: &Views, (heads, rotary): (Heads, &Rotary)) -> Result<()> {
        let gpu = views.gpu.as_deref();
        self.qkv.apply(&views.qkv, &views.normed, gpu)?;
        let split = Split { heads, norms: self.qk_norms.as_ref(), rotary };
        let angles = &views.angles[self.rotary];
        match gpu {
            None => views.heads.inplace_op3(&views.qkv, angles, &split),
            Some(step) => step.split(views, &split, angles),
        }
    }

    /// From what attention gave to the stream, and its normed copy.
    fn attended(&self, views: &Views) -> Result<()> {
        let gpu = views.gpu.as_deref();
        let delta = self.output.apply_fast(gpu, [&views.attended_rows, &views.delta])?;
        let post = self.post_norms.as_ref().map(|[attention, _]| attention);
        let reader = self.mlp.linears().and_then(|[gate_up, _]| gate_up.takes_copies());
        self.mlp_norm.add(views, post, Around { delta, reader })
    }

    /// The MLP, from the normed copy of the stream to the stream, and the copy for what comes next.
    fn feed_forward(
        &self,
        views: &Views,
        (next_norm, reader): (&RmsNorm, Option<Activations>),
    ) -> Result<()> {
        let delta = self.mlp.forward(views)?;
        let post = self.post_norms.as_ref().map(|[_, mlp]| mlp);
        next_norm.add(views, post, Around { delta, reader })
    }

    /// Its matrices, unless it has experts.
    fn linears(&self) -> Option<[&Linear; 4]> {
        let [gate_up, down] = self.mlp.linears()?;
        Some([&self.qkv, &self.output, gate_up, down])
    }

    fn bytes(&self) -> u64 {
        let optional = [&self.qk_norms, &self.post_norms].into_iter().flatten().flatten();
        let norms = [&self.attention_norm, &self.mlp_norm].into_iter().chain(optional);
        norms.map(RmsNorm::bytes).sum::<u64>()
            + self.qkv.bytes()
            + self.output.bytes()
            + self.mlp.bytes()
    }
}

/// Rows of q and of the residual stream for the end of the last layer.
fn pick_rows(views: &Views, end: &Views, rows: &[u32]) -> Result<()> {
    if let Some(row) = rows.windows(2).find(|pair| pair[0] >= pair[1]) {
        bail!("rows {row:?} of a step are not ascending")
    }
    if rows.is_empty() {
        return Ok(());
    }
    let [q, from] = [end.q.flatten_from(1)?, views.q.flatten_from(1)?];
    if let Some(step) = &end.gpu {
        return step.pick(rows, [[&q, &from], [&end.residual, &views.residual]]);
    }
    q.inplace_op2(&from, &Pick(rows))?;
    views.residual.inplace_op1(&Gather(rows))
}

/// Brings some rows of a matrix, ascending, to its beginning.
struct Gather<'a>(&'a [u32]);

impl InplaceOp1 for Gather<'_> {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (tokens, width) = layout.shape().dims2()?;
        let x = floats_mut(x, layout)?;
        for (to, from) in self.0.iter().enumerate() {
            let from = *from as usize;
            if from >= tokens {
                bail!("row {from} of a step of {tokens} tokens")
            }
            x.copy_within(from * width..(from + 1) * width, to * width);
        }
        Ok(())
    }
}

/// Some rows of a matrix, in the order asked for.
struct Pick<'a>(&'a [u32]);

impl InplaceOp2 for Pick<'_> {
    fn name(&self) -> &'static str {
        "pick"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        out_layout: &Layout,
        x: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let (tokens, width) = layout.shape().dims2()?;
        let x = floats(x, layout)?;
        let out = floats_mut(out, out_layout)?.chunks_exact_mut(width);
        for (out, row) in out.zip(self.0) {
            let row = *row as usize;
            if row >= tokens {
                bail!("row {row} of a step of {tokens} tokens")
            }
            out.copy_from_slice(&x[row * width..][..width]);
        }
        Ok(())
    }
}

/// `cap · tanh(x / cap)`
struct SoftCap(f32);

impl InplaceOp1 for SoftCap {
    fn name(&self) -> &'static str {
        "soft cap"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let cap = self.0;
        for x in floats_mut(x, layout)? {
            *x = (*x / cap).tanh() * cap;
        }
        Ok(())
    }
}

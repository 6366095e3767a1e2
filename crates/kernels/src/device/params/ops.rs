//! Arguments of a model's kernels.

use super::{Field, Params};
use crate::device::GROUP_THREADS;

params! {
    /// Of `norm`.
    NormParams as "KvNormParams" {
        /// Numbers of a row.
        width: u32,
        /// To the stream before its norm: 0 nothing, 1 delta, 2 the norm of delta.
        add: u32,
        /// Added to the mean square.
        eps: f32,
        /// The same of the norm of delta.
        post_eps: f32,
        /// Of a narrow copy: 0 there is none, else `Activations` as a number.
        numbers: u32,
        /// 1: of the norm the copy alone is written, if there is one.
        only: u32,
        /// Of what is added: `Activations` as a number.
        from: u32,
    }
}

params! {
    /// Of `angles`.
    AnglesParams as "KvAnglesParams" {
        /// Pairs of a head that turn.
        pairs: u32,
        /// Multiples of 256 that the table has.
        rows: u32,
    }
}

params! {
    /// Of `split`.
    SplitParams as "KvSplitParams" {
        /// Query heads.
        q_heads: u32,
        /// Key heads.
        kv_heads: u32,
        /// Numbers of a head.
        dim: u32,
        /// Numbers of a head that turn.
        rotated: u32,
        /// Tokens of the step.
        tokens: u32,
        /// 1 if heads of q and k are normed.
        norms: u32,
        /// Of the norm of q.
        q_eps: f32,
        /// Of the norm of k.
        k_eps: f32,
    }
}

impl SplitParams {
    /// Grid of `split`.
    pub fn grid(&self) -> [usize; 3] {
        let lanes = match self.dim {
            ..=64 => 8,
            65..=128 => 16,
            _ => 32,
        };
        let heads = (self.q_heads + 2 * self.kv_heads) as usize;
        [(lanes * heads).div_ceil(GROUP_THREADS), self.tokens as usize, 1]
    }
}

params! {
    /// Of `gate`.
    GateParams as "KvGateParams" {
        /// Numbers of a row of results.
        width: u32,
        /// 0 SiLU, 1 GELU by tanh.
        activation: u32,
        /// Of a narrow copy: 0 there is none, else `Activations` as a number.
        numbers: u32,
        /// 1: the copy alone is written, if there is one.
        only: u32,
        /// Of gates and what they gate: `Activations` as a number.
        from: u32,
    }
}

params! {
    /// Of `matvec`.
    MatvecParams as "KvMatvecParams" {
        /// One to four.
        rows: u32,
        /// Numbers of a row, a multiple of 8.
        input: u32,
        /// Results of a row.
        output: u32,
        /// Numbers from one row of results to the next.
        stride: u32,
        /// Of the weights: `Activations` as a number, of 16 bits.
        numbers: u32,
        /// 1: rows are of f32, which are rounded; 0: of the weights' kind.
        wide: u32,
        /// 0: plain results; else gates lie in front of as many columns that they gate, and this is
        /// their activation and one.
        gate: u32,
    }
}

params! {
    /// Of `skinny`.
    SkinnyParams as "KvSkinnyParams" {
        /// One to [`SKINNY_ROWS`](crate::device::SKINNY_ROWS).
        rows: u32,
        /// Numbers of a row, a multiple of 8.
        input: u32,
        /// Results of a row.
        output: u32,
        /// Numbers from one row of results to the next.
        stride: u32,
        /// Of rows and weights: `Activations` as a number, of 16 bits.
        numbers: u32,
        /// Of results: `Activations` as a number.
        results: u32,
        /// As of `matvec`.
        gate: u32,
        /// Of columns of the matrix, in all.
        tiles: u32,
        /// Of the ring of stages of a group.
        stages: u32,
    }
}

params! {
    /// Of `lookup`.
    LookupParams as "KvLookupParams" {
        /// Numbers of a row.
        hidden: u32,
        /// Rows of the table.
        vocab: u32,
        /// Of the table: `Activations` as a number.
        numbers: u32,
        /// Factor of the result.
        scale: f32,
    }
}

params! {
    /// Of `pick`.
    PickParams as "KvPickParams" {
        /// Numbers of a row.
        width: u32,
        /// Rows there are.
        tokens: u32,
    }
}

params! {
    /// Of `place`.
    PlaceParams as "KvPlaceParams" {
        /// Numbers of a row to place.
        width: u32,
        /// Numbers of a row where they go.
        stride: u32,
        /// The first column there.
        first: u32,
    }
}

params! {
    /// Of `cast`.
    CastParams as "KvCastParams" {
        /// Numbers.
        count: u32,
        /// Of the result: `Activations` as a number.
        numbers: u32,
    }
}

params! {
    /// Of `bias`.
    BiasParams as "KvBiasParams" {
        /// Numbers of a row.
        width: u32,
    }
}

params! {
    /// Of `soft_cap`.
    SoftCapParams as "KvSoftCapParams" {
        /// Numbers.
        count: u32,
        /// What they stay below.
        cap: f32,
    }
}

params! {
    /// How `sample` chooses a token of a row.
    SampleRowParams as "KvSampleRow" {
        /// Lower half of the seed.
        seed_low: u32,
        /// Upper half of the seed.
        seed_high: u32,
        /// Index of the token in its sequence.
        index: u32,
        /// The likeliest tokens that stay; 0: all.
        top_k: u32,
        /// Part of the probability that stays; 1: all.
        top_p: f32,
        /// The least probability that stays, as a part of the highest.
        min_p: f32,
        /// One over the temperature; 0: the likeliest token.
        inverse: f32,
        /// 1 if the log-probability is asked for.
        logprob: u32,
        /// Where the result goes, in pairs of words. Launches of consecutive steps are the same,
        /// and their results lie apart.
        result: u32,
    }
}

params! {
    /// Of `sample`.
    SampleParams as "KvSampleParams" {
        /// Logits of a row.
        vocab: u32,
    }
}

// Arguments of the kernels: structs of 4-byte fields, the same bytes as in
// crates/kernels/src/device/params.rs. A test compares sizes and offsets.

// Signs of a rotation: bit d % 32 of word d / 32 is 1 for minus.
struct KvRotateParams {
  uint signs[8];
  uint vectors; // how many vectors of KV_D numbers there are
};

// Pages of keys and values between a dense layout and tiles. Strides are in numbers; a dense vector
// is at page * page_stride + head * head_stride + slot * token_stride, page counted from 0 or
// looked up in a list.
struct KvPagesParams {
  uint key_signs[8];
  uint value_signs[8];
  uint tokens; // from the first page's first slot on; later slots of the last page are zero vectors
  uint kv_heads;
  uint page_stride;
  uint head_stride;
  uint token_stride;
  uint key_rule; // of the scale: 0 plain, 1 matched, 2 least squares, 3 unbiased
  uint value_rule;
  uint apart; // 1: nothing that is read was written by the last launch or the one before it
};

// Consecutive query tokens of one sequence. Packed pages hold positions from 0 on; 16-bit pages
// hold what follows.
struct KvRow {
  uint query;     // index of the first among all query tokens
  uint tokens;    // how many
  uint position;  // of the first
  uint packed_at; // where its packed pages begin in the list of pages
  uint packed;    // how many
  uint tail_at;   // where its 16-bit pages begin in the list of pages
};

// A part of the attention of a row: some of its packed pages. The parts of a row are neighbours in
// their list, in order; the last one takes the 16-bit tokens too. A part with `parts` 0 is nothing.
struct KvPart {
  uint query;     // index of the row's first query token among all query tokens
  uint tokens;    // query tokens of the row
  uint position;  // of the first
  uint part;      // which part of the row this is
  uint parts;     // how many the row has
  uint first;     // index of the part's first packed page in the row
  uint pages;     // packed pages of the part
  uint pages_at;  // where they begin in the list of pages
  uint packed;    // packed pages of the row, from position 0 on
  uint tail_at;   // where the 16-bit pages with what follows begin in the list of pages
  uint sinks;     // tokens from position 0 on that are read from a 16-bit page instead
  uint sink_page; // that page
  uint mask_at;   // where [tokens, position + tokens] of the row begins in the mask, or KV_NO_MASK
  uint ahead[4];  // the first packed pages of the part, and
  uint tail_page; // the first page of the tail: what the lists say too, for a group's first reads
};
#define KV_NO_MASK 0xffffffffu

struct KvAttendParams {
  uint key_signs[8];
  uint value_signs[8];
  uint q_heads;
  uint kv_heads;
  uint tokens;      // stride of partial results: the most query tokens of any row
  uint window;      // a token sees so many tokens including itself; 0: all
  uint sink_logits; // 1: one logit a query head takes weight and gives no value
  float scale;      // factor of q k
  float soft_cap;   // scores become soft_cap * tanh(score / soft_cap), before the mask; 0: stay
  uint numbers;     // of results: 0 those of queries, 1 f16, 2 bf16
};

struct KvNormParams {
  uint width;
  uint add; // to the stream before its norm: 0 nothing, 1 delta, 2 the norm of delta
  float eps;
  float post_eps; // of the norm of delta
  uint numbers;   // of the narrow copy: 0 there is none, 1 f16, 2 bf16
  uint only;    // 1: of the norm the copy alone is written, if there is one
  uint from;    // of delta: 0 f32, 1 f16, 2 bf16
};

struct KvAnglesParams {
  uint pairs; // of a head that turn
  uint rows;  // multiples of 256 that the table has
};

struct KvSplitParams {
  uint q_heads;
  uint kv_heads;
  uint dim;
  uint rotated; // numbers of a head that turn
  uint tokens;
  uint norms; // 1: heads of q and k are normed
  float q_eps;
  float k_eps;
};

struct KvGateParams {
  uint width;
  uint activation; // 0 SiLU, 1 GELU by tanh
  uint numbers;    // of the narrow copy: 0 there is none, 1 f16, 2 bf16
  uint only;       // 1: the copy alone is written, if there is one
  uint from;       // of x: 0 f32, 1 f16, 2 bf16
};

struct KvMatvecParams {
  uint rows;
  uint input;
  uint output;
  uint stride;  // numbers from one row of results to the next
  uint numbers; // of the weights: 1 f16, 2 bf16
  uint wide;    // 1: rows are of f32, 0: of the weights' kind
  uint gate;    // 0 there is none, 1 SiLU, 2 GELU by tanh
};

struct KvSkinnyParams {
  uint rows;
  uint input;
  uint output;
  uint stride;  // numbers from one row of results to the next
  uint numbers; // of rows and weights: 1 f16, 2 bf16
  uint results; // 0 f32, 1 f16, 2 bf16
  uint gate;    // 0 there is none, 1 SiLU, 2 GELU by tanh
  uint tiles;   // of columns, in all
  uint stages;  // of a group's ring
};

struct KvLookupParams {
  uint hidden;
  uint vocab;
  uint numbers; // of the table: 0 f32, 1 f16, 2 bf16
  float scale;
};

struct KvPickParams {
  uint width;
  uint tokens;
};

struct KvPlaceParams {
  uint width;
  uint stride;
  uint first;
};

struct KvCastParams {
  uint count;
  uint numbers; // 1 f16, 2 bf16
};

struct KvBiasParams {
  uint width;
};

struct KvSoftCapParams {
  uint count;
  float cap;
};

// How a token is chosen.
struct KvSampleRow {
  uint seed_low;
  uint seed_high;
  uint index;     // of the token in its sequence: the counter of the generator
  uint top_k;     // the likeliest tokens that stay; 0: all
  float top_p;    // of the probability that stays; 1: all
  float min_p;    // the least probability that stays, as a part of the highest
  float inverse;  // one over the temperature; 0: the likeliest token
  uint logprob;   // 1: the log-probability is asked for
  uint result;    // where the result goes
};

struct KvSampleParams {
  uint vocab;
};

struct KvAppendParams {
  uint tokens;
  uint kv_heads;
  uint targets; // 1, or 2: tokens go to the other places too
};

// Consecutive query tokens of one sequence, all of whose pages are of 16 bits.
struct KvDenseRow {
  uint query;    // index of the first among all query tokens
  uint tokens;   // how many
  uint position; // of the first
  uint pages_at; // where its pages begin in the list of pages, that of position 0 first
};

struct KvDenseParams {
  uint q_heads;
  uint kv_heads;
  uint parts;     // in how many the pages of a row are taken
  uint block;     // query vectors of a group, a multiple of 16
  uint window;    // a token sees so many tokens including itself; 0: all
  float scale;    // factor of q k
  float soft_cap; // scores become soft_cap * tanh(score / soft_cap); 0: they stay
  uint numbers;   // of results: 0 f32, 1 f16, 2 bf16
};

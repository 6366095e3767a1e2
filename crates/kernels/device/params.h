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

struct KvAttendParams {
  uint q_heads;
  uint kv_heads;
  uint parts;       // stride of partial results: the most splits of any row, and one for the tail
  uint split_pages; // packed pages of a split
  uint window;      // a token sees so many tokens including itself; 0: all
  float scale;      // factor of q k
  float soft_cap;   // scores become soft_cap * tanh(score / soft_cap); 0: they stay
};

struct KvCombineParams {
  uint signs[8]; // of the values' rotation
  uint q_heads;
  uint parts;
  uint split_pages;
};

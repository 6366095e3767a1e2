//! Faults that are planted into the text of the kernels are found, and named.

use kvant_kernels::device::{
    AppendParams, DenseParams, DenseRowParams, Kernel, PagesParams, Params, RotateParams, program,
    rule_code, sign_words,
};
use kvant_turboquant::{ScaleRule, Side};

use crate::emulator::Emulator;
use crate::machine::{Buffer, bytes_of_floats, bytes_of_words};
use crate::random::{Random, rotation, spec};

/// The text with one place changed, which must be there.
fn planted(from: &str, to: &str) -> Emulator {
    let text = program(&spec(64, 4, 4));
    assert!(text.contains(from), "nothing to change: {from}");
    Emulator::of_text(&text.replacen(from, to, 1))
}

fn rotate(emulator: &Emulator) -> String {
    let signs = sign_words(&rotation(64, Side::Keys));
    let input = bytes_of_floats(&Random(1).floats(9 * 64));
    let buffers = [Buffer::Input(&input), Buffer::Output(9 * 256)];
    let params = RotateParams { signs, vectors: 9 };
    emulator.launch((Kernel::Rotate, [2, 1, 1]), &buffers, &params, 3).faults
}

fn encode(emulator: &Emulator) -> String {
    let signs = sign_words(&rotation(64, Side::Keys));
    let rule = rule_code(ScaleRule::Unbiased);
    let params = PagesParams {
        key_signs: signs,
        value_signs: signs,
        tokens: 64,
        kv_heads: 1,
        page_stride: 64 * 64,
        head_stride: 64 * 64,
        token_stride: 64,
        key_rule: rule,
        value_rule: rule,
        apart: 0,
    };
    let numbers = bytes_of_floats(&Random(1).floats(64 * 64));
    let tile = spec(64, 4, 4).layout().tile_bytes();
    let buffers = [
        Buffer::Input(&numbers),
        Buffer::Input(&numbers),
        Buffer::Input(&bytes_of_words(&[0, 0])),
        Buffer::Output(tile),
        Buffer::Output(8),
    ];
    emulator.launch((Kernel::Encode, [2, 1, 1]), &buffers, &params, 3).faults
}

/// Tokens to places of pages with one head of 64 numbers.
fn append(emulator: &Emulator, places: &[u32]) -> String {
    let numbers = bytes_of_floats(&Random(1).floats(64 * places.len()));
    let places_bytes = bytes_of_words(places);
    let buffers = [
        Buffer::Input(&numbers),
        Buffer::Input(&numbers),
        Buffer::Input(&places_bytes),
        Buffer::Output(2 * 64 * 64),
        Buffer::Output(2 * 64 * 64),
        Buffer::Input(&[]),
        Buffer::Output(4),
        Buffer::Output(4),
    ];
    let params = AppendParams { tokens: places.len() as u32, kv_heads: 1, targets: 1 };
    emulator.launch((Kernel::Append, params.grid(64)), &buffers, &params, 3).faults
}

/// 20 query tokens behind 110 others.
fn attend_dense(emulator: &Emulator) -> String {
    let q = bytes_of_floats(&Random(1).floats(20 * 64));
    let side = vec![0; 2 * 2 * 64 * 64];
    let row = DenseRowParams { query: 0, tokens: 20, position: 110, pages_at: 0 };
    let (rows, list) = (bytes_of_words(&row.words()), bytes_of_words(&[1 << 24, 0, 1]));
    let buffers = [
        Buffer::Input(&q),
        Buffer::Input(&side),
        Buffer::Input(&side),
        Buffer::Input(&rows),
        Buffer::Input(&list),
        Buffer::Output(q.len()),
        Buffer::Output(4),
        Buffer::Output(4),
    ];
    let params = DenseParams {
        q_heads: 1,
        kv_heads: 1,
        parts: 1,
        block: 16,
        window: 40,
        scale: 1.0,
        soft_cap: 0.0,
        numbers: 0,
    };
    emulator.launch((params.kernel(), params.grid(20, 1)), &buffers, &params, 3).faults
}

#[test]
fn the_unchanged_text_has_none() {
    let emulator = Emulator::new(&spec(64, 4, 4));
    assert_eq!((rotate(&emulator), encode(&emulator)), (String::new(), String::new()));
    assert_eq!((append(&emulator, &[3, 9]), attend_dense(&emulator)), Default::default());
}

#[test]
fn two_tokens_in_one_place_are_a_race() {
    let found = append(&Emulator::new(&spec(64, 4, 4)), &[3, 3]);
    assert!(found.contains("race on buffer 3"), "{found}");
}

#[test]
fn weights_that_nobody_waits_for_are_a_race() {
    let found = attend_dense(&planted(
        "kv_flash_score(dots[j], args.scale, args.soft_cap) : KV_FLOOR;\n    }\n    kv_barrier();",
        "kv_flash_score(dots[j], args.scale, args.soft_cap) : KV_FLOOR;\n    }",
    ));
    assert!(found.contains("group memory"), "{found}");
}

#[test]
fn a_missing_barrier_is_a_race() {
    let found = encode(&planted(
        "  kv_barrier();\n  for (uint slot = tid >> 2",
        "  for (uint slot = tid >> 2",
    ));
    assert!(found.contains("race on group memory") || found.contains("nobody wrote"), "{found}");
}

#[test]
fn a_barrier_that_some_skip_is_found() {
    let from = "  kv_forward(v, KV_TURN(args.signs, 0), kv_lane);";
    let found = rotate(&planted(from, &format!("{from} if (kv_tid != 5u) kv_barrier();")));
    assert!(found.contains("at a group barrier"), "{found}");
}

#[test]
fn two_threads_that_write_one_place_are_a_race() {
    let found = encode(&planted("if (kv_tid == 0u) {", "if (kv_tid < 2u) {"));
    assert!(found.contains("race on buffer 4"), "{found}");
}

#[test]
fn a_divergent_shuffle_is_found() {
    let from = "  kv_forward(v, KV_TURN(args.signs, 0), kv_lane);";
    let found = rotate(&planted(from, &format!("  if (here)\n{from}")));
    assert!(found.contains("at a shuffle"), "{found}");
}

#[test]
fn an_access_past_the_end_is_found() {
    let found =
        rotate(&planted("const bool here = vector < args.vectors;", "const bool here = true;"));
    assert!(found.contains("past the end of buffer 0"), "{found}");
}

#[test]
fn a_write_to_an_input_is_found() {
    let found = rotate(&planted(
        "  kv_forward(v, KV_TURN(args.signs, 0), kv_lane);",
        "  kv_forward(v, KV_TURN(args.signs, 0), kv_lane); ((device kv_t*)x)[at] = 0;",
    ));
    assert!(found.contains("writes to buffer 0"), "{found}");
}

//! Parameter structs are the same bytes in Rust and in the dialect.

use kvant_kernels::device::{
    AttendParams, CombineParams, PagesParams, Params, RotateParams, RowParams,
};

use crate::emulator::Emulator;
use crate::random::spec;

fn lines<P: Params>() -> String {
    let fields = P::FIELDS.iter();
    let lines = fields.map(|(field, at, size)| format!("{} {field} {at} {size}\n", P::NAME));
    lines.collect()
}

#[test]
fn sizes_and_offsets_are_equal() {
    let fields = [
        lines::<RotateParams>(),
        lines::<PagesParams>(),
        lines::<RowParams>(),
        lines::<AttendParams>(),
        lines::<CombineParams>(),
    ];
    let size = |name: &str, size: usize| format!("{name} size 0 {size}\n");
    let sizes = [
        size(RotateParams::NAME, size_of::<RotateParams>()),
        size(PagesParams::NAME, size_of::<PagesParams>()),
        size(RowParams::NAME, size_of::<RowParams>()),
        size(AttendParams::NAME, size_of::<AttendParams>()),
        size(CombineParams::NAME, size_of::<CombineParams>()),
    ];
    let found = Emulator::new(&spec(64, 4, 4)).layout();
    assert_eq!(found, fields.concat() + &sizes.concat());
}

#[test]
fn words_are_the_fields_in_order() {
    let params = AttendParams {
        q_heads: 8,
        kv_heads: 2,
        parts: 3,
        split_pages: 16,
        window: 0,
        scale: 1.0,
        soft_cap: -0.0,
    };
    assert_eq!(params.words(), [8, 2, 3, 16, 0, 0x3F80_0000, 0x8000_0000]);
    assert_eq!(4 * params.words().len(), size_of::<AttendParams>());
}

//! Parameter structs are the same bytes in Rust and in the dialect.

use kvant_kernels::device::{
    AnglesParams, AppendParams, AttendParams, BiasParams, CastParams, DenseParams, DenseRowParams,
    GateParams, LookupParams, MatvecParams, NormParams, PagesParams, Params, PartParams,
    PickParams, PlaceParams, RotateParams, RowParams, SampleParams, SampleRowParams, SkinnyParams,
    SoftCapParams, SplitParams,
};

use crate::emulator::Emulator;
use crate::random::spec;

/// Lines of fields, and the line of the size.
fn lines<P: Params>() -> [String; 2] {
    let fields = P::FIELDS.iter();
    let lines = fields.map(|(field, at, size)| format!("{} {field} {at} {size}\n", P::NAME));
    [lines.collect(), format!("{} size 0 {}\n", P::NAME, size_of::<P>())]
}

#[test]
fn sizes_and_offsets_are_equal() {
    let structs = [
        lines::<RotateParams>(),
        lines::<PagesParams>(),
        lines::<RowParams>(),
        lines::<PartParams>(),
        lines::<AttendParams>(),
        lines::<NormParams>(),
        lines::<AnglesParams>(),
        lines::<SplitParams>(),
        lines::<GateParams>(),
        lines::<MatvecParams>(),
        lines::<SkinnyParams>(),
        lines::<LookupParams>(),
        lines::<PickParams>(),
        lines::<PlaceParams>(),
        lines::<CastParams>(),
        lines::<BiasParams>(),
        lines::<SoftCapParams>(),
        lines::<SampleRowParams>(),
        lines::<SampleParams>(),
        lines::<AppendParams>(),
        lines::<DenseRowParams>(),
        lines::<DenseParams>(),
    ];
    let part = |at: usize| structs.iter().map(|lines| lines[at].as_str()).collect::<String>();
    let found = Emulator::new(&spec(64, 4, 4)).layout();
    assert_eq!(found, part(0) + &part(1));
}

#[test]
fn words_are_the_fields_in_order() {
    let params = AttendParams {
        key_signs: [1; 8],
        value_signs: [2; 8],
        q_heads: 8,
        kv_heads: 2,
        tokens: 3,
        window: 0,
        sink_logits: 1,
        scale: 1.0,
        soft_cap: -0.0,
        numbers: 2,
    };
    let words = params.words();
    assert_eq!((&words[..8], &words[8..16]), (&[1; 8][..], &[2; 8][..]));
    assert_eq!(words[16..], [8, 2, 3, 0, 1, 0x3F80_0000, 0x8000_0000, 2]);
    assert_eq!(4 * words.len(), size_of::<AttendParams>());
}

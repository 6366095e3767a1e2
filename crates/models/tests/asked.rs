//! In the last layer a step computes what is asked of it: the same bits as if it were asked for
//! everything, for every family.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

mod plain;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kvant_models::{Attend, Decoder, ModelFiles};
use plain::{Piece, Plain, PlainAttend};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn ids(decoder: &Decoder) -> Vec<u32> {
    (0..40).map(|at| (at * 37 + 5) % decoder.spec().vocab as u32).collect()
}

/// Two sequences, one in chunks and one beside it that is decoded from the second step on, and what
/// each step is asked for.
const STEPS: [(&[Piece], Option<&[u32]>); 6] = [
    (&[(7, 0, 3), (0, 0, 11)], Some(&[2])),
    (&[(7, 3, 1), (0, 11, 9)], Some(&[0])),
    (&[(0, 20, 5)], Some(&[])),
    (&[(7, 4, 2), (0, 25, 6)], Some(&[0, 1, 4, 5, 7])),
    (&[(7, 6, 1), (0, 31, 1)], None),
    (&[(7, 7, 1), (0, 32, 8)], Some(&[0, 8])),
];

fn check(name: &str, decoder: &Decoder) {
    let ids = ids(decoder);
    let mut all = Plain::new(decoder);
    let everything: BTreeMap<_, _> =
        STEPS.iter().flat_map(|(pieces, _)| all.step(&ids, pieces, None).unwrap()).collect();
    assert_eq!(everything.len(), 48);
    let mut few = Plain::new(decoder);
    for (index, (pieces, asked)) in STEPS.iter().enumerate() {
        let found = few.step(&ids, pieces, *asked).unwrap();
        let tokens: usize = pieces.iter().map(|piece| piece.2).sum();
        assert_eq!(found.len(), asked.map_or(tokens, <[u32]>::len));
        for (place, logits) in found {
            assert!(logits.iter().all(|logit| logit.is_finite()), "{name}, step {index}");
            assert!(logits == everything[&place], "{name}, step {index}: other bits at {place:?}");
        }
    }
}

#[test]
fn every_family_gives_the_same_bits_for_what_is_asked_for() {
    let mut count = 0;
    for entry in std::fs::read_dir(golden()).unwrap() {
        let folder = entry.unwrap().path();
        if folder.join("reference.safetensors").is_file() {
            let decoder = ModelFiles::open(&folder).unwrap().load(&mut |_, _| {}).unwrap();
            check(&folder.display().to_string(), &decoder);
            count += 1;
        }
    }
    assert!(count > 30, "{count}");
}

#[test]
fn a_model_of_one_layer_has_a_last_one() {
    let config = std::fs::read_to_string(golden().join("llama-gqa-tied/config.json")).unwrap();
    let one = config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    assert_ne!(one, config);
    let folder = std::env::temp_dir().join(format!("kvant-one-layer-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.json"), one).unwrap();
    let decoder = ModelFiles::open_config_only(&folder).unwrap().load_dummy(3).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(decoder.spec().layers.len(), 1);
    check("one layer", &decoder);
}

#[test]
fn what_cannot_be_asked_for_is_an_error() {
    let folder = golden().join("llama-gqa-tied");
    let decoder = ModelFiles::open(&folder).unwrap().load(&mut |_, _| {}).unwrap();
    let mut workspace = decoder.workspace();
    let mut forward = |asked: &[u32]| {
        let mut attend = PlainAttend::new(decoder.spec());
        (attend.rows, attend.asked) = (vec![0; 4], Some(asked.to_vec()));
        assert_eq!(attend.asked(), Some(asked));
        decoder.forward(&[1, 2, 3, 4], &[0, 1, 2, 3], &mut attend, &mut workspace)
    };
    for wrong in [&[2, 1][..], &[1, 1], &[4], &[1, 7]] {
        assert!(forward(wrong).is_err(), "{wrong:?}");
    }
    forward(&[1, 3]).unwrap();
    assert!(decoder.logits(&[1], &mut workspace).is_ok());
    assert!(decoder.logits(&[2], &mut workspace).is_err(), "of two that were asked for");
}

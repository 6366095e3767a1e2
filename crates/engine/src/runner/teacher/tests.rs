//! Readings are the server's bits: prompt in chunks into pages, then token by token.

use std::path::Path;

use kvant_kv_cache::{LayerShape, LayerTraits, Wish, decide};
use kvant_models::ModelFiles;

use super::*;

fn tiny() -> Arc<Decoder> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama-1m");
    Arc::new(ModelFiles::open(&folder).unwrap().load(&mut |_, _| {}).unwrap())
}

fn shape(decoder: &Decoder, preset: &str) -> CacheShape {
    let heads = decoder.spec().heads;
    let layer = LayerTraits {
        shape: LayerShape { kv_heads: heads.kv, dim: heads.dim },
        queries_per_key: heads.q / heads.kv,
        key_bias: false,
        window: None,
    };
    let wish = Wish { preset: preset.parse().unwrap(), ..Wish::default() };
    decide(&vec![layer; decoder.spec().layers.len()], &wish).unwrap()
}

/// Logits after each token behind the prompt, one sequence alone, a token a step.
fn served(decoder: &Arc<Decoder>, shape: &CacheShape, window: &Window) -> Vec<Vec<f32>> {
    let Window { tokens, prompt } = window;
    let room = (pages_for(tokens.len()), 1);
    let mut seat = Seat::new(decoder, shape, room, *prompt, 7).unwrap();
    let place = place(0, pages_for(tokens.len()));
    chunks(&mut seat, SeqId(0), (&tokens[..*prompt], *prompt), &place).unwrap();
    let decoded = tokens.iter().enumerate().skip(*prompt).map(|(position, token)| {
        let row = DecodeRow {
            seq: SeqId(0),
            tokens: vec![*token],
            position: position as u32,
            place: place.clone(),
            sample: None,
            follows: None,
        };
        seat.forward(&Step { decode: vec![row], prefill: Vec::new() }).unwrap();
        seat.logits(&[0], |_, logits| logits.to_vec()).unwrap().remove(0)
    });
    decoded.collect()
}

#[test]
fn readings_are_the_bits_of_the_server() {
    let decoder = tiny();
    let window = |(length, prompt): (usize, usize)| Window {
        tokens: (0..length).map(|at| ((at * 131 + length * 977) % 2000) as u32).collect(),
        prompt,
    };
    // Ends of prompts around pages and chunks; the last one has nothing to read.
    let windows = [(70, 1), (140, 64), (300, 257), (131, 127), (90, 90)].map(window).to_vec();
    let prompts = Prompts::new(&decoder, &shape(&decoder, "tq4"), windows.clone()).unwrap();
    for preset in ["f16", "auto", "tq3"] {
        let shape = shape(&decoder, preset);
        let mut teacher = Teacher::new(&prompts, &shape, 7).unwrap();
        let mut read = vec![Vec::new(); windows.len()];
        while let Some(readings) = teacher.read().unwrap() {
            for reading in readings {
                let Reading { window, position, logits } = reading;
                assert_eq!(position, windows[window].prompt + read[window].len());
                read[window].push(logits);
            }
        }
        for (index, (read, window)) in read.iter().zip(&windows).enumerate() {
            assert!(*read == served(&decoder, &shape, window), "{preset}, window {index}");
        }
        prefill_alone(&decoder, &shape, &windows[2].tokens).unwrap();
    }
}

//! A real model through packed caches: members of a ragged batch against single runs, and the
//! reference road against the kernels, on a page of our own documentation.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Error, Result, Tensor};
use kvant_engine::{Prompts, Reading, Teacher, Window};
use kvant_kernels::cpu::{
    AttendParams, AttendRow, PackedParams, PackedRow, Path as KernelPath, attend_dense,
    attend_packed,
};
use kvant_kv_cache::{
    CacheShape, LayerShape, LayerTraits, PAGE_TOKENS, PageStore, ReferenceParams, Row, Span,
    Staging, Tiles, Wish, attend_reference, decide,
};
use kvant_models::{Attend, Decoder, ModelFiles, with_floats_mut};

use crate::words;

/// The model and a text in its tokens; `None` if it cannot be fetched.
fn model() -> Option<(Arc<Decoder>, Vec<u32>)> {
    let files = ModelFiles::open(&words::model(&words::golden())?).unwrap();
    let decoder = Arc::new(files.load(&mut |_, _| {}).unwrap());
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/turboquant.md");
    let text = std::fs::read_to_string(text).unwrap();
    let tokens = words::tokenizer(&files).encode(&text, false).unwrap();
    Some((decoder, tokens))
}

fn shape(decoder: &Decoder, preset: &str) -> CacheShape {
    let spec = decoder.spec();
    let layer = LayerTraits {
        shape: LayerShape { kv_heads: spec.heads.kv, dim: spec.heads.dim },
        queries_per_key: spec.heads.q / spec.heads.kv,
        key_bias: spec.bias.qkv,
        window: None,
    };
    let wish = Wish { preset: preset.parse().unwrap(), ..Wish::default() };
    decide(&vec![layer; spec.layers.len()], &wish).unwrap()
}

/// All readings of some windows in one batch, by window and position.
fn read(decoder: &Arc<Decoder>, shape: &CacheShape, windows: &[Window]) -> Vec<Reading> {
    let prompts = Prompts::new(decoder, shape, windows.to_vec()).unwrap();
    let mut teacher = Teacher::new(&prompts, shape, 0).unwrap();
    let mut readings = Vec::new();
    while let Some(more) = teacher.read().unwrap() {
        readings.extend(more);
    }
    readings.sort_by_key(|reading| (reading.window, reading.position));
    readings
}

fn likeliest(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
}

#[test]
fn a_member_of_a_ragged_batch_reads_as_it_does_alone() {
    let Some((decoder, tokens)) = model() else { return };
    let shape = shape(&decoder, "tq4");
    let windows: Vec<Window> = (0..12)
        .map(|index| {
            let length = 230 + index;
            Window { tokens: tokens[index * 200..][..length].to_vec(), prompt: 1 + index * 11 }
        })
        .collect();
    let batch = read(&decoder, &shape, &windows);
    assert!(batch.len() >= 2000, "{} tokens", batch.len());
    let mut at = 0;
    for (index, window) in windows.iter().enumerate() {
        let alone = read(&decoder, &shape, std::slice::from_ref(window));
        for reading in &alone {
            let member = &batch[at];
            assert_eq!((member.window, member.position), (index, reading.position));
            let same = likeliest(&member.logits) == likeliest(&reading.logits);
            assert!(same, "window {index}, token {}: another top-1", reading.position);
            let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&member.logits) == bits(&reading.logits), "window {index}: other bits");
            at += 1;
        }
    }
    assert_eq!(at, batch.len());
}

/// Prompts go on as ever; beside it every layer's last query attends over the finished cache on
/// both roads.
struct Roads<'a> {
    decoder: &'a Decoder,
    staging: Staging,
    store: PageStore,
    pages: Vec<u32>,
    /// Largest relative difference of a layer.
    worst: f64,
}

impl Attend for Roads<'_> {
    fn attend(&mut self, layer: usize, [q, k, v]: [&Tensor; 3], out: &Tensor) -> Result<()> {
        let floats = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let (queries, (total, q_heads, dim)) = (floats(q)?, q.dims3()?);
        self.staging.append(layer, (1, 0), &floats(k)?, &floats(v)?).map_err(Error::wrap)?;
        let spec = &self.decoder.spec().layers[layer];
        let (scale, window, softcap) = (spec.scale, spec.window, spec.softcap);
        let params = AttendParams { q_heads, scale, window, softcap };
        let (tiles, staged) = self.staging.view(layer, 1).map_err(Error::wrap)?;
        let row = AttendRow { pages: staged, position: 0, tokens: total };
        with_floats_mut(out, |out| {
            attend_dense(out, &queries, tiles, &[row], &params);
            Ok(())
        })?;
        let row = Row { pages: &self.pages, tail: 0, position: total - 1, tokens: 1 };
        let span = Span { start: 0, end: total, total };
        self.store.convert(layer, (&self.staging, 1), span, row).map_err(Error::wrap)?;

        let last = &queries[(total - 1) * q_heads * dim..];
        let mut roads = [vec![0.0; last.len()], vec![0.0; last.len()]];
        match self.store.tiles(layer) {
            Tiles::Dense(tiles) => {
                let row = AttendRow { pages: &self.pages, position: total - 1, tokens: 1 };
                attend_dense(&mut roads[0], last, tiles, &[row], &params);
            }
            Tiles::Packed(tiles) => {
                let row = PackedRow {
                    pages: &self.pages[..(total - 1) / PAGE_TOKENS],
                    tail: &[0],
                    sinks: None,
                    position: total - 1,
                    tokens: 1,
                    mask: None,
                };
                let (soft_cap, path) = (softcap, KernelPath::best());
                let params =
                    PackedParams { q_heads, scale, window, soft_cap, sink_logits: None, path };
                attend_packed(&mut roads[0], last, tiles, &[row], &params);
            }
        }
        let params = ReferenceParams { q_heads, scale, window, soft_cap: softcap };
        attend_reference(&mut roads[1], last, (&self.store, layer), &[row], &params);
        let square = |x: f32| f64::from(x).powi(2);
        let rest: f64 = roads[0].iter().zip(&roads[1]).map(|(a, b)| square(a - b)).sum();
        let all: f64 = roads[1].iter().map(|x| square(*x)).sum();
        self.worst = self.worst.max((rest / all).sqrt());
        Ok(())
    }
}

#[test]
fn the_reference_road_agrees_with_the_kernels_on_real_caches() {
    let Some((decoder, tokens)) = model() else { return };
    for preset in ["f16", "auto", "tq8", "tq4", "k4v3", "tq3", "tq2"] {
        let shape = shape(&decoder, preset);
        for total in [63, 64, 65, 300] {
            let mut staging = Staging::new(&shape, total);
            staging.open(1, total).unwrap();
            let store = PageStore::new(&shape, (5, 1), 0);
            let pages = vec![3, 0, 4, 1, 2];
            let mut roads = Roads { decoder: &decoder, staging, store, pages, worst: 0.0 };
            let positions: Vec<u32> = (0..total as u32).collect();
            let mut workspace = decoder.workspace();
            let ids = &tokens[..total];
            decoder.forward(ids, &positions, &mut roads, &mut workspace).unwrap();
            eprintln!("{preset}, {total} tokens: the roads differ by {:.1e}", roads.worst);
            assert!(roads.worst < 1e-3, "{preset}, {total} tokens: {:.1e}", roads.worst);
        }
    }
}

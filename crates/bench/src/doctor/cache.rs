//! The cache on a GPU beside the cache on the CPU: prompts in chunks, rows that join, page borders.

use anyhow::{Result, ensure};
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::{
    AttendParams, AttendRow, PackedParams, PackedRow, Path, attend_dense, attend_packed,
};
use kvant_kernels::device::{Activations, Gpu, GpuBuffer, Place};
use kvant_kv_cache::{
    CacheShape, Chunk, DeviceAttention, DeviceRoom, DeviceStore, Format, LayerShape, PageId,
    PageStore, Row, Span, Staging, Tiles, pages_for,
};

use crate::random;

/// Heads of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) q: usize,
    pub(super) kv: usize,
    pub(super) dim: usize,
}

impl Heads {
    /// A cache of one layer.
    pub(super) fn shape(self, format: Format) -> CacheShape {
        let mut shape = CacheShape::dense([LayerShape { kv_heads: self.kv, dim: self.dim }]);
        shape.layers[0].format = format;
        shape
    }
}

/// Tokens of the prompts of the sequences.
pub(super) type Prompts = [usize; 3];
pub(super) const PROMPTS: Prompts = [161, 63, 1];
/// The first one's last chunk is short and has so many pages that they are attended over in parts.
pub(super) const LONG_PROMPTS: Prompts = [1025, 63, 1];
/// Rows that follow.
const DECODED: usize = 40;
const CHUNK_TOKENS: usize = 100;
/// Tokens that are asked for of every second chunk; of the others all are.
const LAST: usize = 3;
const SEED: u64 = 5;

/// Positions of decode rows whose keys or values have a number that is not finite, all of the first
/// of two pages.
const STRANGE: [(usize, f32); 3] = [(7, f32::NAN), (20, f32::NEG_INFINITY), (50, -f32::NAN)];

/// The same sequences on both sides.
struct Pair<'a> {
    gpu: &'a Gpu,
    heads: Heads,
    cpu: (PageStore, Staging),
    device: DeviceStore,
    /// Of q, k, v and out.
    buffers: [GpuBuffer; 4],
    state: u64,
    worst: f64,
}

/// The largest relative error of a query vector, against the CPU's kernels. Pages must be equal bit
/// for bit.
pub(super) fn cache_error(
    gpu: &Gpu,
    heads: Heads,
    format: Format,
    prompts: Prompts,
) -> Result<f64> {
    let longest = prompts[0] + DECODED;
    let stride = pages_for(longest);
    let mut pair = Pair::new(gpu, heads, format, stride * prompts.len())?;
    let lists: Vec<Vec<PageId>> = (0..prompts.len())
        .map(|index| (0..stride).map(|page| (page * prompts.len() + index) as PageId).collect())
        .collect();
    for (index, total) in prompts.into_iter().enumerate() {
        pair.prompt(index as u32, total, &lists[index])?;
    }
    for step in 0..DECODED {
        // The later ones join later.
        let rows: Vec<Row<'_>> = (0..prompts.len())
            .filter(|index| step >= 3 * index)
            .map(|index| Row {
                pages: &lists[index],
                tail: index as u32,
                position: prompts[index] + step - 3 * index,
                tokens: 1,
            })
            .collect();
        pair.decode(&rows)?;
    }
    pair.device.finish()?;
    let lengths = prompts.iter().enumerate().map(|(index, total)| total + DECODED - 3 * index);
    pair.same_pages(&lists, &lengths.collect::<Vec<_>>(), format)?;
    Ok(pair.worst)
}

/// Pages with vectors that are not finite, of those that decode rows of a sequence fill: as on the
/// CPU, whose pages must be the same. Each such page is known when the step is over.
pub(super) fn strange_pages(gpu: &Gpu, heads: Heads, format: Format) -> Result<u64> {
    let mut pair = Pair::new(gpu, heads, format, 3)?;
    let pages = vec![0, 1, 2];
    for position in 0..=2 * PAGE_TOKENS {
        let [q, mut k, mut v] = pair.numbers(1);
        for (_, number) in STRANGE.iter().filter(|(at, _)| *at == position) {
            k[position % heads.dim] = *number;
            v[0] = -*number;
        }
        let row = Row { pages: &pages, tail: 0, position, tokens: 1 };
        pair.cpu.0.append(0, &[row], &k, &v);
        pair.device.begin(&[row], &[])?;
        pair.attend(&[q, k, v])?;
        pair.device.finish()?;
        let (want, got) = (pair.cpu.0.conversions(), pair.device.conversions());
        ensure!(
            (got.pages, got.not_finite) == (want.pages, want.not_finite),
            "behind position {position}: {got:?}, on the CPU {want:?}"
        );
    }
    pair.same_pages(&[pages], &[2 * PAGE_TOKENS + 1], format)?;
    Ok(pair.device.conversions().not_finite)
}

impl<'a> Pair<'a> {
    fn new(gpu: &'a Gpu, heads: Heads, format: Format, pages: usize) -> Result<Self> {
        let shape = heads.shape(format);
        let (tails, staging_tokens) = (PROMPTS.len(), pages * PAGE_TOKENS);
        let room = DeviceRoom { pages, tails, staging_tokens, q_heads: heads.q };
        let most = CHUNK_TOKENS * heads.q * heads.dim * size_of::<f32>();
        Ok(Self {
            gpu,
            heads,
            cpu: (
                PageStore::new(&shape, (pages, tails), SEED),
                Staging::new(&shape, staging_tokens),
            ),
            device: DeviceStore::new(gpu, &shape, room, SEED)?,
            buffers: [gpu.alloc(most)?, gpu.alloc(most)?, gpu.alloc(most)?, gpu.alloc(most)?],
            state: random::nth(11, heads.dim as u64),
            worst: 0.0,
        })
    }

    /// q, k and v of some tokens.
    fn numbers(&mut self, tokens: usize) -> [Vec<f32>; 3] {
        let Heads { q, kv, dim } = self.heads;
        [q, kv, kv].map(|heads| {
            (0..tokens * heads * dim).map(|_| random::normal(&mut self.state)).collect()
        })
    }

    /// Queues the attention of the step that has begun.
    fn attend(&mut self, numbers: &[Vec<f32>; 3]) -> Result<()> {
        for (buffer, numbers) in self.buffers.iter().zip(numbers) {
            let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_ne_bytes()).collect();
            self.gpu.write(buffer, 0, &bytes)?;
        }
        let attention = DeviceAttention {
            q_heads: self.heads.q,
            scale: self.scale(),
            window: None,
            soft_cap: None,
            numbers: Activations::F32,
        };
        let place = |index: usize| Place::buffer(&self.buffers[index], 0);
        let qkv = [place(0)?, place(1)?, place(2)?];
        Ok(self.device.attend(0, qkv, &place(3)?, &attention)?)
    }

    /// What the device gives of the step that has begun, against what the CPU gave.
    fn compare(&mut self, numbers: &[Vec<f32>; 3], want: &[f32]) -> Result<()> {
        let dim = self.heads.dim;
        self.attend(numbers)?;
        self.device.finish()?;
        let got = self.gpu.read(&self.buffers[3], 0..size_of_val(want))?;
        let got: Vec<f32> = got.as_chunks().0.iter().map(|x| f32::from_ne_bytes(*x)).collect();
        for (got, want) in got.chunks(dim).zip(want.chunks(dim)) {
            let square = |x: f32| f64::from(x) * f64::from(x);
            let rest: f64 = got.iter().zip(want).map(|(a, b)| square(a - b)).sum();
            let own: f64 = want.iter().map(|x| square(*x)).sum();
            let error = (rest / own.max(1e-12)).sqrt();
            ensure!(error.is_finite(), "attention gave numbers that are not finite");
            self.worst = self.worst.max(error);
        }
        Ok(())
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.dim as f32).sqrt()
    }

    fn params(&self) -> AttendParams {
        AttendParams { q_heads: self.heads.q, scale: self.scale(), window: None, softcap: None }
    }

    fn prompt(&mut self, tail: u32, total: usize, pages: &[PageId]) -> Result<()> {
        let key = u64::from(tail);
        self.cpu.1.open(key, total)?;
        self.device.open(key, total)?;
        for start in (0..total).step_by(CHUNK_TOKENS) {
            let span = Span { start, end: (start + CHUNK_TOKENS).min(total), total };
            let tokens = span.end - start;
            // As in a model's last layer and in the others.
            let few = start / CHUNK_TOKENS % 2 == 1;
            let asked = if few { tokens - LAST..tokens } else { 0..tokens };
            let mut numbers = self.numbers(tokens);
            numbers[0].drain(..asked.start * self.heads.q * self.heads.dim);
            let [q, k, v] = &numbers;
            let params = self.params();
            let (store, staging) = &mut self.cpu;
            staging.append(0, (key, start), k, v)?;
            let mut want = vec![0.0; q.len()];
            let (tiles, list) = staging.view(0, key)?;
            let position = start + asked.start;
            let row = AttendRow { pages: list, position, tokens: asked.len() };
            attend_dense(&mut want, q, tiles, &[row], &params);
            store.convert(0, (staging, key), span, Row { pages, tail, position: 0, tokens: 0 })?;
            self.device.begin(&[], &[Chunk { key, span, pages, tail, recent: None, asked }])?;
            self.compare(&numbers, &want)?;
        }
        self.cpu.1.close(key);
        self.device.close(key);
        Ok(())
    }

    fn decode(&mut self, rows: &[Row<'_>]) -> Result<()> {
        let numbers = self.numbers(rows.len());
        let [q, k, v] = &numbers;
        let params = self.params();
        let (store, _) = &mut self.cpu;
        store.append(0, rows, k, v);
        let mut want = vec![0.0; q.len()];
        match store.tiles(0) {
            Tiles::Dense(tiles) => {
                let row = |row: &Row<'_>| (row.position, row.tokens);
                let rows: Vec<AttendRow<'_>> = rows
                    .iter()
                    .map(|of| AttendRow { pages: of.pages, position: row(of).0, tokens: row(of).1 })
                    .collect();
                attend_dense(&mut want, q, tiles, &rows, &params);
            }
            Tiles::Packed(tiles) => {
                let rows: Vec<PackedRow<'_>> = rows
                    .iter()
                    .map(|row| PackedRow {
                        pages: &row.pages[..row.position / PAGE_TOKENS],
                        tail: std::slice::from_ref(&row.tail),
                        sinks: None,
                        position: row.position,
                        tokens: row.tokens,
                        mask: None,
                    })
                    .collect();
                let params = PackedParams {
                    q_heads: params.q_heads,
                    scale: params.scale,
                    window: None,
                    soft_cap: None,
                    sink_logits: None,
                    path: Path::best(),
                };
                attend_packed(&mut want, q, tiles, &rows, &params);
            }
        }
        self.device.begin(rows, &[])?;
        self.compare(&numbers, &want)
    }

    /// Full pages are the same bytes.
    fn same_pages(&self, lists: &[Vec<PageId>], lengths: &[usize], format: Format) -> Result<()> {
        let (Tiles::Packed(tiles), Format::TurboQuant(_)) = (self.cpu.0.tiles(0), format) else {
            return Ok(());
        };
        let bytes = self.heads.kv * tiles.layout.tile_bytes();
        for (list, length) in lists.iter().zip(lengths) {
            // The newest page is in the tail.
            for page in &list[..(length - 1) / PAGE_TOKENS] {
                let want = &tiles.tiles[*page as usize * bytes..][..bytes];
                ensure!(self.device.page(0, *page)? == want, "page {page} differs from the CPU's");
            }
        }
        let (cpu, device) = (self.cpu.0.conversions(), self.device.conversions());
        let counts = (device.pages, device.not_finite);
        ensure!(
            counts == (cpu.pages, cpu.not_finite),
            "{counts:?} pages were packed, {} on the CPU",
            cpu.pages
        );
        // Metal does not say.
        let timed = cfg!(not(feature = "cuda")) || !device.time.is_zero();
        ensure!(timed || device.pages == 0, "the packing of {} pages took no time", device.pages);
        Ok(())
    }
}

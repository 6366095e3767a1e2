//! `World`: prompts and sequences over one store, with the oracle beside them.

use std::collections::BTreeMap;

use kvant_kv_cache::{
    CacheShape, Error, PAGE_TOKENS, PageList, PagePool, PageStore, Row, Span, Staging, pages_for,
};

use crate::oracle::{Oracle, Tokens, check_staged, given};
use crate::random::Random;

const PAGES: usize = 10;
const TAILS: usize = 5;
const STAGING_TOKENS: usize = 5 * PAGE_TOKENS;

/// Lengths around page borders.
const LENGTHS: [usize; 12] = [1, 2, 17, 63, 64, 64, 65, 127, 128, 128, 129, 192];

/// In pages and a tail.
pub(crate) struct Sequence {
    pub(crate) tokens: Tokens,
    pub(crate) pages: PageList,
    pub(crate) tail: u32,
}

/// In prefill.
struct Prompt {
    key: u64,
    /// With all its tokens, pages and tail.
    own: Sequence,
    /// Tokens in pages of another sequence, never written.
    shared: usize,
    staged: usize,
    /// Tokens converted, by layer.
    converted: Vec<usize>,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) oracle: Oracle,
    pub(crate) pool: PagePool,
    /// Free tails.
    pub(crate) tails: Vec<u32>,
    pub(crate) store: PageStore,
    staging: Staging,
    prompts: Vec<Prompt>,
    pub(crate) sequences: Vec<Sequence>,
    /// Preempted, to be computed again.
    pub(crate) waiting: Vec<Tokens>,
    pub(crate) layers: usize,
    next_key: u64,
    /// How often what happened.
    pub(crate) counts: BTreeMap<&'static str, usize>,
}

impl Sequence {
    pub(crate) fn row(&self) -> Row<'_> {
        Row { pages: &self.pages, tail: self.tail, position: 0, tokens: 0 }
    }
}

impl World {
    pub(crate) fn new(shape: &CacheShape, seed: u64) -> Self {
        Self {
            random: Random(seed),
            oracle: Oracle::new(shape, seed),
            pool: PagePool::new(PAGES),
            tails: (0..TAILS as u32).collect(),
            store: PageStore::new(shape, (PAGES, TAILS), seed),
            staging: Staging::new(shape, STAGING_TOKENS),
            prompts: Vec::new(),
            sequences: Vec::new(),
            waiting: Vec::new(),
            layers: shape.layers.len(),
            next_key: 0,
            counts: BTreeMap::new(),
        }
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn step(&mut self) {
        match self.random.below(20) {
            0 | 1 => self.open(),
            2..=5 => self.chunk(),
            6..=10 => self.convert(),
            11 if self.random.once_in(2) => self.cancel(),
            11..=15 => self.decode(),
            16 => self.fork(),
            17 => self.free(),
            18 => self.preempt(),
            _ => self.export_and_import(),
        }
    }

    /// New tokens, a preempted sequence, or one that begins like another and shares its full pages.
    fn open(&mut self) {
        let mut tokens = Vec::new();
        let mut pages = Vec::new();
        let mut length = self.random.pick(&LENGTHS);
        let again = self.random.once_in(2).then(|| self.waiting.pop()).flatten();
        if let Some(waited) = again {
            length = waited.len();
            tokens = waited;
            self.count("recomputed after preemption");
        } else if !self.sequences.is_empty() && self.random.once_in(3) {
            let other = &self.sequences[self.random.below(self.sequences.len())];
            let full = (other.tokens.len() - 1) / PAGE_TOKENS;
            let shared = self.random.below(full + 1);
            tokens.extend_from_slice(&other.tokens[..shared * PAGE_TOKENS]);
            pages.extend_from_slice(&other.pages[..shared]);
            length = tokens.len() + 1 + self.random.below(PAGE_TOKENS);
        }
        while tokens.len() < length {
            tokens.push(self.oracle.token(&mut self.random));
        }
        let needed = pages_for(length) - pages.len();
        if needed > self.pool.free() || self.tails.is_empty() {
            return;
        }
        let lent: usize =
            self.prompts.iter().map(|prompt| pages_for(prompt.own.tokens.len())).sum();
        let free = STAGING_TOKENS / PAGE_TOKENS - lent;
        let room = pages_for(length) <= free;
        assert_eq!(self.staging.has_room(length), room, "room for {length}");
        let key = self.next_key;
        self.next_key += 1;
        let opened = self.staging.open(key, length);
        if !room {
            let (needed, capacity) = (pages_for(length), STAGING_TOKENS / PAGE_TOKENS);
            assert_eq!(opened, Err(Error::StagingFull { tokens: length, needed, free, capacity }));
            assert!(!self.staging.is_open(key));
            return self.count("no room in staging");
        }
        assert_eq!(opened, Ok(()));
        assert_eq!(self.staging.open(key, length), Err(Error::Open { key }));
        let shared = pages.len() * PAGE_TOKENS;
        if shared > 0 {
            self.count("shared full pages");
        }
        for page in &pages {
            self.pool.retain(*page);
        }
        pages.extend((0..needed).map(|_| self.pool.alloc().unwrap()));
        let own = Sequence { tokens, pages, tail: self.tails.pop().unwrap() };
        let converted = vec![shared; self.layers];
        self.prompts.push(Prompt { key, own, shared, staged: 0, converted });
    }

    /// The next tokens come to staging, or some come again, perhaps others than before.
    fn chunk(&mut self) {
        if self.prompts.is_empty() {
            return;
        }
        let index = self.random.below(self.prompts.len());
        let prompt = &mut self.prompts[index];
        let Prompt { key, staged, shared, .. } = *prompt;
        let total = prompt.own.tokens.len();
        let mut start = staged;
        if staged > shared && self.random.once_in(8) {
            start = shared + self.random.below(staged - shared);
            *self.counts.entry("chunk again").or_default() += 1;
            if self.random.once_in(2) {
                let fresh = (start..total).map(|_| self.oracle.token(&mut self.random));
                let fresh: Tokens = fresh.collect();
                prompt.own.tokens.splice(start.., fresh);
                prompt.converted.iter_mut().for_each(|done| *done = start.min(*done));
            }
        }
        let end = match self.random.below(4) {
            0 => start + self.random.below(total - start + 1),
            1 => total.min((start + 1).next_multiple_of(PAGE_TOKENS)),
            _ => total,
        };
        for layer in 0..self.layers {
            let [k, v] = given(layer, &prompt.own.tokens[start..end]);
            if start > 0 && self.random.once_in(16) {
                let gap = self.staging.append(layer, (key, staged + 1), &k, &v);
                let start = staged + 1;
                assert_eq!(gap, Err(Error::Gap { key, layer, length: staged, start }));
            }
            assert_eq!(self.staging.append(layer, (key, start), &k, &v), Ok(()));
        }
        prompt.staged = end;
    }

    /// Some layers take what has come since they last did; the last of them ends the prompt.
    fn convert(&mut self) {
        if self.prompts.is_empty() {
            return;
        }
        let index = self.random.below(self.prompts.len());
        let all = self.random.once_in(2);
        let Prompt { key, own, staged, converted, .. } = &mut self.prompts[index];
        let (key, staged, total) = (*key, *staged, own.tokens.len());
        let source = (&self.staging, key);
        for (layer, done) in converted.iter_mut().enumerate() {
            if staged < total {
                let span = Span { start: 0, end: staged + 1, total };
                let early = self.store.convert(layer, source, span, own.row());
                let wanted = staged + 1;
                assert_eq!(early, Err(Error::Incomplete { key, layer, length: staged, wanted }));
            }
            if *done > staged || !(all || self.random.once_in(2)) {
                continue;
            }
            let span = Span { start: *done, end: staged, total };
            self.store.convert(layer, source, span, own.row()).unwrap();
            *done = staged;
        }
        if staged < total || converted.iter().any(|done| *done < total) {
            return self.count("converted a part");
        }
        if self.random.once_in(4) {
            // An empty remainder changes nothing.
            let span = Span { start: total, end: total, total };
            let again = |layer| self.store.convert(layer, source, span, own.row()).unwrap();
            (0..self.layers).for_each(again);
        }
        self.check_prompt(index);
        let prompt = self.prompts.swap_remove(index);
        assert!(self.staging.close(prompt.key));
        self.count("completed");
        if total.is_multiple_of(PAGE_TOKENS) {
            self.count("completed with a full tail");
        }
        self.sequences.push(prompt.own);
    }

    /// A prompt goes, wherever it is.
    fn cancel(&mut self) {
        if self.prompts.is_empty() {
            return;
        }
        let index = self.random.below(self.prompts.len());
        self.check_prompt(index);
        let Prompt { key, own, .. } = self.prompts.swap_remove(index);
        assert!(self.staging.close(key));
        assert!(!self.staging.close(key));
        assert_eq!(self.staging.append(0, (key, 0), &[], &[]), Err(Error::Closed { key }));
        assert_eq!(self.staging.view(0, key).err(), Some(Error::Closed { key }));
        self.release(&own);
        self.count("cancelled");
    }

    /// Gives pages and tail back.
    pub(crate) fn release(&mut self, gone: &Sequence) {
        for page in &gone.pages {
            let last = self.pool.owners(*page) == 1;
            assert_eq!(self.pool.release(*page), last);
        }
        self.tails.push(gone.tail);
    }

    fn check_prompt(&self, index: usize) {
        let Prompt { key, own, staged, .. } = &self.prompts[index];
        for layer in 0..self.layers {
            assert_eq!(self.staging.length(layer, *key), Ok(*staged));
            let view = self.staging.view(layer, *key).unwrap();
            check_staged(layer, view, &own.tokens[..*staged]);
        }
    }

    pub(crate) fn check_sequence(&self, index: usize) {
        let sequence = &self.sequences[index];
        self.oracle.check(&self.store, &sequence.tokens, sequence.row());
    }

    /// Everything, and who holds what.
    pub(crate) fn check(&self) {
        self.pool.check();
        self.staging.check();
        (0..self.prompts.len()).for_each(|index| self.check_prompt(index));
        (0..self.sequences.len()).for_each(|index| self.check_sequence(index));
        let prompts = self.prompts.iter().map(|prompt| &prompt.own);
        let held: Vec<&Sequence> = prompts.chain(&self.sequences).collect();
        let mut pages: Vec<u32> = held.iter().flat_map(|s| s.pages.iter().copied()).collect();
        for page in &pages {
            let owners = pages.iter().filter(|other| *other == page).count();
            assert_eq!(self.pool.owners(*page) as usize, owners, "owners of page {page}");
        }
        pages.sort_unstable();
        pages.dedup();
        assert_eq!(self.pool.used(), pages.len(), "pages lent");
        assert_eq!(self.tails.len() + held.len(), TAILS, "tails");
        let staged: usize = self.prompts.iter().map(|p| pages_for(p.own.tokens.len())).sum();
        assert_eq!(self.staging.used_tokens(), staged * PAGE_TOKENS, "tiles lent");
    }
}

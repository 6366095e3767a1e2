//! `Scheduler::plan_ahead`: the step behind the one that is under way.

use std::collections::HashMap;

use kvant_kv_cache::pages_for;

use super::Scheduler;
use crate::request::SeqId;
use crate::step::Step;

impl Scheduler {
    /// The step behind the one under way, before that one's tokens are known: of the same sequences
    /// in the same order, but for those that end for certain. `None` where that is not the step
    /// that would be planned once they are known: where a sequence is in its prompt or computes
    /// known tokens again, chooses by rules that need the host, or would have to be preempted, and
    /// where one that waits could begin.
    ///
    /// A sequence may still end with the token that is being chosen, and others may be cancelled.
    /// Their rows are computed and dropped. That they write into pages which are another's by then
    /// does no harm where all steps go through one queue: the other's writes come after.
    pub fn plan_ahead(&mut self, under_way: &Step) -> Option<Step> {
        if !under_way.is_plain() {
            return None;
        }
        let results = under_way.sampled().map(|(seq, _)| seq).zip(0..);
        let results: HashMap<SeqId, u32> = results.collect();
        let mut rows = Vec::with_capacity(self.running.len());
        for (index, sequence) in self.running.iter().enumerate() {
            let result = *results.get(&sequence.id)?;
            if !sequence.is_last_token() {
                rows.push((index, result));
            }
        }
        let frees = rows.len() < self.running.len() || !under_way.prefill.is_empty();
        if rows.is_empty() || (!self.waiting.is_empty() && (frees || self.room().is_some())) {
            return None;
        }
        self.grow_ahead(&rows)?;
        let rows = rows.into_iter().map(|(index, result)| self.running[index].row_ahead(result));
        Some(Step { decode: rows.collect::<Option<_>>()?, prefill: Vec::new() })
    }

    /// Pages for the tokens that are being chosen, if there are enough without a preemption.
    fn grow_ahead(&mut self, rows: &[(usize, u32)]) -> Option<()> {
        let lacks = |index: usize| {
            let sequence = &self.running[index];
            pages_for(sequence.len() + 1).saturating_sub(sequence.pages().len())
        };
        let lacking: Vec<_> = rows.iter().map(|(index, _)| (*index, lacks(*index))).collect();
        if lacking.iter().map(|(_, pages)| pages).sum::<usize>() > self.pool.free() {
            return None;
        }
        for (index, pages) in lacking {
            for _ in 0..pages {
                let page = self.pool.alloc()?;
                self.running[index].push_page(page);
            }
        }
        Some(())
    }
}

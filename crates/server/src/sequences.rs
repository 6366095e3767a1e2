//! `Sequences`: the sequences of one request, read in turn, and the times that they have.

use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::context;
use crate::error::ApiError;
use crate::patience::{Deadlines, Late};
use crate::sequence::{Piece, Sequence};

/// A piece with the index of its sequence.
pub(crate) type Indexed = Result<(usize, Piece), ApiError>;

/// The sequences of a request. Dropping them cancels those that are not over.
#[derive(Debug)]
pub(crate) struct Sequences {
    list: Vec<Sequence>,
    /// Who is asked first, so that none is always last.
    first: usize,
    /// What came before anybody asked.
    early: Option<(usize, Piece)>,
    deadlines: Option<Deadlines>,
}

impl Sequences {
    /// With the times of the request that this task works on.
    pub(crate) fn new(list: Vec<Sequence>) -> Self {
        let context = context::current();
        let deadlines = context.map(|one| Deadlines::new(one.arrived, one.patience()));
        Self { list, first: 0, early: None, deadlines }
    }

    /// Waits for the first piece, but no longer than `within`. What goes wrong until then can still
    /// be told by a status.
    pub(crate) async fn begin(&mut self, within: Duration) -> Result<(), ApiError> {
        match tokio::time::timeout(within, self.next()).await {
            Ok(Some(Ok(early))) => {
                self.early = Some(early);
                Ok(())
            }
            Ok(Some(Err(error))) => Err(error),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Tokens generated so far.
    pub(crate) fn output_tokens(&self) -> usize {
        self.list.iter().map(|sequence| sequence.output_tokens() as usize).sum()
    }

    /// Those of them that were thoughts.
    pub(crate) fn reasoning_tokens(&self) -> usize {
        self.list.iter().map(|sequence| sequence.reasoning_tokens() as usize).sum()
    }

    /// The next piece of any sequence with the sequence's index; `None` when all are over. May be
    /// dropped and called again.
    pub(crate) async fn next(&mut self) -> Option<Indexed> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The same for a stream.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Indexed>> {
        if let Some(early) = self.early.take() {
            return Poll::Ready(Some(Ok(early)));
        }
        let count = self.list.len();
        let mut over = true;
        for index in (self.first..count).chain(0..self.first) {
            if self.list[index].is_over() {
                continue;
            }
            over = false;
            if let Poll::Ready(piece) = pin!(self.list[index].next()).poll(cx) {
                self.first = (index + 1) % count;
                return Poll::Ready(Some(piece.map(|piece| (index, piece))));
            }
        }
        if over {
            return Poll::Ready(None);
        }
        let list = &self.list;
        let waits = || list.iter().any(Sequence::is_waiting);
        let deadlines = self.deadlines.as_mut();
        match deadlines.and_then(|deadlines| deadlines.poll(cx, waits)) {
            Some(late) => Poll::Ready(Some(Err(self.late(late)))),
            None => Poll::Pending,
        }
    }

    /// Ends all sequences.
    fn late(&mut self, late: Late) -> ApiError {
        for sequence in self.list.iter_mut().filter(|sequence| !sequence.is_over()) {
            sequence.cut(late);
        }
        late.into()
    }
}

//! `BatchLayout`: the frame in which a ragged batch is one rectangle, and the mask of its new
//! tokens.
//!
//! The tokens that rows have end at one column, `end`; columns before a row's first token are
//! padding. The new tokens of all rows take the columns from `end` on. Memory never looks like
//! this (it is paged and ragged); the frame says what masked attention means.

/// Rows of different lengths, aligned at their ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchLayout {
    lengths: Vec<usize>,
    left_padding: Vec<usize>,
    end: usize,
}

/// Which columns each new token of each row sees, `[rows, queries, columns]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    queries: usize,
    columns: usize,
    visible: Vec<bool>,
}

impl BatchLayout {
    /// The smallest frame of rows that have so many tokens already.
    pub fn new(lengths: &[usize]) -> Self {
        let end = lengths.iter().copied().max().unwrap_or_default();
        Self::padded(lengths.iter().map(|length| end - length).collect(), end)
    }

    /// A frame by its padding. Padding past `end` covers new tokens too.
    pub fn padded(left_padding: Vec<usize>, end: usize) -> Self {
        let lengths = left_padding.iter().map(|padding| end.saturating_sub(*padding)).collect();
        Self { lengths, left_padding, end }
    }

    /// Tokens of each row before the new ones.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Columns before each row's first token.
    pub fn left_padding(&self) -> &[usize] {
        &self.left_padding
    }

    /// Column of the first new token of every row.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Which columns are seen by `new_tokens` new tokens a row: those up to its own, not in the
    /// padding on the left nor, by row, on the right of the new tokens; the last `window` of them
    /// if there is a window.
    ///
    /// # Panics
    /// If `right_padding` is not of as many rows: an error of ours.
    pub fn causal_mask(
        &self,
        new_tokens: usize,
        right_padding: Option<&[usize]>,
        window: Option<usize>,
    ) -> Mask {
        let rows = self.left_padding.len();
        assert!(
            right_padding.is_none_or(|padding| padding.len() == rows),
            "padding of {rows} rows"
        );
        let columns = self.end + new_tokens;
        let mut visible = vec![false; rows * new_tokens * columns];
        // Without new tokens there are no queries to fill.
        for (index, seen) in visible.chunks_exact_mut(columns.max(1)).enumerate() {
            let (row, query) = (index / new_tokens, index % new_tokens);
            let written = columns.saturating_sub(right_padding.map_or(0, |padding| padding[row]));
            let after = self.end + query + 1;
            let first = window.map_or(0, |window| after.saturating_sub(window));
            let range = first.max(self.left_padding[row])..after.min(written);
            if !range.is_empty() {
                seen[range].fill(true);
            }
        }
        Mask { queries: new_tokens, columns, visible }
    }
}

impl Mask {
    /// Columns of the frame.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The columns that a new token of a row sees.
    pub fn seen(&self, row: usize, query: usize) -> &[bool] {
        assert!(query < self.queries, "query {query} of {}", self.queries);
        &self.visible[(row * self.queries + query) * self.columns..][..self.columns]
    }

    /// All of it, `[rows, queries, columns]`.
    pub fn as_slice(&self) -> &[bool] {
        &self.visible
    }
}

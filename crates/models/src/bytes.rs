//! `Bytes`: a range of a mapped file or of memory, cheap to clone; and the only place that maps
//! files.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::Error;

/// Owned handle of read-only bytes. A clone shares them; they live as long as the last handle.
#[derive(Clone, Debug)]
pub struct Bytes {
    source: Source,
    range: Range<usize>,
}

#[derive(Clone, Debug)]
enum Source {
    Mapped(Arc<Mmap>),
    Memory(Arc<[u8]>),
}

impl Bytes {
    /// Maps a whole file. An empty file is no bytes.
    #[expect(unsafe_code, reason = "a file mapping is unsafe by its nature; this is the only one")]
    pub(crate) fn map(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() == 0 {
            return Ok(Self::from(Vec::new()));
        }
        // SAFETY: the mapping is private and read-only, and only ever seen as `&[u8]`, whose every
        // bit pattern is valid. What remains is that nobody shortens or rewrites the file while it
        // is served: as with every server that maps its weights, model files must be replaced, not
        // edited.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        let range = 0..map.len();
        Ok(Self { source: Source::Mapped(Arc::new(map)), range })
    }

    /// Part of these bytes, without a copy; `None` if `range` is not within them.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let range = self.range.start + range.start..self.range.start + range.end;
        Some(Self { source: self.source.clone(), range })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { source: Source::Memory(bytes.into()), range }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.source {
            Source::Mapped(map) => map,
            Source::Memory(memory) => memory,
        };
        &all[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_and_stay_within_bounds() {
        let bytes = Bytes::from(vec![0, 1, 2, 3, 4]);
        let middle = bytes.slice(1..4).unwrap();
        assert_eq!(&*middle, [1, 2, 3]);
        assert_eq!(&*middle.slice(1..3).unwrap(), [2, 3]);
        assert_eq!(middle.slice(1..3).unwrap().as_ptr(), bytes[2..].as_ptr());
        assert!(middle.slice(0..4).is_none());
        assert!(middle.slice(Range { start: 2, end: 1 }).is_none());
        assert_eq!(middle.slice(3..3).unwrap().len(), 0);
    }
}

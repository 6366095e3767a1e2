//! `Bytes`: a range of a mapped file or of memory, cheap to clone; and the only place that maps
//! files.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

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
    /// Not a slice: making one would copy gigabytes.
    Memory(Arc<Vec<u8>>),
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

    /// Gives the memory of a mapped range back to the system; what is read again comes from the
    /// file again. For weights that were copied: they would count twice.
    #[cfg_attr(unix, expect(unsafe_code, reason = "advice that drops pages is unsafe in general"))]
    pub(crate) fn release(&self) {
        #[cfg(unix)]
        if let Source::Mapped(map) = &self.source {
            let (start, length) = (self.range.start, self.range.len());
            // SAFETY: the mapping is read-only and of a file, so nothing is lost: whoever still
            // reads the range gets the same bytes.
            let advised =
                unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, length) };
            // A system that refuses keeps the pages; nothing else changes.
            drop(advised);
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { source: Source::Memory(Arc::new(bytes)), range }
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

    #[cfg(target_os = "linux")]
    #[test]
    fn released_bytes_leave_memory_and_can_be_read_again() {
        let path = std::env::temp_dir().join(format!("kvant-released-{}", std::process::id()));
        let content: Vec<u8> = (0..1 << 20).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let bytes = Bytes::map(&path).unwrap();
        // The kilobytes of this mapping that are in memory.
        let resident = || {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let own = maps.split_once(path.to_str().unwrap()).unwrap().1;
            let line = own.lines().find(|line| line.starts_with("Rss:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
        };
        assert_eq!(&*bytes, content);
        assert_eq!(resident(), 1024);
        bytes.slice(512 << 10..1 << 20).unwrap().release();
        assert_eq!(resident(), 512);
        assert_eq!(&*bytes, content);
        Bytes::from(vec![1, 2]).release();
        std::fs::remove_file(&path).unwrap();
    }

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

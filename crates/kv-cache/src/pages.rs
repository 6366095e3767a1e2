//! `PagePool`: which pages are free and how many hold each. Counts only, no device memory, so the
//! scheduler uses it too.

/// A page's number in the pool. A page is `PAGE_TOKENS` tokens of every layer.
pub type PageId = u32;

/// The pages of one sequence, in token order.
pub type PageList = Vec<PageId>;

/// A fixed number of pages, each free or held by a number of owners.
#[derive(Clone, Debug)]
pub struct PagePool {
    /// Owners of each page; 0 is free.
    owners: Vec<u32>,
    /// Free pages; the last is lent next, so that memory touched lately is used again.
    free: Vec<PageId>,
}

impl PagePool {
    /// A pool of `pages` free pages; page 0 is lent first.
    ///
    /// # Panics
    /// If there are more pages than a `PageId` can name.
    pub fn new(pages: usize) -> Self {
        let count = PageId::try_from(pages).expect("a pool has at most 2^32 - 1 pages");
        Self { owners: vec![0; pages], free: (0..count).rev().collect() }
    }

    /// Lends a free page to one owner.
    pub fn alloc(&mut self) -> Option<PageId> {
        let page = self.free.pop()?;
        self.owners[page as usize] = 1;
        Some(page)
    }

    /// Adds an owner to a lent page.
    ///
    /// # Panics
    /// If the page is free: an error of ours.
    pub fn retain(&mut self, page: PageId) {
        let owners = &mut self.owners[page as usize];
        assert!(*owners > 0, "page {page} is free and cannot be retained");
        *owners = owners.checked_add(1).expect("a page has fewer than 2^32 owners");
    }

    /// Takes an owner away; true if the page became free.
    ///
    /// # Panics
    /// If the page is free already: an error of ours.
    pub fn release(&mut self, page: PageId) -> bool {
        let owners = &mut self.owners[page as usize];
        assert!(*owners > 0, "page {page} is free and cannot be released");
        *owners -= 1;
        let freed = *owners == 0;
        if freed {
            self.free.push(page);
        }
        freed
    }

    /// Owners of a page; 0 is free.
    pub fn owners(&self, page: PageId) -> u32 {
        self.owners[page as usize]
    }

    /// Pages that nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Pages that somebody holds.
    pub fn used(&self) -> usize {
        self.capacity() - self.free()
    }

    /// All pages.
    pub fn capacity(&self) -> usize {
        self.owners.len()
    }

    /// Asserts that the free list names exactly the pages without an owner, each once.
    pub fn check(&self) {
        let mut listed = vec![false; self.owners.len()];
        for page in &self.free {
            let listed = &mut listed[*page as usize];
            assert!(!*listed, "page {page} is in the free list twice");
            *listed = true;
        }
        for (page, (owners, listed)) in self.owners.iter().zip(listed).enumerate() {
            assert_eq!(*owners == 0, listed, "page {page} has {owners} owners; free: {listed}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_lent_once_and_then_none() {
        for pages in [0, 1, 3] {
            let mut pool = PagePool::new(pages);
            let mut lent: Vec<_> = (0..pages).map(|_| pool.alloc().unwrap()).collect();
            assert_eq!(pool.alloc(), None, "one past {pages}");
            assert_eq!((pool.free(), pool.used(), pool.capacity()), (0, pages, pages));
            pool.check();
            lent.sort_unstable();
            assert_eq!(lent, (0..pages as PageId).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_page_becomes_free_with_its_last_owner() {
        let mut pool = PagePool::new(2);
        let page = pool.alloc().unwrap();
        pool.retain(page);
        assert_eq!(pool.owners(page), 2);
        assert!(!pool.release(page));
        assert_eq!(pool.used(), 1);
        assert!(pool.release(page));
        assert_eq!(pool.free(), 2);
        pool.check();
    }

    #[test]
    #[should_panic(expected = "page 0 is free and cannot be released")]
    fn a_double_release_is_refused() {
        let mut pool = PagePool::new(1);
        let page = pool.alloc().unwrap();
        pool.release(page);
        pool.release(page);
    }

    #[test]
    #[should_panic(expected = "page 1 is free and cannot be retained")]
    fn a_free_page_cannot_be_retained() {
        PagePool::new(2).retain(1);
    }

    #[test]
    #[should_panic(expected = "page 0 is in the free list twice")]
    fn check_sees_a_page_listed_twice() {
        PagePool { owners: vec![0, 0], free: vec![0, 0] }.check();
    }

    #[test]
    #[should_panic(expected = "page 1 has 0 owners; free: false")]
    fn check_sees_a_lost_page() {
        PagePool { owners: vec![0, 0], free: vec![0] }.check();
    }
}

//! `Stash`: buffers that a call leaves for later ones, so that a step of decoding allocates
//! nothing.
//!
//! There are as many buffers as calls have run at the same time, not one a thread: a call starts on
//! any thread of the pool, and each would grow its own to the largest prompt.

use std::sync::{Mutex, PoisonError};

/// Buffers that nobody uses now.
#[derive(Debug, Default)]
pub struct Stash<T>(Mutex<Vec<T>>);

impl<T: Default> Stash<T> {
    /// Empty.
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Calls with buffers as an earlier call left them, or with new ones.
    pub fn with<R>(&self, call: impl FnOnce(&mut T) -> R) -> R {
        // Never held while `call` runs: a thread that waits in it may take up another call.
        let free = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = free().pop();
        let mut buffers = kept.unwrap_or_default();
        let result = call(&mut buffers);
        free().push(buffers);
        result
    }
}

/// The first `length` of the buffer's elements, made longer if need be. They hold whatever they
/// held.
pub fn of_length<T: Clone + Default>(buffer: &mut Vec<T>, length: usize) -> &mut [T] {
    if buffer.len() < length {
        // Not `resize`: what the buffer holds need not be copied.
        *buffer = vec![T::default(); length];
    }
    &mut buffer[..length]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_calls_within_calls_have_their_own() {
        let stash = Stash::<Vec<u32>>::new();
        stash.with(|outer| {
            outer.push(1);
            stash.with(|inner| {
                assert!(inner.is_empty());
                inner.push(2);
            });
            assert_eq!(*outer, [1]);
        });
        let mut seen = stash.with(|a| stash.with(|b| [a.clone(), b.clone()].concat()));
        seen.sort_unstable();
        assert_eq!(seen, [1, 2]);
    }

    #[test]
    fn a_buffer_grows_and_never_shrinks() {
        let mut buffer = vec![7, 7];
        assert_eq!(of_length(&mut buffer, 1), [7]);
        assert_eq!(of_length(&mut buffer, 3).len(), 3);
        assert_eq!((of_length(&mut buffer, 2).len(), buffer.len()), (2, 3));
    }
}

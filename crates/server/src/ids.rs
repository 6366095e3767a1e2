//! Names of answers and requests, and seeds for those who sent none.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Keys of this process, from the system's randomness.
static KEYS: LazyLock<[RandomState; 2]> =
    LazyLock::new(|| [RandomState::new(), RandomState::new()]);
static COUNT: AtomicU64 = AtomicU64::new(0);

/// `prefix` and 32 hexadecimal digits that no other answer has.
pub(crate) fn fresh(prefix: &str) -> String {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let [high, low] = [KEYS[0].hash_one(count), KEYS[1].hash_one(count)];
    format!("{prefix}{high:016x}{low:016x}")
}

/// A seed for a request that has none.
pub(crate) fn random_seed() -> u64 {
    KEYS[0].hash_one(("seed", COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// The seed of the choice at `index`: far from its neighbours' (splitmix64).
pub(crate) fn derived_seed(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_and_seeds_do_not_repeat() {
        let names: BTreeSet<_> = (0..1000).map(|_| fresh("cmpl-")).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == 5 + 32));
        let seeds: BTreeSet<_> =
            (0..100).flat_map(|seed| (0..10).map(move |n| derived_seed(seed, n))).collect();
        assert_eq!(seeds.len(), 1000);
        assert_ne!(random_seed(), random_seed());
    }
}

//! Numbers that are the same on every machine.

/// SplitMix64.
pub(crate) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Nearly normal, mean 0 and variance 1: the sum of four uniform numbers of one draw.
pub(crate) fn normal(state: &mut u64) -> f32 {
    let word = next(state);
    let sum: u32 = (0..4).map(|part| (word >> (16 * part)) as u32 & 0xFFFF).sum();
    // The sum of four has the mean 2 · 65535 and a deviation of 65536 / √3.
    (sum as f32 - 131_070.0) * (3.0_f32.sqrt() / 65_536.0)
}

/// The numbers 0..count in random order (Fisher and Yates).
pub(crate) fn permutation(count: u32, state: &mut u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, (next(state) % (last as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // First outputs of the published generator for seed 1234567.
        let mut state = 1_234_567;
        assert_eq!(next(&mut state), 6_457_827_717_110_365_317);
        assert_eq!(next(&mut state), 3_203_168_211_198_807_973);
    }

    #[test]
    fn normal_numbers_have_mean_0_and_variance_1() {
        let mut state = 5;
        let numbers: Vec<f32> = (0..100_000).map(|_| normal(&mut state)).collect();
        let mean = numbers.iter().sum::<f32>() / 1e5;
        let variance = numbers.iter().map(|x| x * x).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn a_permutation_has_every_number_once_and_no_order() {
        let order = permutation(1000, &mut 3);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        let follows = order.windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
        assert!(follows < 20, "{follows} pages follow each other");
        assert!(permutation(0, &mut 3).is_empty());
    }
}

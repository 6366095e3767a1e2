//! Numbers that are the same on every machine.

/// A generator's state for the `number`th of many things of one seed, none like another.
pub fn nth(seed: u64, number: u64) -> u64 {
    seed ^ number.wrapping_mul(0xD134_2543_DE82_EF95)
}

/// SplitMix64.
pub fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Uniform, from 0 to below 1.
pub fn uniform(state: &mut u64) -> f64 {
    (next(state) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Moments of a Poisson stream, seconds: the first at 0, then `rate` a second in the mean, whatever
/// came before.
pub fn arrivals(rate: f64, count: u32, seed: u64) -> Vec<f64> {
    let (mut at, mut state) = (0.0, seed);
    let mut moments = Vec::with_capacity(count as usize);
    for _ in 0..count {
        moments.push(at);
        at -= (1.0 - uniform(&mut state)).ln() / rate;
    }
    moments
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
    fn gaps_between_arrivals_are_exponential() {
        let moments = arrivals(50.0, 20_001, 3);
        assert_eq!((moments.len(), moments[0]), (20_001, 0.0));
        let gaps: Vec<f64> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| *gap >= 0.0 && gap.is_finite()));
        let mean = gaps.iter().sum::<f64>() / 2e4;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / 2e4).sqrt();
        // Mean and deviation are both 1 / rate, and so many gaps are longer than the mean: 1 / e.
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        assert!((deviation * 50.0 - 1.0).abs() < 0.03, "{deviation}");
        let longer = gaps.iter().filter(|gap| **gap > 0.02).count() as f64 / 2e4;
        assert!((longer - (-1.0_f64).exp()).abs() < 0.01, "{longer}");
        assert_eq!(arrivals(50.0, 100, 3), moments[..100]);
        assert_ne!(arrivals(50.0, 100, 4), moments[..100]);
        assert!(arrivals(50.0, 0, 3).is_empty());
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

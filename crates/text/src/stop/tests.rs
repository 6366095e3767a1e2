//! Tests of stop strings: by table, and random texts against the rule said plainly.

use super::*;

/// A small generator, so that a printed seed repeats a failure.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn text(&mut self, most: usize) -> String {
        let letters = ['a', 'b', 'é', '😀'];
        let len = self.below(most + 1);
        (0..len).map(|_| letters[self.below(letters.len())]).collect()
    }
}

/// All pieces, with what `finish` gives, and the stop string.
fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
    let mut strings = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
    let mut released = Vec::new();
    let mut found = None;
    for piece in pieces {
        let stopped = strings.push(piece);
        assert!(found.is_none() || stopped == Stopped::default(), "text after a stop");
        released.push(stopped.text);
        found = found.or(stopped.stop);
    }
    released.push(strings.finish());
    (released, found)
}

/// Stop strings, pieces, what each piece and `finish` release, the stop string found.
type Case = (
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
    Option<&'static str>,
);

#[test]
fn text_is_released_when_it_can_become_no_stop_string() {
    let cases: [Case; 17] = [
        (&[], &["a", "b"], &["a", "b", ""], None),
        (&[""], &["a", ""], &["a", "", ""], None),
        (&["stop"], &["no", "thing"], &["no", "thing", ""], None),
        (&["stop"], &["a st", "op b"], &["a ", "", ""], Some("stop")),
        (&["stop"], &["a st", "amp"], &["a ", "stamp", ""], None),
        (&["stop"], &["a sto"], &["a ", "sto"], None),
        (&["stop"], &["stop"], &["", ""], Some("stop")),
        (&["stop"], &["a stop b", "c"], &["a ", "", ""], Some("stop")),
        (&["aab"], &["aaa", "ab"], &["a", "a", ""], Some("aab")),
        (&["\n\n"], &["a\n", "\n\nb"], &["a", "", ""], Some("\n\n")),
        // The first to be complete wins, wherever it begins.
        (&["abcd", "bc"], &["abcd"], &["a", ""], Some("bc")),
        (&["ab", "abcd"], &["abcd"], &["", ""], Some("ab")),
        // Complete at the same place: the longest.
        (&["c", "bc", "abc"], &["xabc"], &["x", ""], Some("abc")),
        (&["abc", "c"], &["ab", "c"], &["", "", ""], Some("abc")),
        // A character may be a beginning of nothing though its first bytes are.
        (&["é"], &["è", "é"], &["è", "", ""], Some("é")),
        (&["é!"], &["é", "é", "!"], &["", "é", "", ""], Some("é!")),
        (&["a", ""], &["", "b", "a", "a"], &["", "b", "", "", ""], Some("a")),
    ];
    for (stops, pieces, released, stop) in cases {
        let found = run(stops, pieces);
        assert_eq!(found.0, released, "{stops:?} {pieces:?}");
        assert_eq!(found.1.as_deref(), stop, "{stops:?} {pieces:?}");
    }
}

/// The rule over the whole text: the first place where some stop string ends, the longest there.
fn expected(stops: &[String], text: &str) -> (String, Option<String>) {
    for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
        let here = stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(*stop));
        if let Some(stop) = here.max_by_key(|stop| stop.len()) {
            return (text[..end - stop.len()].to_owned(), Some(stop.clone()));
        }
    }
    (text.to_owned(), None)
}

/// The most that may be released: all but what may yet become a stop string.
fn releasable(stops: &[String], text: &str) -> usize {
    let starts = (0..text.len()).filter(|at| text.is_char_boundary(*at));
    let held = |at: &usize| stops.iter().any(|stop| stop.starts_with(&text[*at..]));
    starts.into_iter().find(held).unwrap_or(text.len())
}

#[test]
fn random_texts_follow_the_rule_however_they_are_cut() {
    for seed in 0..20_000 {
        let mut random = Random(seed);
        let stops: Vec<String> = (0..random.below(4)).map(|_| random.text(4)).collect();
        let pieces: Vec<String> = (0..random.below(8)).map(|_| random.text(4)).collect();
        let (text, stop) = expected(&stops, &pieces.concat());

        let mut strings = StopStrings::new(stops.clone());
        let (mut seen, mut released, mut found) = (String::new(), String::new(), None);
        for piece in &pieces {
            let stopped = strings.push(piece);
            released.push_str(&stopped.text);
            seen.push_str(piece);
            if found.is_none() && stopped.stop.is_none() {
                let most = releasable(&stops, &seen);
                assert_eq!(released.len(), most, "seed {seed}: {stops:?} {pieces:?}: held back");
            }
            found = found.or(stopped.stop);
        }
        released.push_str(&strings.finish());
        assert_eq!((released, found), (text, stop), "seed {seed}: {stops:?} {pieces:?}");
    }
}

//! `StopStrings`: releases text up to the first stop string. Text that may yet become one is held
//! back, so what is released never depends on how the text was cut into pieces.

/// Looks for stop strings in text that comes in pieces.
///
/// The match that is complete first wins, so that generation ends at the earliest token that
/// completes one; of those complete at the same place the longest wins, so that no part of it is
/// released.
#[derive(Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text not released: a beginning of some stop string, or empty.
    held: String,
    stopped: bool,
}

/// What one piece of text released.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Text to hand on.
    pub text: String,
    /// The stop string that was found. Nothing is released after it.
    pub stop: Option<String>,
}

impl StopStrings {
    /// Empty stop strings are ignored: they would stop before any text.
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new(), stopped: false }
    }

    /// Takes a piece and returns what can be released. Pieces after a stop release nothing.
    pub fn push(&mut self, text: &str) -> Stopped {
        if self.stopped {
            return Stopped::default();
        }
        self.held.push_str(text);
        if let Some((start, stop)) = self.first_match() {
            let stop = stop.to_owned();
            self.stopped = true;
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return Stopped { text, stop: Some(stop) };
        }
        let keep = self.held_from();
        let held = self.held.split_off(keep);
        Stopped { text: std::mem::replace(&mut self.held, held), stop: None }
    }

    /// The text ends: what was held back, for it became no stop string. Empty after a stop.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Start of the match that ends first, and its stop string.
    fn first_match(&self) -> Option<(usize, &str)> {
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, stop.as_str()))
        });
        found.min_by_key(|(end, start, _)| (*end, *start)).map(|(_, start, stop)| (start, stop))
    }

    /// Where the longest end of the text begins that is the beginning of a stop string.
    fn held_from(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        // A whole stop string would have matched, so at most one byte less can be held.
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        let mut starts = (from..self.held.len()).filter(|at| self.held.is_char_boundary(*at));
        let may_grow = |at: &usize| {
            let end = &self.held[*at..];
            self.stops.iter().any(|stop| stop.starts_with(end))
        };
        starts.find(may_grow).unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests;

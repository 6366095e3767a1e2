//! `JsonScan`: where a JSON value ends, one character at a time.

/// Deepest nesting of a value.
const DEPTH: usize = 128;

/// A value that is being read. Brackets and strings are followed; what is between them must only
/// be of characters that JSON has there.
#[derive(Debug, Default)]
pub(super) struct JsonScan {
    /// Closing brackets that are still to come.
    open: Vec<char>,
    at: At,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Start,
    Container,
    String,
    Escape,
    Scalar,
}

/// What a character was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scanned {
    /// Part of the value, which goes on.
    More,
    /// The last one of the value.
    Last,
    /// The value, a number or a word, was over before it.
    Past,
    /// It cannot stand here.
    Wrong,
}

impl JsonScan {
    pub(super) fn push(&mut self, c: char) -> Scanned {
        match self.at {
            At::Start => self.start(c),
            At::Container => self.inside(c),
            At::Escape => {
                self.at = At::String;
                Scanned::More
            }
            At::String => match c {
                '\\' => {
                    self.at = At::Escape;
                    Scanned::More
                }
                '"' => self.ended(),
                _ => Scanned::More,
            },
            At::Scalar if scalar(c) => Scanned::More,
            At::Scalar => Scanned::Past,
        }
    }

    fn start(&mut self, c: char) -> Scanned {
        self.at = match c {
            '{' | '[' => {
                self.open.push(closing(c));
                At::Container
            }
            '"' => At::String,
            _ if scalar(c) => At::Scalar,
            _ => return Scanned::Wrong,
        };
        Scanned::More
    }

    fn inside(&mut self, c: char) -> Scanned {
        match c {
            '"' => self.at = At::String,
            '{' | '[' if self.open.len() < DEPTH => self.open.push(closing(c)),
            '}' | ']' if self.open.last() == Some(&c) => {
                self.open.pop();
                return self.ended();
            }
            ',' | ':' => {}
            _ if scalar(c) || json_space(c) => {}
            _ => return Scanned::Wrong,
        }
        Scanned::More
    }

    /// A string or a container is closed.
    fn ended(&mut self) -> Scanned {
        self.at = At::Container;
        if self.open.is_empty() { Scanned::Last } else { Scanned::More }
    }
}

/// Space between the parts of JSON.
pub(super) fn json_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

fn closing(c: char) -> char {
    if c == '{' { '}' } else { ']' }
}

fn scalar(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_end_where_they_end() {
        for (text, expected) in [
            ("{}", Some(2)),
            (r#"{"a": [1, "]}", {"b": "\"}"}]} x"#, Some(30)),
            ("[[]]]", Some(4)),
            (r#""a\\"b"#, Some(5)),
            ("12 ", Some(2)),
            ("true}", Some(4)),
            ("-1.5e+3,", Some(7)),
            ("{", None),
            (r#""a"#, None),
            ("[1}", None),
            ("[<]", None),
            ("]", None),
        ] {
            let mut scan = JsonScan::default();
            let mut end = None;
            for (at, c) in text.char_indices() {
                match scan.push(c) {
                    Scanned::More => continue,
                    Scanned::Last => end = Some(at + 1),
                    Scanned::Past => end = Some(at),
                    Scanned::Wrong => {}
                }
                break;
            }
            assert_eq!(end, expected, "{text}");
        }
    }

    #[test]
    fn nesting_has_a_limit() {
        let mut scan = JsonScan::default();
        assert!("[".repeat(DEPTH).chars().all(|c| scan.push(c) == Scanned::More));
        assert_eq!(scan.push('['), Scanned::Wrong);
    }
}

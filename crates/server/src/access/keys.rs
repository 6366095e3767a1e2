//! `Keys`: the lines of a file of keys. It has their hashes only, so that whoever reads it cannot
//! ask.

use std::fmt::Write;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::access::usage::{Quota, Slot, Usage};
use crate::error::ApiError;

const PREFIX: &str = "sha256:";
const HASH_BYTES: usize = 32;

/// Keys of a file at most, so that looking for one stays short.
const KEYS_MAX: usize = 10_000;

/// All keys.
#[derive(Debug)]
pub struct Keys {
    list: Vec<Key>,
}

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    hash: [u8; HASH_BYTES],
    /// For the log and the page of metrics; the key itself is in neither.
    pub(crate) name: String,
    pub(crate) admin: bool,
    quota: Quota,
    usage: Arc<Usage>,
}

/// The line of a file of keys for a key.
pub fn hash_line(key: &str, name: &str, admin: bool) -> String {
    let mut line = PREFIX.to_owned();
    for byte in Sha256::digest(key.as_bytes()) {
        let _ = write!(line, "{byte:02x}");
    }
    let _ = write!(line, " {name}{}", if admin { " admin" } else { "" });
    line
}

impl Keys {
    /// Reads `sha256:HASH NAME [admin] [requests_per_minute=N] [concurrent=N]` a line; empty lines
    /// and those that begin with `#` are skipped. `quota` is for keys that say nothing. The error
    /// says which line is wrong and never what is in it.
    pub fn parse(text: &str, quota: Quota) -> Result<Self, String> {
        let mut list: Vec<Key> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = key(line, quota).map_err(|why| format!("line {}: {why}", index + 1))?;
            if list.iter().any(|other| other.hash == key.hash || other.name == key.name) {
                return Err(format!("line {}: the key or its name is there twice", index + 1));
            }
            list.push(key);
        }
        match list.len() {
            0 => Err("there are no keys; make one with kvant key".to_owned()),
            1..=KEYS_MAX => Ok(Self { list }),
            count => Err(format!("there are {count} keys, at most {KEYS_MAX} are taken")),
        }
    }

    /// How many there are, and how many of them are for `/admin`.
    pub fn count(&self) -> (usize, usize) {
        (self.list.len(), self.list.iter().filter(|key| key.admin).count())
    }

    /// The same keys with the counts that they had before.
    pub(crate) fn with_usage_of(mut self, before: &Self) -> Self {
        for key in &mut self.list {
            if let Some(same) = before.list.iter().find(|other| other.hash == key.hash) {
                key.usage = same.usage.clone();
            }
        }
        self
    }

    /// The time it takes does not depend on which key it is nor on how much of it is right.
    pub(crate) fn find(&self, offered: &[u8]) -> Option<&Key> {
        let hash = Sha256::digest(offered);
        let mut found = None;
        for key in &self.list {
            if bool::from(key.hash.ct_eq(hash.as_slice())) {
                found = Some(key);
            }
        }
        found
    }
}

impl Key {
    /// A place for one request, or how long to wait for one.
    pub(crate) fn enter(&self) -> Result<Slot, ApiError> {
        Usage::enter(&self.usage, self.quota)
    }
}

fn key(line: &str, quota: Quota) -> Result<Key, String> {
    let mut words = line.split_whitespace();
    let hash = words.next().and_then(|word| word.strip_prefix(PREFIX)).and_then(bytes);
    let hash = hash.ok_or("it must begin with sha256: and 64 hexadecimal digits")?;
    let name = words.next().ok_or("the key has no name")?;
    let usage = Arc::default();
    let mut key = Key { hash, name: name.to_owned(), admin: false, quota, usage };
    for word in words {
        match word.split_once('=') {
            None if word == "admin" => key.admin = true,
            Some(("requests_per_minute", count)) => key.quota.per_minute = number(count)?,
            Some(("concurrent", count)) => key.quota.concurrent = number(count)?,
            _ => {
                let words = "admin, requests_per_minute=N or concurrent=N";
                return Err(format!("after the name there may be {words}"));
            }
        }
    }
    Ok(key)
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "a limit is no whole number".to_owned())
}

fn bytes(digits: &str) -> Option<[u8; HASH_BYTES]> {
    let mut hash = [0; HASH_BYTES];
    if digits.len() != 2 * HASH_BYTES || !digits.is_ascii() {
        return None;
    }
    for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_its_line_and_no_other() {
        // Of `printf secret | sha256sum`.
        let line = "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        assert_eq!(hash_line("secret", "me", true), format!("{line} me admin"));
        let text = format!("# mine\n\n  {line} me admin concurrent=2\n");
        let keys = Keys::parse(&text, Quota { per_minute: 7, concurrent: 8 }).unwrap();
        let key = keys.find(b"secret").unwrap();
        assert_eq!((key.name.as_str(), key.admin), ("me", true));
        assert_eq!(key.quota, Quota { per_minute: 7, concurrent: 2 });
        for wrong in [b"secre".as_slice(), b"secret ", b"", b"Secret"] {
            assert!(keys.find(wrong).is_none());
        }
        assert_eq!(keys.count(), (1, 1));
    }

    #[test]
    fn wrong_lines_are_named_and_not_shown() {
        let good = hash_line("secret", "me", false);
        for (text, part) in [
            (String::new(), "no keys"),
            ("secret me".to_owned(), "line 1: it must begin with sha256:"),
            (format!("{}z me", &good[..70]), "line 1: it must begin with sha256:"),
            (good[..71].to_owned(), "line 1: the key has no name"),
            (format!("{good} admim"), "line 1: after the name"),
            (format!("{good} concurrent=-1"), "line 1: a limit is no whole number"),
            (format!("{good}\n{good}"), "line 2: the key or its name is there twice"),
        ] {
            let error = Keys::parse(&text, Quota::default()).unwrap_err();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains("secret") && !error.contains("2bb80d"), "{error}");
        }
    }
}

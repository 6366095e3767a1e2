//! `EventStream`: bytes of a server-sent event stream in, the text of whole events out.

/// Most bytes of an event, and of a line of one.
pub(super) const EVENT_BYTES: usize = 1 << 20;

/// What of an event has come so far. Lines end with LF, CR or both.
#[derive(Debug, Default)]
pub(super) struct EventStream {
    line: Vec<u8>,
    event: Option<Vec<u8>>,
    after_cr: bool,
}

/// An event or a line has more than `EVENT_BYTES`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Oversized;

impl EventStream {
    /// Takes what was read; the events that it completes are appended to `found`.
    pub(super) fn push(&mut self, bytes: &[u8], found: &mut Vec<Vec<u8>>) -> Result<(), Oversized> {
        let mut rest = bytes;
        while let Some(&first) = rest.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let part = &rest[..end.unwrap_or(rest.len())];
            let held = self.event.as_ref().map_or(0, Vec::len);
            if self.line.len() + part.len() + held > EVENT_BYTES {
                return Err(Oversized);
            }
            self.line.extend_from_slice(part);
            let Some(end) = end else { return Ok(()) };
            self.after_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            found.extend(self.end_line());
        }
        Ok(())
    }

    /// An empty line ends an event; only its `data` matters, other fields and comments do not.
    fn end_line(&mut self) -> Option<Vec<u8>> {
        if self.line.is_empty() {
            return self.event.take();
        }
        let line = std::mem::take(&mut self.line);
        let value = if line == b"data" { Some(&line[..0]) } else { line.strip_prefix(b"data:") };
        if let Some(value) = value {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &mut self.event {
                Some(event) => {
                    event.push(b'\n');
                    event.extend_from_slice(value);
                }
                none => *none = Some(value.to_vec()),
            }
        }
        None
    }
}

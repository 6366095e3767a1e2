//! Progress bars on stderr, only where a person watches.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Whether bars are drawn: only on a terminal.
pub(crate) fn shown() -> bool {
    std::io::stderr().is_terminal()
}

/// A bar of bytes; invisible if stderr is no terminal.
pub(crate) fn bytes(message: &str) -> ProgressBar {
    bar(message, "{msg} [{wide_bar}] {bytes}/{total_bytes} ({eta})")
}

/// A bar of tokens; invisible if stderr is no terminal.
pub(crate) fn tokens(message: &str) -> ProgressBar {
    bar(message, "{msg} [{wide_bar}] {pos}/{len} tokens ({eta})")
}

/// A bar of so many requests; invisible if stderr is no terminal.
pub(crate) fn requests(message: &str, count: u32) -> ProgressBar {
    let bar = bar(message, "{msg} [{wide_bar}] {pos}/{len} requests ({eta})");
    bar.set_length(u64::from(count));
    bar
}

fn bar(message: &str, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    let bar = if shown() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    bar.with_style(style).with_message(message.to_owned())
}

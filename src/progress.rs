//! Progress: bars on stderr, only where a person watches, and lines in the log about what takes
//! long.

use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

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

/// What is done before this says nothing.
const PATIENCE: Duration = Duration::from_secs(2);
/// From one line to the next.
const PAUSE: Duration = Duration::from_secs(10);

/// Does work that may take long: then a line in the log says what, and again from time to time.
pub(crate) fn told<T>(what: impl Fn() -> String + Send, work: impl FnOnce() -> T) -> T {
    told_every(PATIENCE, PAUSE, what, work)
}

fn told_every<T>(
    patience: Duration,
    pause: Duration,
    what: impl Fn() -> String + Send,
    work: impl FnOnce() -> T,
) -> T {
    let (working, ended) = channel::<()>();
    let start = Instant::now();
    thread::scope(|scope| {
        // The log of this thread, which tests have of their own.
        let log = tracing::dispatcher::get_default(Clone::clone);
        scope.spawn(move || {
            let mut wait = patience;
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                tracing::dispatcher::with_default(&log, || {
                    tracing::info!("{}, {:.0} s so far", what(), start.elapsed().as_secs_f64());
                });
                wait = pause;
            }
        });
        let result = work();
        drop(working);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<u8>>>);

    impl Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_takes_long_is_told_and_what_does_not_is_not() {
        let heard = Heard::default();
        let writer = heard.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let wait = Duration::from_millis(5);
        tracing::subscriber::with_default(log, || {
            let long = Duration::from_mins(10);
            assert_eq!(told_every(long, long, || "quick".to_owned(), || 1), 1);
            let enough = || {
                let lines = || String::from_utf8_lossy(&heard.0.lock().unwrap()).lines().count();
                while lines() < 2 {
                    thread::sleep(wait);
                }
            };
            told_every(wait, wait, || "slow".to_owned(), enough);
        });
        let text = String::from_utf8(heard.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("slow, 0 s so far") && !text.contains("quick"), "{text}");
    }
}

//! The watchdog: notices an engine that will not answer any more, so that the operator's
//! orchestrator can start another one.

use std::fmt;
use std::time::Duration;

use kvant_engine::{Handle, Health};

/// How often it looks.
const LOOK: Duration = Duration::from_millis(100);

/// Looks in a row that must find it stalled. One may be the first thing that happens in a process
/// that was stopped as a whole, before its engine has had a turn.
const LOOKS: u32 = 5;

/// How long streams may take to say that the engine is dead before the answer is final.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What is wrong with the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its thread has ended; the text says why.
    Dead(String),
    /// It is at work and has not shown life for so long.
    Stalled(Duration),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dead(why) => write!(f, "the engine has died: {why}"),
            Self::Stalled(silent) => {
                write!(f, "the engine has been silent for {:.1} s", silent.as_secs_f64())
            }
        }
    }
}

/// Waits, on a thread of its own, until the engine is dead, or stalled for `patience`. A thread, so
/// that it sees a stall of the server's own threads too.
pub fn watch(handle: &Handle, patience: Duration) -> Fault {
    let mut stalled = 0;
    loop {
        let health = handle.health();
        stalled = if matches!(health, Health::Stalled(_)) { stalled + 1 } else { 0 };
        match health {
            Health::Dead(why) => {
                std::thread::sleep(LAST_WORDS);
                return Fault::Dead(why);
            }
            Health::Stalled(silent) if silent >= patience && stalled >= LOOKS => {
                return Fault::Stalled(silent);
            }
            Health::Ok | Health::Draining | Health::Stalled(_) => std::thread::sleep(LOOK),
        }
    }
}

//! `kvant key`: makes a key for clients, and the line that lets a server know it without having it.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::{Context, Result, bail};

use crate::cli::KeyArgs;

/// Bits of a key: 256, so that nobody guesses it and a plain hash is enough.
const BYTES: usize = 32;

/// The line goes to stdout, for `kvant key >> FILE`; the key is shown once, on stderr.
pub(crate) fn run(args: &KeyArgs) -> Result<()> {
    let name = &args.name;
    if name.is_empty() || name.len() > 64 || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("--name is {name:?}, it must be 1 to 64 letters, digits and signs without spaces");
    }
    let mut bytes = [0_u8; BYTES];
    getrandom::fill(&mut bytes).context("the system gives no random numbers")?;
    let mut key = "kv-".to_owned();
    for byte in bytes {
        let _ = write!(key, "{byte:02x}");
    }
    writeln!(std::io::stdout(), "{}", kvant_server::hash_line(&key, name, args.admin))?;
    eprintln!("{key}");
    Ok(())
}

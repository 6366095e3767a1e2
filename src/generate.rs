//! `kvant generate`: one prompt, continued on stdout as it comes.

use std::io::{IsTerminal, Read, Write};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cli::GenerateArgs;
use crate::session::Session;

/// Largest prompt from stdin, bytes.
const PROMPT_BYTES: u64 = 64 << 20;

pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    let config = args.settings.config()?;
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None => from_stdin()?,
    };
    let session = Session::start(&config)?;
    let ids = if args.raw || !session.chats() {
        session.raw_prompt(&prompt)?
    } else {
        session.chat_prompt(&Value::Array(vec![json!({"role": "user", "content": prompt})]))?
    };
    let mut out = std::io::stdout();
    session.answer(ids, &args.sampling, &mut |piece| {
        out.write_all(piece.as_bytes())?;
        out.flush()?;
        Ok(true)
    })?;
    writeln!(out)?;
    Ok(())
}

fn from_stdin() -> Result<String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        bail!("no prompt; give --prompt TEXT or pipe a text in");
    }
    let mut text = String::new();
    let read = stdin.lock().take(PROMPT_BYTES + 1).read_to_string(&mut text);
    if read.context("stdin cannot be read as UTF-8")? as u64 > PROMPT_BYTES {
        bail!("the prompt on stdin has more than {PROMPT_BYTES} bytes");
    }
    Ok(text.trim_end_matches('\n').to_owned())
}

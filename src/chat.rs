//! `kvant chat`: a conversation in the terminal, or line by line from a pipe.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Value, json};

use crate::cli::ChatArgs;
use crate::session::Session;

const HELP: &str = "/reset begins anew, /exit leaves, Ctrl-C stops an answer";

pub(crate) fn run(args: &ChatArgs) -> Result<()> {
    let config = args.settings.config()?;
    let session = Session::start(&config)?;
    let mut chat = Chat { session, args, messages: Vec::new(), stop: Arc::default() };
    chat.reset();
    if std::io::stdin().is_terminal() { chat.in_terminal() } else { chat.of_pipe() }
}

/// A conversation under way.
struct Chat<'a> {
    session: Session,
    args: &'a ChatArgs,
    messages: Vec<Value>,
    /// Set by Ctrl-C.
    stop: Arc<AtomicBool>,
}

impl Chat<'_> {
    fn in_terminal(&mut self) -> Result<()> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build();
        let runtime = runtime.context("cannot start the thread that waits for Ctrl-C")?;
        let stop = self.stop.clone();
        runtime.spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                stop.store(true, Ordering::Relaxed);
            }
        });
        eprintln!("{}: {HELP}", self.session.name());
        let mut editor = DefaultEditor::new().context("the terminal cannot be read")?;
        loop {
            match editor.readline("> ") {
                Ok(line) => {
                    let _ = editor.add_history_entry(line.as_str());
                    if !self.take(&line)? {
                        return Ok(());
                    }
                }
                Err(ReadlineError::Interrupted) => eprintln!("/exit or Ctrl-D leaves"),
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error).context("the terminal cannot be read"),
            }
        }
    }

    fn of_pipe(&mut self) -> Result<()> {
        for line in std::io::stdin().lock().lines() {
            if !self.take(&line.context("stdin cannot be read as UTF-8")?)? {
                break;
            }
        }
        Ok(())
    }

    /// Answers a line or follows a command; false ends the conversation.
    fn take(&mut self, line: &str) -> Result<bool> {
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => return Ok(false),
            "/reset" => self.reset(),
            "/help" => eprintln!("{HELP}"),
            text => self.answer(text)?,
        }
        Ok(true)
    }

    fn reset(&mut self) {
        let system = self.args.system.iter();
        self.messages = system.map(|text| json!({"role": "system", "content": text})).collect();
    }

    fn answer(&mut self, text: &str) -> Result<()> {
        self.messages.push(json!({"role": "user", "content": text}));
        let prompt = self.session.chat_prompt(&Value::Array(self.messages.clone()))?;
        self.stop.store(false, Ordering::Relaxed);
        let mut out = std::io::stdout();
        let answer = self.session.answer(prompt, &self.args.sampling, &mut |piece| {
            out.write_all(piece.as_bytes())?;
            out.flush()?;
            Ok(!self.stop.load(Ordering::Relaxed))
        });
        writeln!(out)?;
        match answer {
            Ok(answer) => self.messages.push(json!({"role": "assistant", "content": answer})),
            Err(error) if std::io::stdin().is_terminal() => {
                // A conversation that has outgrown the context must not lose the terminal.
                eprintln!("error: {error:#}; /reset begins anew");
                self.messages.pop();
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

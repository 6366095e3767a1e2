//! The `kvant` binary: reads flags, picks a subcommand, and turns every error into one line and an
//! exit code.

mod chat;
mod cli;
mod client;
mod config;
mod doctor;
mod eval;
mod facts;
mod fetch;
mod generate;
mod inspect;
mod key;
mod load;
mod machine;
mod measure;
mod plan;
mod pooling;
mod progress;
mod serve;
mod session;
mod text;
mod words;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Fetch(args) => fetch::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Bench(args) => measure::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Key(args) => key::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&format!("{error:#}")));
            let config = error.downcast_ref::<config::ConfigError>();
            ExitCode::from(if config.is_some_and(config::ConfigError::is_usage) { 2 } else { 1 })
        }
    }
}

/// Help goes to stdout as it is; a wrong command line becomes one line.
fn usage(error: &clap::Error) -> ExitCode {
    let is_help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if is_help || error.kind() == ErrorKind::DisplayVersion {
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let text = error.to_string();
    let what = text.split("\n\nUsage:").next().unwrap_or(&text);
    let what = what.split("\n\nFor more information").next().unwrap_or(what);
    eprintln!("{}", one_line(what));
    ExitCode::from(2)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whoever read our stdout has left, as `kvant … | head` does: no error.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}

//! `Running`: a started `kvant serve` on a free port, ended when dropped.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

/// How long a server may take to load a small model on a busy machine.
const START: Duration = Duration::from_mins(2);

/// The built binary with a cache folder of the tests and no settings from outside.
pub(crate) fn kvant(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvant"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KVANT_") {
            command.env_remove(name);
        }
    }
    command.env("KVANT_CACHE", env!("CARGO_TARGET_TMPDIR")).args(args).stdin(Stdio::null());
    command
}

/// A server under way.
pub(crate) struct Running {
    child: Child,
    /// `127.0.0.1:port`, or the path of a socket.
    pub(crate) address: String,
    log: Log,
}

/// What a server has written on stderr so far.
type Log = Arc<Mutex<String>>;

impl Running {
    /// Starts `kvant serve --model tiny --port 0` with more flags and waits until it listens.
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::of("tiny", flags)
    }

    /// The same with another model.
    pub(crate) fn of(model: &str, flags: &[&str]) -> Self {
        let mut command = kvant(&["serve", "--model", model, "--port", "0"]);
        command.args(flags).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary was built by cargo");
        let stderr = BufReader::new(child.stderr.take().expect("piped above"));
        let log = Log::default();
        let written = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = written.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let stdout = BufReader::new(child.stdout.take().expect("piped above"));
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let line = receiver.recv_timeout(START);
        let address = line.as_deref().ok().and_then(|line| line.strip_prefix("listening on "));
        let address =
            address.map(|text| text.trim_start_matches("http://").trim_start_matches("unix:"));
        let Some(address) = address else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("no listening line but {line:?}; stderr: {}", log.lock().unwrap());
        };
        Self { address: address.to_owned(), child, log }
    }

    /// What it has written on stderr so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log has a text.
    pub(crate) fn wait_for_log(&self, text: &str) {
        let start = Instant::now();
        while !self.log().contains(text) {
            assert!(start.elapsed() < START, "{text:?} is not in the log: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The port it listens on.
    pub(crate) fn port(&self) -> &str {
        self.address.rsplit(':').next().expect("an address ends with a port")
    }
}

#[cfg(target_os = "linux")]
impl Running {
    /// Threads that it has now.
    pub(crate) fn threads(&self) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        tasks.expect("it lives").count()
    }
}

#[cfg(unix)]
impl Running {
    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends a signal by the name that `kill` has for it.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([name, &pid]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill {name} {pid}");
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("it is our child")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! `Config`: what was written in defaults, profile, file, environment and flags, merged and
//! checked.
//!
//! Every key is described once in `keys`; `config/default.toml` documents the same keys and a test
//! holds the two equal.

mod keys;
mod layers;
mod nearest;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use kvant_engine::DeviceName;
use serde::{Deserialize, Serialize};

pub(crate) use layers::ConfigError;
use layers::Layers;

/// Profiles that are built in, by name.
const PROFILES: [(&str, &str); 1] =
    [("low-memory", include_str!("../config/profiles/low-memory.toml"))];

/// Everything that can be configured. `config/default.toml` says what each key means, its unit and
/// its bounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) model: ModelConfig,
    pub(crate) cache: CacheConfig,
    pub(crate) scheduler: SchedulerConfig,
    pub(crate) server: ServerConfig,
    pub(crate) chat: ChatConfig,
    pub(crate) access: AccessConfig,
    pub(crate) limits: LimitsConfig,
    pub(crate) guide: GuideConfig,
    pub(crate) log: LogConfig,
}

/// Which model, and with how many threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelConfig {
    pub(crate) name: String,
    pub(crate) revision: String,
    pub(crate) load_format: LoadFormat,
    pub(crate) device: String,
    pub(crate) threads: usize,
    pub(crate) pin_threads: bool,
    pub(crate) replay: bool,
    pub(crate) run_ahead: bool,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LoadFormat {
    /// From the model's files.
    Auto,
    /// Seeded random numbers in the shapes of a config.json.
    Dummy,
}

/// Memory of keys and values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CacheConfig {
    pub(crate) preset: String,
    pub(crate) key_bits: usize,
    pub(crate) value_bits: usize,
    pub(crate) bits: String,
    pub(crate) layers: String,
    pub(crate) protect: bool,
    pub(crate) scale_rule: String,
    pub(crate) seed: u64,
    pub(crate) tokens: usize,
    pub(crate) memory_fraction: f64,
    pub(crate) attention: AttentionConfig,
}

/// How decoded tokens attend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AttentionConfig {
    /// Kernels that read pages in place.
    Fused,
    /// Gathered, decoded, masked, in f64.
    Reference,
}

/// Limits of the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SchedulerConfig {
    pub(crate) context_tokens: usize,
    pub(crate) sequences: usize,
    /// As it was asked for; `step_tokens_on` chooses.
    pub(crate) step_tokens: usize,
    pub(crate) waiting_requests: usize,
    pub(crate) waiting_tokens: usize,
    pub(crate) staging_tokens: usize,
    pub(crate) unread_tokens: usize,
    pub(crate) stall_seconds: u64,
}

/// HTTP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServerConfig {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) uds: String,
    pub(crate) owned_by: String,
    pub(crate) queue_seconds: u64,
    pub(crate) request_seconds: u64,
    pub(crate) drain_seconds: u64,
    pub(crate) watchdog_seconds: u64,
    pub(crate) watchdog_exit_code: u8,
    pub(crate) strict: bool,
}

/// Who may ask, and how often.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessConfig {
    pub(crate) keys_file: String,
    pub(crate) requests_per_minute: u32,
    pub(crate) concurrent_requests: u32,
    pub(crate) cors_origins: String,
    pub(crate) tls_certificate: String,
    pub(crate) tls_key: String,
}

/// What one request and one connection may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LimitsConfig {
    pub(crate) connections: usize,
    pub(crate) head_bytes: usize,
    pub(crate) head_lines: usize,
    pub(crate) body_bytes: usize,
    pub(crate) choices: usize,
    pub(crate) prompts: usize,
    pub(crate) messages: usize,
    pub(crate) stops: usize,
    pub(crate) biases: usize,
    pub(crate) read_seconds: u64,
    pub(crate) write_seconds: u64,
}

/// Tools and thoughts in chat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatConfig {
    pub(crate) tool_parser: String,
    pub(crate) reasoning_parser: String,
    pub(crate) tools: usize,
    pub(crate) tool_bytes: usize,
}

/// Bounds of what an answer can be made to be like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GuideConfig {
    pub(crate) bytes: usize,
    pub(crate) nesting: usize,
    pub(crate) states: usize,
    pub(crate) compile_seconds: f64,
}

/// The log on stderr.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogConfig {
    pub(crate) level: String,
    pub(crate) format: LogFormat,
    pub(crate) otlp_endpoint: String,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            name: crate::fetch::DEFAULT_MODEL.to_owned(),
            revision: "main".to_owned(),
            load_format: LoadFormat::Auto,
            device: "auto".to_owned(),
            threads: 0,
            pin_threads: false,
            replay: true,
            run_ahead: true,
        }
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            preset: "auto".to_owned(),
            key_bits: 0,
            value_bits: 0,
            bits: String::new(),
            layers: String::new(),
            protect: true,
            scale_rule: "default".to_owned(),
            seed: 0,
            tokens: 0,
            memory_fraction: 0.8,
            attention: AttentionConfig::Fused,
        }
    }
}

impl SchedulerConfig {
    /// Tokens of a step at most. Products with fewer rows leave an NVIDIA GPU's tensor cores idle;
    /// other machines have no use for more, only memory that it takes.
    pub(crate) fn step_tokens_on(&self, device: DeviceName) -> usize {
        match (self.step_tokens, device) {
            (0, DeviceName::Cuda(_)) => 2048,
            (0, _) => 512,
            (tokens, _) => tokens,
        }
    }
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            context_tokens: 0,
            sequences: 32,
            step_tokens: 0,
            waiting_requests: 256,
            waiting_tokens: 1 << 20,
            staging_tokens: 0,
            unread_tokens: 16384,
            stall_seconds: 10,
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8000,
            uds: String::new(),
            owned_by: "kvant".to_owned(),
            queue_seconds: 300,
            request_seconds: 3600,
            drain_seconds: 30,
            watchdog_seconds: 60,
            watchdog_exit_code: 70,
            strict: false,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections: 4096,
            head_bytes: 64 << 10,
            head_lines: 100,
            body_bytes: 4 << 20,
            choices: 128,
            prompts: 1024,
            messages: 4096,
            stops: 16,
            biases: 1024,
            read_seconds: 30,
            write_seconds: 30,
        }
    }
}

impl Default for ChatConfig {
    fn default() -> Self {
        let auto = || "auto".to_owned();
        let (tools, tool_bytes) = (128, 256 << 10);
        Self { tool_parser: auto(), reasoning_parser: auto(), tools, tool_bytes }
    }
}

impl Default for GuideConfig {
    fn default() -> Self {
        Self { bytes: 512 << 10, nesting: 64, states: 20_000, compile_seconds: 5.0 }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text, otlp_endpoint: String::new() }
    }
}

/// Where the values beside the defaults come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    /// Name of a built-in profile.
    pub(crate) profile: Option<String>,
    /// A file of the user.
    pub(crate) file: Option<PathBuf>,
    /// Variables of the environment, `KVANT_…` and others.
    pub(crate) environment: Vec<(String, String)>,
    /// Name of the flag, `section.key`, value.
    pub(crate) flags: Vec<(String, String, String)>,
}

impl Config {
    /// Merges all sources, later ones over earlier ones. The first wrong key or value is the error.
    pub(crate) fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut layers = Layers::new(&Self::default());
        if let Some(name) = &sources.profile {
            let found = PROFILES.iter().find(|(known, _)| known == name);
            let Some((_, text)) = found else {
                let known: Vec<&str> = PROFILES.iter().map(|(known, _)| *known).collect();
                let what = format!("no profile {name:?}; there are: {}", known.join(", "));
                return Err(ConfigError::new("--profile", what).of_flag());
            };
            layers.merge_text(&format!("profile {name}"), text)?;
        }
        if let Some(path) = &sources.file {
            let source = path.display().to_string();
            let text = std::fs::read_to_string(path)
                .map_err(|error| ConfigError::new(&source, format!("cannot be read: {error}")))?;
            layers.merge_text(&source, &text)?;
        }
        layers.merge_environment(&sources.environment)?;
        for (flag, key, value) in &sources.flags {
            layers.set(flag, key, value).map_err(ConfigError::of_flag)?;
        }
        layers.finish()
    }
}

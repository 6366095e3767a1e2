//! `KEYS`: every configuration key with the values that it may have.

use toml::Value;

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    pub(super) bound: Bound,
}

/// Values that a key may have.
#[derive(Debug)]
pub(super) enum Bound {
    /// Any text but an empty one.
    Text,
    /// Any text; what it means is checked where it is used.
    Any,
    /// true or false.
    Flag,
    /// One of some words.
    OneOf(&'static [&'static str]),
    /// A whole number, both ends included.
    Integer(i64, i64),
    /// The same, or 0, which leaves the choice to the server.
    Choice(i64, i64),
    /// A number, both ends included.
    Number(f64, f64),
}

const MANY: i64 = 1_000_000_000;

const PRESETS: [&str; 8] = ["auto", "f16", "tq8", "k8v4", "tq4", "k4v3", "tq3", "tq2"];

const SCALE_RULES: [&str; 5] = ["default", "plain", "matched", "least_squares", "unbiased"];

const TOOL_PARSERS: [&str; 8] =
    ["auto", "none", "hermes", "llama3_json", "mistral", "phi4_mini_json", "gemma", "json"];

const REASONING_PARSERS: [&str; 6] = ["auto", "none", "think", "qwen3", "deepseek_r1", "mistral"];

const fn key(section: &'static str, name: &'static str, bound: Bound) -> Key {
    Key { section, name, bound }
}

/// In the order of `config/default.toml`.
pub(super) const KEYS: [Key; 65] = [
    key("model", "name", Bound::Text),
    key("model", "revision", Bound::Text),
    key("model", "load_format", Bound::OneOf(&["auto", "dummy"])),
    key("model", "device", Bound::Text),
    key("model", "threads", Bound::Integer(0, 1024)),
    key("model", "pin_threads", Bound::Flag),
    key("model", "replay", Bound::Flag),
    key("model", "run_ahead", Bound::Flag),
    key("cache", "preset", Bound::OneOf(&PRESETS)),
    key("cache", "key_bits", Bound::Integer(0, 8)),
    key("cache", "value_bits", Bound::Integer(0, 8)),
    key("cache", "bits", Bound::Any),
    key("cache", "layers", Bound::Any),
    key("cache", "protect", Bound::Flag),
    key("cache", "scale_rule", Bound::OneOf(&SCALE_RULES)),
    key("cache", "seed", Bound::Integer(0, MANY)),
    key("cache", "tokens", Bound::Integer(0, MANY)),
    key("cache", "memory_fraction", Bound::Number(0.05, 1.0)),
    key("cache", "attention", Bound::OneOf(&["fused", "reference"])),
    key("scheduler", "context_tokens", Bound::Integer(0, MANY)),
    key("scheduler", "sequences", Bound::Integer(1, 4096)),
    key("scheduler", "step_tokens", Bound::Choice(16, 65536)),
    key("scheduler", "waiting_requests", Bound::Integer(1, 1_000_000)),
    key("scheduler", "waiting_tokens", Bound::Integer(1, MANY)),
    key("scheduler", "staging_tokens", Bound::Integer(0, MANY)),
    key("scheduler", "unread_tokens", Bound::Integer(64, MANY)),
    key("scheduler", "stall_seconds", Bound::Integer(1, 86400)),
    key("server", "host", Bound::Text),
    key("server", "port", Bound::Integer(0, 65535)),
    key("server", "uds", Bound::Any),
    key("server", "owned_by", Bound::Text),
    key("server", "queue_seconds", Bound::Integer(0, 86400)),
    key("server", "request_seconds", Bound::Integer(0, 86400)),
    key("server", "drain_seconds", Bound::Integer(0, 86400)),
    key("server", "watchdog_seconds", Bound::Integer(0, 86400)),
    key("server", "watchdog_exit_code", Bound::Integer(1, 255)),
    key("server", "strict", Bound::Flag),
    key("access", "keys_file", Bound::Any),
    key("access", "requests_per_minute", Bound::Integer(0, 1_000_000)),
    key("access", "concurrent_requests", Bound::Integer(0, 1_000_000)),
    key("access", "cors_origins", Bound::Any),
    key("access", "tls_certificate", Bound::Any),
    key("access", "tls_key", Bound::Any),
    key("limits", "connections", Bound::Integer(1, 1_000_000)),
    key("limits", "head_bytes", Bound::Integer(1024, 1 << 18)),
    key("limits", "head_lines", Bound::Integer(10, 1000)),
    key("limits", "body_bytes", Bound::Integer(1024, 1 << 30)),
    key("limits", "choices", Bound::Integer(1, 128)),
    key("limits", "prompts", Bound::Integer(1, 1024)),
    key("limits", "messages", Bound::Integer(1, 1_000_000)),
    key("limits", "stops", Bound::Integer(0, 16)),
    key("limits", "biases", Bound::Integer(0, 1024)),
    key("limits", "read_seconds", Bound::Integer(1, 86400)),
    key("limits", "write_seconds", Bound::Integer(1, 86400)),
    key("chat", "tool_parser", Bound::OneOf(&TOOL_PARSERS)),
    key("chat", "reasoning_parser", Bound::OneOf(&REASONING_PARSERS)),
    key("chat", "tools", Bound::Integer(0, 4096)),
    key("chat", "tool_bytes", Bound::Integer(1024, 1 << 30)),
    key("guide", "bytes", Bound::Integer(64, 16 << 20)),
    key("guide", "nesting", Bound::Integer(1, 100)),
    key("guide", "states", Bound::Integer(100, 1_000_000)),
    key("guide", "compile_seconds", Bound::Number(0.01, 600.0)),
    key("log", "level", Bound::OneOf(&["off", "error", "warn", "info", "debug", "trace"])),
    key("log", "format", Bound::OneOf(&["text", "json"])),
    key("log", "otlp_endpoint", Bound::Any),
];

impl Key {
    /// `section.name`.
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// Variable of the environment that sets it.
    pub(super) fn variable(&self) -> String {
        format!("KVANT_{}_{}", self.section, self.name).to_uppercase()
    }
}

impl Bound {
    /// The value, its type mended where nothing is lost (1 for 1.0), if it is within the bound.
    pub(super) fn accept(&self, value: Value) -> Option<Value> {
        match (self, value) {
            (Self::Text, Value::String(text)) if !text.trim().is_empty() => {
                Some(Value::String(text))
            }
            (Self::Any, Value::String(text)) => Some(Value::String(text)),
            (Self::Flag, Value::Boolean(flag)) => Some(Value::Boolean(flag)),
            (Self::OneOf(words), Value::String(text)) if words.contains(&text.as_str()) => {
                Some(Value::String(text))
            }
            (Self::Integer(least, most), Value::Integer(n)) if (*least..=*most).contains(&n) => {
                Some(Value::Integer(n))
            }
            (Self::Number(least, most), Value::Float(n)) if (*least..=*most).contains(&n) => {
                Some(Value::Float(n))
            }
            (Self::Choice(least, most), Value::Integer(n))
                if n == 0 || (*least..=*most).contains(&n) =>
            {
                Some(Value::Integer(n))
            }
            (Self::Number(..), Value::Integer(n)) => self.accept(Value::Float(n as f64)),
            _ => None,
        }
    }

    /// Reads the text of a flag or variable; text that is no number stays text, for `accept` to
    /// refuse.
    pub(super) fn read(&self, text: &str) -> Value {
        let number = match self {
            Self::Integer(..) | Self::Choice(..) => text.parse().ok().map(Value::Integer),
            Self::Number(..) => text.parse().ok().map(Value::Float),
            Self::Flag => text.parse().ok().map(Value::Boolean),
            Self::Text | Self::Any | Self::OneOf(_) => None,
        };
        number.unwrap_or_else(|| Value::String(text.to_owned()))
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text => write!(f, "a text that is not empty"),
            Self::Any => write!(f, "a text"),
            Self::Flag => write!(f, "true or false"),
            Self::OneOf(words) => write!(f, "one of: {}", words.join(", ")),
            Self::Integer(least, most) => write!(f, "a whole number within {least}..={most}"),
            Self::Choice(least, most) => {
                write!(f, "0 or a whole number within {least}..={most}")
            }
            Self::Number(least, most) => write!(f, "a number within {least}..={most}"),
        }
    }
}

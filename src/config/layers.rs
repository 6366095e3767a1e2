//! `Layers`: one source of configuration over the other, every key checked where it is written.

use toml::{Table, Value};

use super::Config;
use super::keys::{KEYS, Key};
use super::nearest::nearest;

/// Variables that begin with KVANT_ but set no key.
const OTHER_VARIABLES: [&str; 1] = [crate::fetch::CACHE_VARIABLE];

/// What is wrong, and in which file, variable or flag.
#[derive(Debug)]
pub(crate) struct ConfigError {
    source: String,
    what: String,
    flag: bool,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.source, self.what)
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    pub(super) fn new(source: &str, what: impl Into<String>) -> Self {
        Self { source: source.to_owned(), what: what.into(), flag: false }
    }

    /// Marks the error as one of the command line.
    pub(super) fn of_flag(mut self) -> Self {
        self.flag = true;
        self
    }

    /// Whether the command line is wrong, and not a file or the environment.
    pub(crate) fn is_usage(&self) -> bool {
        self.flag
    }
}

/// The configuration as a table, complete from the start.
pub(super) struct Layers {
    table: Table,
}

impl Layers {
    /// Begins with the defaults.
    pub(super) fn new(defaults: &Config) -> Self {
        let table = Table::try_from(defaults).expect("the configuration is plain values by name");
        Self { table }
    }

    /// Takes over every key of a TOML text.
    pub(super) fn merge_text(&mut self, source: &str, text: &str) -> Result<(), ConfigError> {
        let table: Table = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
            let what = error.message().lines().collect::<Vec<_>>().join(", ");
            ConfigError::new(source, format!("line {line}: {what}"))
        })?;
        for (section, keys) in table {
            let Value::Table(keys) = keys else {
                return Err(unknown(source, &section));
            };
            if keys.is_empty() && !KEYS.iter().any(|key| key.section == section) {
                return Err(unknown(source, &section));
            }
            for (name, value) in keys {
                self.put(source, find(source, &format!("{section}.{name}"))?, value)?;
            }
        }
        Ok(())
    }

    /// Takes over every `KVANT_SECTION_KEY`.
    pub(super) fn merge_environment(
        &mut self,
        variables: &[(String, String)],
    ) -> Result<(), ConfigError> {
        for (name, text) in variables.iter().filter(|(name, _)| name.starts_with("KVANT_")) {
            if OTHER_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let Some(key) = KEYS.iter().find(|key| key.variable() == *name) else {
                let known: Vec<String> = KEYS.iter().map(Key::variable).collect();
                let near = nearest(name, known.iter().map(String::as_str));
                return Err(ConfigError::new("environment", unknown_key(name, near)));
            };
            self.put(&format!("environment {name}"), key, key.bound.read(text))?;
        }
        Ok(())
    }

    /// Sets one key, `section.name`, from the text of a flag.
    pub(super) fn set(&mut self, flag: &str, path: &str, text: &str) -> Result<(), ConfigError> {
        let key = find(flag, path)?;
        self.put(flag, key, key.bound.read(text))
    }

    /// The configuration.
    pub(super) fn finish(self) -> Result<Config, ConfigError> {
        self.table.try_into().map_err(|error: toml::de::Error| {
            ConfigError::new("configuration", error.message().to_owned())
        })
    }

    fn put(&mut self, source: &str, key: &Key, value: Value) -> Result<(), ConfigError> {
        let shown = show(&value);
        let Some(value) = key.bound.accept(value) else {
            let what = format!("{} is {shown}, it must be {}", key.path(), key.bound);
            return Err(ConfigError::new(source, what));
        };
        let section = self.table.get_mut(key.section).and_then(Value::as_table_mut);
        section.expect("the defaults have every section").insert(key.name.to_owned(), value);
        Ok(())
    }
}

/// A value as a person would write it, in one line.
fn show(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(flag) => flag.to_string(),
        Value::Datetime(time) => time.to_string(),
        Value::Array(_) => "an array".to_owned(),
        Value::Table(_) => "a table".to_owned(),
    }
}

fn find(source: &str, path: &str) -> Result<&'static Key, ConfigError> {
    KEYS.iter().find(|key| key.path() == path).ok_or_else(|| unknown(source, path))
}

fn unknown(source: &str, path: &str) -> ConfigError {
    let known: Vec<String> = KEYS.iter().map(Key::path).collect();
    let whole = nearest(path, known.iter().map(String::as_str));
    // A key without its section, or a mistyped section.
    let name =
        || known.iter().map(String::as_str).find(|known| known.ends_with(&format!(".{path}")));
    let section = || nearest(path, KEYS.iter().map(|key| key.section));
    ConfigError::new(source, unknown_key(path, name().or(whole).or_else(section)))
}

fn unknown_key(name: &str, near: Option<&str>) -> String {
    match near {
        Some(near) => format!("unknown key {name}; did you mean {near}?"),
        None => format!("unknown key {name}; config/default.toml lists every key"),
    }
}

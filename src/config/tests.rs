//! Tests of the configuration: the documented defaults, the order of sources, and every kind of
//! wrong input.

use super::keys::{Bound, KEYS};
use super::*;

const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

fn flags(list: &[(&str, &str)]) -> Vec<(String, String, String)> {
    list.iter()
        .map(|(key, value)| (format!("--set {key}"), (*key).into(), (*value).into()))
        .collect()
}

fn variables(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn merged(text: &str) -> Result<Config, ConfigError> {
    let mut layers = Layers::new(&Config::default());
    layers.merge_text("my.toml", text)?;
    layers.finish()
}

#[test]
fn default_toml_equals_the_code_and_has_every_key() {
    let written: Config = toml::from_str(DEFAULT_TOML).unwrap();
    assert_eq!(written, Config::default());
    let table: toml::Table = toml::from_str(DEFAULT_TOML).unwrap();
    let mut paths = Vec::new();
    for (section, keys) in &table {
        paths.extend(keys.as_table().unwrap().keys().map(|name| format!("{section}.{name}")));
    }
    let mut known: Vec<String> = KEYS.iter().map(keys::Key::path).collect();
    known.sort();
    paths.sort();
    assert_eq!(paths, known);
}

#[test]
fn default_toml_states_every_bound_above_its_key() {
    let lines: Vec<&str> = DEFAULT_TOML.lines().collect();
    let mut section = "";
    for (index, line) in lines.iter().enumerate() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
        }
        let Some((name, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let key = KEYS.iter().find(|key| key.section == section && key.name == name).unwrap();
        let comment = lines[index - 1];
        assert!(comment.starts_with("# "), "{line}");
        let bound = match &key.bound {
            Bound::Text | Bound::Any | Bound::Flag => continue,
            Bound::OneOf(words) => words.join(", "),
            Bound::Integer(least, most) => format!("{least}..={most}"),
            Bound::Choice(least, most) => format!("0 or {least}..={most}"),
            Bound::Number(least, most) => format!("{least}..={most}"),
        };
        assert!(comment.contains(&bound), "{comment} lacks {bound}");
    }
}

#[test]
fn later_sources_win() {
    let folder = std::env::temp_dir().join(format!("kvant-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("my.toml");
    let text = "[scheduler]\nsequences = 5\nstep_tokens = 300\nwaiting_requests = 7\n";
    std::fs::write(&file, text).unwrap();
    let sources = Sources {
        profile: Some("low-memory".into()),
        file: Some(file),
        environment: variables(&[
            ("KVANT_SCHEDULER_STEP_TOKENS", "301"),
            ("KVANT_SCHEDULER_WAITING_REQUESTS", "8"),
            ("KVANT_CACHE", "/nowhere"),
            ("PATH", "/bin"),
        ]),
        flags: flags(&[("scheduler.waiting_requests", "9")]),
    };
    let config = Config::load(&sources).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let scheduler = config.scheduler;
    assert_eq!(scheduler.waiting_tokens, 32768, "profile over defaults");
    assert_eq!(scheduler.sequences, 5, "file over profile");
    assert_eq!(scheduler.step_tokens, 301, "environment over file");
    assert_eq!(scheduler.waiting_requests, 9, "flag over environment");
    assert_eq!(config.server, ServerConfig::default());
}

#[test]
fn wrong_files_are_one_line_with_key_and_bound() {
    let cases = [
        ("[server]\nprot = 1\n", "my.toml: unknown key server.prot; did you mean server.port?"),
        ("[sever]\nport = 1\n", "my.toml: unknown key sever.port; did you mean server.port?"),
        ("port = 1\n", "my.toml: unknown key port; did you mean server.port?"),
        ("[shceduler]\n", "my.toml: unknown key shceduler; did you mean scheduler?"),
        (
            "[server]\nzzzzzzzzzz = 1\n",
            "my.toml: unknown key server.zzzzzzzzzz; config/default.toml lists every key",
        ),
        (
            "[server]\nport = 65536\n",
            "my.toml: server.port is 65536, it must be a whole number within 0..=65535",
        ),
        (
            "[server]\nport = \"80\"\n",
            "my.toml: server.port is \"80\", it must be a whole number within 0..=65535",
        ),
        (
            "[cache]\nmemory_fraction = nan\n",
            "my.toml: cache.memory_fraction is NaN, it must be a number within 0.05..=1",
        ),
        (
            "[log]\nlevel = \"loud\"\n",
            "my.toml: log.level is \"loud\", \
             it must be one of: off, error, warn, info, debug, trace",
        ),
        (
            "[model]\nname = \"\"\n",
            "my.toml: model.name is \"\", it must be a text that is not empty",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(merged(text).unwrap_err().to_string(), expected);
    }
    let broken = merged("[server]\nport = = 1\n").unwrap_err().to_string();
    assert!(broken.starts_with("my.toml: line 2: "), "{broken}");
    assert!(!broken.contains('\n'), "{broken}");
}

#[test]
fn bounds_hold_at_the_limit_and_one_past() {
    for key in &KEYS {
        let (Bound::Integer(least, most) | Bound::Choice(least, most)) = key.bound else {
            continue;
        };
        if let Bound::Choice(..) = key.bound {
            let flags = flags(&[(&key.path(), "0")]);
            assert!(Config::load(&Sources { flags, ..Sources::default() }).is_ok());
        }
        for (number, good) in
            [(least, true), (most, true), (least - 1, false), (most.saturating_add(1), false)]
        {
            let sources = Sources {
                flags: flags(&[(&key.path(), &number.to_string())]),
                ..Sources::default()
            };
            assert_eq!(Config::load(&sources).is_ok(), good, "{} = {number}", key.path());
        }
    }
    for (text, good) in [("0.05", true), ("1", true), ("0.049", false), ("1.001", false)] {
        let flags = flags(&[("cache.memory_fraction", text)]);
        let sources = Sources { flags, ..Sources::default() };
        assert_eq!(Config::load(&sources).is_ok(), good, "{text}");
    }
}

#[test]
fn a_step_is_as_long_as_a_device_can_use_unless_said() {
    let devices = [DeviceName::Cpu, DeviceName::Metal, DeviceName::Cuda(1)];
    for (asked, chosen) in [(0, [512, 512, 2048]), (16, [16; 3]), (65536, [65536; 3])] {
        let scheduler = SchedulerConfig { step_tokens: asked, ..SchedulerConfig::default() };
        assert_eq!(devices.map(|device| scheduler.step_tokens_on(device)), chosen);
    }
}

#[test]
fn wrong_flags_variables_and_profiles_say_which() {
    let flag = Sources { flags: flags(&[("server.port", "x")]), ..Sources::default() };
    let error = Config::load(&flag).unwrap_err();
    assert!(error.is_usage());
    let expected = "--set server.port: server.port is \"x\", \
                    it must be a whole number within 0..=65535";
    assert_eq!(error.to_string(), expected);

    let environment = variables(&[("KVANT_SERVER_PROT", "1")]);
    let error = Config::load(&Sources { environment, ..Sources::default() }).unwrap_err();
    assert!(!error.is_usage());
    let expected = "environment: unknown key KVANT_SERVER_PROT; did you mean KVANT_SERVER_PORT?";
    assert_eq!(error.to_string(), expected);

    let error = Config::load(&Sources { profile: Some("fast".into()), ..Sources::default() });
    assert_eq!(
        error.unwrap_err().to_string(),
        "--profile: no profile \"fast\"; there are: low-memory"
    );

    let file = Some(PathBuf::from("no-such.toml"));
    let error = Config::load(&Sources { file, ..Sources::default() }).unwrap_err().to_string();
    assert!(error.starts_with("no-such.toml: cannot be read: "), "{error}");
}

//! `kvant eval` from outside: a whole report of the built-in model, and every wrong list refused in
//! one line.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::cli::{refused, succeeded, written};
use crate::server::kvant;

/// English enough for the built-in model, some thousand tokens.
fn text(name: &str) -> String {
    let line = |at: usize| format!("On day {at} the captain saw {} whales and was glad.\n", at % 7);
    written(name, (0..200).map(line).collect::<String>().as_bytes())
}

#[test]
fn the_report_has_all_parts_and_16_bits_lose_nothing() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("eval-report");
    let _ = fs::remove_dir_all(&folder);
    let text = text("eval.txt");
    let args = ["eval", "tiny", "--text", &text, "--context", "96,200", "--windows", "3"];
    let lists = ["--batch", "1,3", "--presets", "f16,tq4,tq2", "--scale-rule", "default,plain"];
    let rest = ["--needles", "2", "--depths", "0,0.5", "--report", folder.to_str().unwrap()];
    let args = [&args[..], &lists, &rest, &["--json"]].concat();
    let printed = succeeded(kvant(&args).output().unwrap());
    let report: Value = serde_json::from_str(&printed).unwrap();
    let file = fs::read_to_string(folder.join("report.json")).unwrap();
    assert_eq!(file, printed);
    for (key, value) in [("model", "tiny"), ("text", "eval.txt")] {
        assert_eq!(report[key], value);
    }
    assert!(report["command"].as_str().unwrap().starts_with("kvant eval tiny --text "));

    let names = ["f16", "f16", "f16 plain", "tq4", "tq4 plain", "tq2", "tq2 plain"];
    let of = |rows: &Value| -> Vec<Value> {
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.iter().map(|row| &row["name"]).collect::<Vec<_>>(), names);
        rows.clone()
    };
    let tables = report["quality"].as_array().unwrap();
    let cases = tables.iter().map(|table| json!([table["context"], table["batch"]]));
    assert_eq!(cases.collect::<Vec<_>>(), [[96, 1], [96, 3], [200, 1], [200, 3]].map(|c| json!(c)));
    for table in tables {
        let rows = of(&table["rows"]);
        for row in &rows[..3] {
            assert_eq!((&row["kl_max"], &row["top1_percent"]), (&json!(0.0), &json!(100.0)));
            assert_eq!(row["perplexity"], rows[0]["perplexity"]);
        }
        assert!(rows[5]["kl_mean"].as_f64().unwrap() > rows[3]["kl_mean"].as_f64().unwrap());
        assert!(rows[3]["kl_mean"].as_f64().unwrap() > 0.0);
        assert_ne!(rows[5]["kl_mean"], rows[6]["kl_mean"], "the scale rule leaves no trace");
    }
    let needles = report["needles"].as_array().unwrap();
    assert_eq!(needles.len(), 2);
    for table in needles {
        for row in of(&table["rows"]) {
            assert_eq!(row["asked"], 4);
            assert!(row["log_prob"].as_f64().unwrap() < 0.0);
            let depths = row["depths"].as_array().unwrap();
            assert_eq!(depths.iter().map(|d| &d["depth"]).collect::<Vec<_>>(), [0.0, 0.5]);
            assert!(depths.iter().all(|depth| depth["asked"] == 2));
        }
    }
    // 4 layers of one head of 64; the first and the last have 8 bits.
    let occupancy = of(&report["occupancy"]);
    assert_eq!(occupancy[0]["allocated_bytes_per_token"], 1024.0);
    assert_eq!(occupancy[3]["allocated_bytes_per_token"], 2.0 * (132.0 + 68.0));
    assert_eq!(report["converting"]["prompt_tokens"], 200);
    for row in of(&report["converting"]["rows"]) {
        assert!(row["formula_bytes"].as_u64().unwrap() > 0);
        let peak = &row["peak_bytes"];
        assert!(peak.is_null() || peak.as_u64().unwrap() > 0, "{row}");
    }
    let markdown = fs::read_to_string(folder.join("report.md")).unwrap();
    for part in
        ["# tiny on eval.txt", "Context 96, batch 3", "Context 200, needles", "| tq2 plain |"]
    {
        assert!(markdown.contains(part), "{part}: {markdown}");
    }
}

#[test]
fn wrong_lists_are_refused_in_one_line() {
    let text = text("eval-refused.txt");
    for (flag, value, what) in [
        ("--context", "0", "4..=1000000"),
        ("--context", "512,x", "'x'"),
        ("--context", "3", "4..=1000000"),
        ("--context", "", "4..=1000000"),
        ("--batch", "1,0", "1..=64"),
        ("--batch", "65", "1..=64"),
        ("--windows", "0", "1..=10000"),
        ("--presets", "tq4,tq5", "no cache preset \"tq5\""),
        ("--scale-rule", "eden", "no scale rule \"eden\""),
        ("--needles", "x", "0..=1000"),
        ("--needles", "1001", "0..=1000"),
        ("--depths", "0.5,1.1", "0..=1"),
        ("--depths", "nan", "0..=1"),
    ] {
        refused(&["eval", "tiny", "--text", &text, flag, value], 2, &[flag, what]);
    }
}

#[test]
fn what_does_not_fit_is_refused_in_one_line() {
    let text = text("eval-limits.txt");
    let eval = |flags: &[&str], parts: &[&str]| {
        refused(&[&["eval", "tiny", "--text", &text], flags].concat(), 1, parts);
    };
    eval(&["--context", "64,2049"], &["--context is 2049", "made for 2048"]);
    for flags in [["--k-bits", "4"], ["--v-bits", "4"], ["--set", "cache.layers=0=f16"]] {
        eval(&flags, &["compares presets", "--presets k3v8"]);
    }
    eval(&["--windows", "2"], &["--batch is 8, but --windows is 2"]);
    eval(&["--context", "2048", "--windows", "10000"], &["eval-limits.txt: has ", "20480000"]);
    eval(&["--context", "16"], &["does not fit into a context of 16", "--needles 0"]);
    eval(&["--report", &text], &["--report ", "eval-limits.txt: "]);
    refused(&["eval", "tiny", "--text", "no-such.txt"], 1, &["no-such.txt"]);
    let bytes = written("eval-bytes.txt", &[0xFF, 0xFE, 0x41]);
    refused(&["eval", "tiny", "--text", &bytes], 1, &["eval-bytes.txt: cannot be read as UTF-8"]);
    let short = written("eval-short.txt", b"Call me Ishmael.");
    refused(&["eval", "tiny", "--text", &short], 1, &["eval-short.txt: has ", "need 4096"]);
}

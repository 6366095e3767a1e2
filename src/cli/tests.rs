//! Flags reach their keys, and wrong ones are refused.

use super::*;

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn flags_reach_their_keys() {
    let args = "kvant serve tiny --port 0 --host ::1 --threads 3 --cache-tokens 640 \
                --memory-fraction 0.5 --sequences 2 --step-tokens 64 --context-tokens 128 \
                --log-level warn --set limits.body_bytes=2048";
    let Command::Serve(serve) = Cli::parse_from(args.split_whitespace()).command else {
        panic!("serve was asked for");
    };
    let more = [("--port", "server.port", &serve.port), ("--host", "server.host", &serve.host)];
    let config = serve.settings.config_with(&more).unwrap();
    assert_eq!(config.model.name, "tiny");
    assert_eq!(config.model.threads, 3);
    assert_eq!((config.server.port, config.server.host.as_str()), (0, "::1"));
    assert_eq!(config.limits.body_bytes, 2048);
    assert_eq!((config.cache.tokens, config.cache.memory_fraction), (640, 0.5));
    let scheduler = &config.scheduler;
    assert_eq!((scheduler.sequences, scheduler.step_tokens), (2, 64));
    assert_eq!((scheduler.context_tokens, config.log.level.as_str()), (128, "warn"));
}

#[test]
fn bench_takes_a_model_or_a_part() {
    let bench = |args: &str| match Cli::try_parse_from(args.split_whitespace()) {
        Ok(Cli { command: Command::Bench(args) }) => Ok(args),
        Ok(_) => panic!("bench was asked for"),
        Err(error) => Err(error.to_string()),
    };
    let model = bench("kvant bench tiny --concurrency 2").unwrap();
    assert_eq!(model.settings.positional.as_deref(), Some("tiny"));
    assert!(model.part.is_none());
    assert!(bench("kvant bench --json").unwrap().part.is_none());
    let kernels = bench("kvant bench kernels --context 128,256 --widths tq4,k8v4 --threads 1");
    let Some(BenchPart::Kernels(args)) = kernels.unwrap().part else {
        panic!("kernels were asked for");
    };
    let widths: Vec<_> = args.widths.iter().map(ToString::to_string).collect();
    assert_eq!((args.context, widths), (vec![128, 256], vec!["tq4".into(), "k8v4".to_owned()]));
    assert_eq!((args.threads, args.dim, args.batch), (Some(1), 128, vec![1, 8]));
    for wrong in ["tiny kernels", "kernels --widths tq5", "kernels --dim 0"] {
        assert!(bench(&format!("kvant bench {wrong}")).is_err(), "{wrong}");
    }
}

#[test]
fn numbers_are_bounded() {
    for (text, good) in [("0", true), ("2", true), ("2.01", false), ("-0.1", false), ("NaN", false)]
    {
        assert_eq!(number::<0, 2>(text).is_ok(), good, "{text}");
    }
}

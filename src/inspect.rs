//! `kvant inspect`: what would be loaded, the memory plan, and the context that fits. Reads headers
//! only.

use std::io::Write;

use anyhow::Result;
use serde_json::json;

use crate::cli::InspectArgs;
use crate::{load, plan};

pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let config = args.settings.config()?;
    let opened = load::open(&config)?;
    let (facts, plan) = (&opened.facts, &opened.plan);
    let mut out = std::io::stdout();
    if args.json {
        let mut value = serde_json::to_value(facts)?;
        value["context_tokens"] = json!(plan.context_tokens);
        value["memory_plan"] = plan::json(plan);
        writeln!(out, "{value:#}")?;
    } else {
        writeln!(out, "{facts}\n\n{plan}")?;
        writeln!(out, "{} tokens would fit", plan::fit_tokens(plan))?;
    }
    Ok(())
}

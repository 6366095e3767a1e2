//! `kvant inspect`: what would be loaded, the memory plan, and the context that fits. Reads headers
//! only.

use std::io::Write;

use anyhow::Result;
use serde_json::json;

use crate::cli::InspectArgs;
use crate::load;

pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let config = args.settings.config()?;
    let opened = load::open(&config)?;
    let (facts, plan) = (&opened.facts, &opened.plan);
    let mut out = std::io::stdout();
    if args.json {
        let mut value = serde_json::to_value(facts)?;
        value["context_tokens"] = json!(plan.context_tokens);
        value["memory_plan"] = json!({
            "available_bytes": plan.available_bytes,
            "weight_bytes": plan.weight_bytes,
            "tail_bytes": plan.tail_bytes,
            "staging_bytes": plan.staging_bytes,
            "staging_tokens": plan.staging_tokens,
            "page_bytes": plan.page_bytes,
            "cache_pages": plan.cache_pages,
            "workspace_bytes": plan.workspace_bytes,
            "recording_bytes": plan.recording_bytes,
        });
        writeln!(out, "{value:#}")?;
    } else {
        writeln!(out, "{facts}\n\n{plan}")?;
    }
    Ok(())
}

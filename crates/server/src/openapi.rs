//! /openapi.json: the description of every route.

use std::sync::LazyLock;

use axum::Json;
use serde_json::Value;

/// The description as it is kept, without the version.
const TEXT: &str = include_str!("openapi.json");

static DESCRIPTION: LazyLock<Value> = LazyLock::new(|| {
    let mut description: Value = serde_json::from_str(TEXT).expect("a test reads it");
    description["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    description
});

/// GET /openapi.json.
pub(crate) async fn description() -> Json<Value> {
    Json(DESCRIPTION.clone())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// `method path` of every route, from the router's text.
    fn routes() -> BTreeSet<String> {
        let routes = include_str!("routes.rs").split(".route(\"").skip(1);
        let route = |text: &str| {
            let (path, rest) = text.split_once('"').unwrap();
            let method = rest.trim_start_matches([',', ' ', '\n']);
            let method = method.split_once('(').unwrap().0;
            // A wildcard takes slashes too; a description has no word for it.
            format!("{method} {}", path.replace("{*", "{"))
        };
        routes.map(route).collect()
    }

    #[test]
    fn every_route_is_described_and_every_description_has_a_route() {
        let described: BTreeSet<String> = DESCRIPTION["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(move |method| format!("{method} {path}"))
            })
            .collect();
        assert_eq!(described, routes());
        assert_eq!(DESCRIPTION["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let mut found = 0;
        for reference in TEXT.split("\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(DESCRIPTION.pointer(pointer).is_some(), "{pointer}");
            found += 1;
        }
        assert!(found > 20, "{found} references");
    }
}

//! Which fields ask for which constraint, and which are refused by name.

use serde_json::{Value, json};

use super::*;
use crate::json::Fields;
use crate::render::Call;

fn guide(body: &Value) -> Result<Option<Guide>, ApiError> {
    read(&mut Fields::parse(body.to_string().as_bytes()).unwrap(), None)
}

#[test]
fn every_spelling_gives_its_grammar() {
    let schema = json!({"type": "object"});
    let strict = GrammarSpec::JsonSchema { schema: schema.clone(), lenient: false };
    let lenient = GrammarSpec::JsonSchema { schema: schema.clone(), lenient: true };
    let choice = GrammarSpec::Choice(vec!["a".into(), "b".into()]);
    let regex = GrammarSpec::Regex("a+".into());
    let text = GrammarSpec::Text("start: \"a\"".into());
    let named = |more: Value| {
        let mut inner = json!({"name": "n-1_X", "schema": schema});
        inner.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"response_format": {"type": "json_schema", "json_schema": inner}})
    };
    for (body, expected) in [
        (json!({"response_format": {"type": "json_object"}}), &GrammarSpec::JsonObject),
        (named(json!({})), &lenient),
        (named(json!({"strict": null, "description": "d"})), &lenient),
        (named(json!({"strict": true})), &strict),
        (named(json!({"schema": null})), &GrammarSpec::JsonObject),
        (json!({"guided_json": schema}), &strict),
        (json!({"guided_json": schema.to_string()}), &strict),
        (json!({"guided_json_object": true}), &GrammarSpec::JsonObject),
        (json!({"guided_regex": "a+", "guided_decoding_backend": "xgrammar"}), &regex),
        (json!({"guided_choice": ["a", "b"]}), &choice),
        (json!({"guided_grammar": "start: \"a\""}), &text),
        (json!({"grammar": "start: \"a\""}), &text),
        (json!({"json_schema": schema}), &strict),
        (json!({"structured_outputs": {"json": schema}}), &strict),
        (json!({"structured_outputs": {"json": schema.to_string(), "regex": null}}), &strict),
        (json!({"structured_outputs": {"regex": "a+"}}), &regex),
        (json!({"structured_outputs": {"choice": ["a", "b"]}}), &choice),
        (json!({"structured_outputs": {"grammar": "start: \"a\""}}), &text),
        (json!({"structured_outputs": {"json_object": true}}), &GrammarSpec::JsonObject),
    ] {
        assert_eq!(
            guide(&body).unwrap().map(|guide| guide.spec).as_ref(),
            Some(expected),
            "{body}"
        );
    }
    for body in [
        json!({}),
        json!({"response_format": {"type": "text"}, "structured_outputs": {}}),
        json!({"response_format": null, "guided_json": null, "guided_decoding_backend": "auto"}),
        json!({"structured_outputs": {"json_object": false}, "grammar": "", "json_schema": {}}),
        json!({"guided_json_object": false}),
    ] {
        assert_eq!(guide(&body).unwrap(), None, "{body}");
    }
}

#[test]
fn wrong_values_are_refused_by_field() {
    let many: Vec<String> = (0..4097).map(|n| n.to_string()).collect();
    let json_schema =
        |inner: Value| json!({"response_format": {"type": "json_schema", "json_schema": inner}});
    for (body, field) in [
        (json!({"response_format": "text"}), "response_format"),
        (json!({"response_format": {}}), "response_format"),
        (json!({"response_format": {"type": 1}}), "response_format"),
        (json!({"response_format": {"type": "xml"}}), "response_format"),
        (json!({"response_format": {"type": "structural_tag"}}), "response_format"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format"),
        (json_schema(json!("x")), "response_format"),
        (json_schema(json!({"schema": {}})), "response_format"),
        (json_schema(json!({"name": "", "schema": {}})), "response_format"),
        (json_schema(json!({"name": "a b", "schema": {}})), "response_format"),
        (json_schema(json!({"name": "a".repeat(65), "schema": {}})), "response_format"),
        (json_schema(json!({"name": "a", "schema": []})), "response_format"),
        (json_schema(json!({"name": "a", "schema": {}, "strict": "yes"})), "response_format"),
        (json!({"guided_json": "{"}), "guided_json"),
        (json!({"guided_json": []}), "guided_json"),
        (json!({"guided_json_object": 1}), "guided_json_object"),
        (json!({"guided_regex": 1}), "guided_regex"),
        (json!({"guided_choice": "a"}), "guided_choice"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"guided_choice": [""]}), "guided_choice"),
        (json!({"guided_choice": many}), "guided_choice"),
        (json!({"guided_grammar": {}}), "guided_grammar"),
        (json!({"guided_decoding_backend": 1}), "guided_decoding_backend"),
        (json!({"guided_whitespace_pattern": " "}), "guided_whitespace_pattern"),
        (json!({"structured_outputs": []}), "structured_outputs"),
        (json!({"structured_outputs": {"regex": 1}}), "structured_outputs"),
        (json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}), "structured_outputs"),
        (json!({"structured_outputs": {"structural_tag": "{}"}}), "structured_outputs"),
        (
            json!({"structured_outputs": {"json": {}, "whitespace_pattern": "x"}}),
            "structured_outputs",
        ),
        (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice"),
        (json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}), "guided_regex"),
    ] {
        let error = guide(&body).unwrap_err();
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(field)), "{body}");
    }
    let call = Some(Call { grammar: GrammarSpec::Text("start: \"a\"".into()), must: true });
    let mut fields = Fields::parse(br#"{"guided_regex": "a"}"#).unwrap();
    let error = read(&mut fields, call).unwrap_err().to_string();
    assert_eq!(error, "guided_regex and tool_choice cannot both hold; send one");
}

#[test]
fn a_call_that_may_be_is_an_alternative_to_json_only() {
    let grammar = GrammarSpec::Text("start: \"<\"".into());
    let call = Call { grammar: grammar.clone(), must: false };
    let read = |body: &str| {
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        read(&mut fields, Some(call.clone())).unwrap()
    };
    assert_eq!(read("{}"), None, "nothing is asked for");
    for (body, either) in [
        (r#"{"response_format": {"type": "json_object"}}"#, true),
        (r#"{"guided_json": {"type": "array"}}"#, true),
        (r#"{"guided_regex": "<?a"}"#, false),
        (r#"{"guided_choice": ["<"]}"#, false),
        (r#"{"guided_grammar": "start: \"<\""}"#, false),
    ] {
        let guide = read(body).unwrap();
        assert_eq!(guide.call.as_ref(), either.then_some(&grammar), "{body}");
        assert_eq!(matches!(guide.whole(), GrammarSpec::Either(_)), either, "{body}");
    }
}

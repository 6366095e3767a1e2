//! Tests of chat templates: errors and limits, at the limit and past it. What they render is
//! compared with the transformers library in tests/golden.

use super::*;
use serde_json::json;

fn render(template: &str, messages: &Value) -> Result<String, Error> {
    let template = ChatTemplate::new(template, TemplateTokens::default())?;
    template.render(messages, None, RenderOptions::default())
}

fn hi() -> Value {
    json!([{"role": "user", "content": "hi"}])
}

#[test]
fn failures_say_whose_they_are() {
    for (template, messages, expected) in [
        ("{% if %}", hi(), "chat template: syntax error"),
        ("{{ f( }}", hi(), "chat template: syntax error"),
        ("{{ raise_exception('no\nway') }}", hi(), "refuses these messages: no way"),
        ("{{ raise_exception(messages[0].role ~ 1) }}", hi(), "refuses these messages: user1"),
        (
            "{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{% set x = f() %}",
            hi(),
            "refuses these messages: deep",
        ),
        ("{{ nothing() }}", hi(), "check that the messages have what"),
        ("{{ nothing.more }}", hi(), "check that the messages have what"),
        ("{{ 'a' + 1 }}", hi(), "check that the messages have what"),
        ("{{ 'a' | tojson(odd=1) }}", hi(), "check that the messages have what"),
        ("{{ nothing | tojson }}", hi(), "undefined cannot be written as JSON"),
        ("x", json!("hi"), "messages must be a list"),
        ("x", json!([]), "there are no messages"),
        ("x", json!([1]), "every message must be an object"),
    ] {
        let found = render(template, &messages).unwrap_err().to_string();
        assert!(found.contains(expected) && !found.contains('\n'), "{template}: {found:?}");
    }
}

#[test]
fn a_client_is_told_apart_from_a_template() {
    let kind = |template: &str| render(template, &hi()).unwrap_err();
    assert!(matches!(kind("{% if %}"), Error::TemplateSyntax(_)));
    assert!(matches!(kind("{{ raise_exception('x') }}"), Error::TemplateRaised(why) if why == "x"));
    assert!(matches!(kind("{{ a.b }}"), Error::TemplateFailed(_)));
}

#[test]
fn arguments_are_variables_but_not_the_requests_own() {
    let template = ChatTemplate::new(
        "{{ bos_token }}{{ eos_token }}{{ x }}{{ documents is none }}{{ tools is none }}",
        TemplateTokens { bos: Some("<s>".to_owned()), eos: None },
    )
    .unwrap();
    let with = |kwargs: Value| {
        let kwargs = kwargs.as_object().unwrap().clone();
        template.render(&hi(), None, RenderOptions { kwargs, ..RenderOptions::default() })
    };
    assert_eq!(with(json!({})).unwrap(), "<s>TrueTrue");
    assert_eq!(with(json!({"x": 1, "bos_token": "B"})).unwrap(), "B1TrueTrue");
    for name in RESERVED {
        let error = with(json!({name: 1})).unwrap_err();
        assert!(matches!(error, Error::ReservedArgument(found) if found == name));
    }
}

#[test]
fn keys_that_are_null_are_left_out_unless_the_template_needs_them() {
    let messages = json!([{"role": "user", "content": null}]);
    for (template, expected) in [
        ("{{ messages[0].content is defined }}", "False"),
        ("{{ messages[0] | tojson }}", "{\"role\": \"user\"}"),
        (
            "{% if messages[0].content is not none %}{{ 'a' + messages[0].content }}{% endif %}x",
            "x",
        ),
    ] {
        assert_eq!(render(template, &messages).unwrap(), expected, "{template}");
    }
    // What fails either way fails.
    assert!(render("{{ a.b }}", &messages).is_err());
}

#[test]
fn a_message_is_continued_where_its_content_ends() {
    let template = "{% for m in messages %}[{{ m.content }}]{% endfor %}";
    let trims = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}";
    let continued = RenderOptions { continue_final_message: true, ..RenderOptions::default() };
    for (template, content, expected) in [
        (template, json!("a"), Some("[a][a")),
        (template, json!(" a  "), Some("[a][ a  ")),
        (trims, json!(" a  "), Some("[a][a")),
        (trims, json!(""), Some("[a][")),
        ("{{ messages[0].content }}", json!("b"), None),
        (template, json!(1), None),
        (template, json!([]), None),
        (template, json!([{"type": "image"}]), None),
        ("{{ messages[1].content[0].text }}]", json!([{"text": "a"}]), Some("a")),
    ] {
        let template = ChatTemplate::new(template, TemplateTokens::default()).unwrap();
        let messages = json!([{"content": "a"}, {"content": content}]);
        let found = template.render(&messages, None, continued.clone());
        match expected {
            Some(expected) => assert_eq!(found.unwrap(), expected, "{content}"),
            None => assert!(matches!(found.unwrap_err(), Error::FinalMessage(_)), "{content}"),
        }
    }
    let both = RenderOptions { add_generation_prompt: true, ..continued };
    let template = ChatTemplate::new(template, TemplateTokens::default()).unwrap();
    assert!(matches!(template.render(&hi(), None, both), Err(Error::FinalMessage(_))));
}

#[test]
fn templates_have_a_longest_length() {
    let template = |len| ChatTemplate::new(&"x".repeat(len), TemplateTokens::default());
    assert!(template(TEMPLATE_BYTES).is_ok());
    assert!(matches!(template(TEMPLATE_BYTES + 1), Err(Error::TemplateSyntax(_))));
}

#[test]
fn output_has_a_longest_length() {
    let text = |len: usize| json!([{"content": "x".repeat(len)}]);
    let template = "{{ messages[0].content }}";
    assert_eq!(render(template, &text(OUTPUT_BYTES)).unwrap().len(), OUTPUT_BYTES);
    let error = render(template, &text(OUTPUT_BYTES + 1)).unwrap_err();
    assert!(matches!(error, Error::TemplateOutput { limit: OUTPUT_BYTES }), "{error}");
    let pieces = "{% for i in range(100000) %}{{ messages[0].content }}{% endfor %}";
    let error = render(pieces, &text(1000)).unwrap_err();
    assert!(matches!(error, Error::TemplateOutput { .. }), "{error}");
}

#[test]
fn steps_are_counted() {
    // A turn of the inner loop takes a few steps, so the last of these is just past some limit.
    let loops = |outer: usize| {
        let body = "{% for a in range(OUTER) %}{% for b in range(1000) %}{% endfor %}{% endfor %}";
        render(&body.replace("OUTER", &outer.to_string()), &hi())
    };
    assert_eq!(loops(1000).unwrap(), "");
    let error = loops(100_000).unwrap_err();
    assert!(matches!(error, Error::TemplateSteps { limit: STEPS }), "{error}");
    let hidden = "{% macro f() %}{% for a in range(100000) %}{% for b in range(100000) %}\
                  {% endfor %}{% endfor %}{% endmacro %}{{ f() }}";
    let error = render(hidden, &hi()).unwrap_err();
    assert!(matches!(error, Error::TemplateSteps { .. }), "{error}");
}

#[test]
fn thousands_of_messages_are_within_the_steps() {
    let message = json!({"role": "user", "content": "hi"});
    let messages = Value::Array(vec![message; 20_000]);
    let template = "{% for m in messages %}{% if m.role == 'user' and not m.tool_calls %}\
                    {{ '<u>' + m.content | trim + '</u>' }}{% endif %}{% endfor %}";
    assert_eq!(render(template, &messages).unwrap().len(), 20_000 * 9);
}

#[test]
fn recursion_ends() {
    let nested = |depth: usize| {
        let value = (0..depth).fold(json!(1), |value, _| json!([value]));
        let messages = json!([{"content": value}]);
        let template = "{% macro f(x) %}{% if x is iterable %}{{ f(x[0]) }}{% else %}{{ x }}\
                        {% endif %}{% endmacro %}{{ f(messages[0].content) }}";
        render(template, &messages)
    };
    // As deep as the schemas of tools are.
    assert_eq!(nested(10).unwrap(), "1");
    assert!(matches!(nested(100), Err(Error::TemplateFailed(_))));
    let endless = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(matches!(render(endless, &hi()), Err(Error::TemplateFailed(_))));
    let parens = format!("{{{{ {}1{} }}}}", "(".repeat(10_000), ")".repeat(10_000));
    assert!(matches!(render(&parens, &hi()), Err(Error::TemplateSyntax(_))));
}

#[test]
fn generation_tags_leave_nothing() {
    for (template, expected) in [
        ("a{% generation %}b{% endgeneration %}c", "abc"),
        ("a {%- generation -%} b {%- endgeneration +%} c", "ab c"),
        ("{% set generation = 1 %}{{ generation }}", "1"),
        ("{{ 'generation' }}{# {% generation %} #}", "generation"),
        ("{% raw %}{% x{% endraw %}", "{% x"),
    ] {
        assert_eq!(render(template, &hi()).unwrap(), expected, "{template}");
    }
    for template in ["{% generation %}", "{%", "{% generation"] {
        assert!(matches!(render(template, &hi()), Err(Error::TemplateSyntax(_))), "{template}");
    }
}

#[test]
fn the_date_is_today() {
    let found = render("{{ strftime_now('%Y-%m-%d') }}", &hi()).unwrap();
    assert_eq!(found, clock::strftime(clock::now(), "%F"));
}

#[test]
fn chains_are_read_to_the_limit_and_not_past_it() {
    // Four braces, a dot and a name a link, one name.
    let links = (TOKENS - 5) / 2;
    let chain = |links: usize| format!("{{{{x{}}}}}", ".y".repeat(links));
    let read = |text: &str| ChatTemplate::new(text, TemplateTokens::default()).map(|_| ());
    read(&chain(links)).unwrap();
    let refused = read(&chain(links + 1)).unwrap_err().to_string();
    assert!(refused.contains("more than 20000 words and signs"), "{refused}");
    // Each is deeper than a usual stack, and no deeper than that of the reader.
    for part in ["-", "not ", "x + ", "x and ", "x if y else "] {
        read(&format!("{{{{ {}x }}}}", part.repeat(6_000 / part.len()))).unwrap();
    }
    read(&format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(3_300))).unwrap();
    assert!(read(&"(".repeat(TOKENS + 1)).is_err());
}

#[test]
fn words_and_signs_are_counted() {
    for (text, expected) in [("", 0), ("  a_b1 c", 2), ("a.b|c", 5), ("{{ 'é  é' }}", 8)] {
        assert_eq!(tokens_of(text), expected, "{text}");
    }
}

#[test]
fn templates_say_where_they_read_tools() {
    for (text, expected) in [
        ("{% if tools %}{{ tools | tojson }}{% endif %}", ToolsIn::Variable),
        ("{% for m in messages %}{{ m['tools'] }}{% endfor %}", ToolsIn::SystemMessage),
        ("{% for m in messages %}{{ m.content }}{% endfor %} tools", ToolsIn::Nowhere),
        ("{% set tools = 1 %}{{ tools }}", ToolsIn::Nowhere),
    ] {
        let template = ChatTemplate::new(text, TemplateTokens::default()).unwrap();
        assert_eq!(template.tools_in(), expected, "{text}");
        assert_eq!(template.source(), text);
    }
    let template = ChatTemplate::new("{{ documents }}", TemplateTokens::default()).unwrap();
    assert!(template.reads("documents") && !template.reads("tools"));
}

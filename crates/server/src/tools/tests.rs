//! Tests of tools in requests: what is taken, and each wrong thing by name.

use serde_json::json;

use super::*;

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}

fn by_name(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

fn read(body: &Value) -> Result<Option<Tools>, ApiError> {
    let limits = ToolLimits { count: 3, bytes: 1000 };
    Tools::read(&mut Fields::parse(body.to_string().as_bytes()).unwrap(), &limits)
}

#[test]
fn choices_say_what_may_be_called() {
    let named = json!({"type": "function", "function": {"name": "b"}});
    for (choice, many, expected) in [
        (json!(null), json!(null), Some((Choice::Auto, true))),
        (json!("auto"), json!(false), Some((Choice::Auto, false))),
        (json!("none"), json!(true), None),
        (json!("required"), json!(true), Some((Choice::Required, true))),
        (json!("required"), json!(false), Some((Choice::Required, false))),
        (named, json!(true), Some((Choice::Named("b".to_owned()), false))),
    ] {
        let found = read(&json!({
            "tools": [tool("a"), tool("b")], "tool_choice": choice, "parallel_tool_calls": many,
        }));
        let found = found.unwrap().map(|tools| (tools.choice, tools.many));
        assert_eq!(found, expected, "{choice}");
    }
    for body in [json!({}), json!({"tools": []}), json!({"tools": null, "tool_choice": "auto"})] {
        assert!(read(&body).unwrap().is_none(), "{body}");
    }
}

#[test]
fn only_allowed_tools_are_told_of() {
    for (mode, allowed, expected) in [
        ("auto", vec!["b"], Some((Choice::Auto, vec!["b"]))),
        ("auto", vec!["c", "a", "c"], Some((Choice::Auto, vec!["a", "c"]))),
        ("required", vec!["a", "b", "c"], Some((Choice::Required, vec!["a", "b", "c"]))),
        ("auto", vec![], None),
    ] {
        let allowed: Vec<Value> = allowed.into_iter().map(by_name).collect();
        let choice = json!({"type": "allowed_tools",
            "allowed_tools": {"mode": mode, "tools": allowed}});
        let body = json!({"tools": [tool("a"), tool("b"), tool("c")], "tool_choice": choice});
        let found = read(&body).unwrap();
        assert!(found.iter().all(|tools| tools.cut && tools.many), "{body}");
        if let Some(tools) = &found {
            let grammar = tools.grammar(ToolFamily::Json, &|_| None).unwrap();
            for name in ["a", "b", "c"] {
                let inside = grammar.contains(&format!("\\\"{name}\""));
                assert_eq!(inside, tools.names().iter().any(|own| own == name), "{grammar}");
            }
        }
        let found = found.map(|tools| (tools.choice.clone(), tools.names()));
        let expected = expected
            .map(|(choice, names)| (choice, names.into_iter().map(str::to_owned).collect()));
        assert_eq!(found, expected, "{body}");
    }
    assert!(!read(&json!({"tools": [tool("a")]})).unwrap().unwrap().cut);
}

#[test]
fn each_wrong_thing_is_named() {
    let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let chosen = |choice: Value| json!({"tools": [tool("a")], "tool_choice": choice});
    let allowed = |inner: Value| chosen(json!({"type": "allowed_tools", "allowed_tools": inner}));
    let long = "a".repeat(65);
    for (body, param) in [
        (json!({"tools": "a"}), "tools"),
        (json!({"tools": [1]}), "tools[0]"),
        (json!({"tools": [{}]}), "tools[0].type"),
        (json!({"tools": [{"type": "custom", "custom": {"name": "a"}}]}), "tools[0].type"),
        (json!({"tools": [{"type": 1}]}), "tools[0].type"),
        (json!({"tools": [tool("a"), {"type": "function"}]}), "tools[1].function"),
        (function(json!("a")), "tools[0].function"),
        (function(json!({})), "tools[0].function.name"),
        (function(json!({"name": 1})), "tools[0].function.name"),
        (function(json!({"name": ""})), "tools[0].function.name"),
        (function(json!({"name": "a b"})), "tools[0].function.name"),
        (function(json!({"name": "é"})), "tools[0].function.name"),
        (function(json!({"name": long})), "tools[0].function.name"),
        (function(json!({"name": "a", "description": 1})), "tools[0].function.description"),
        (function(json!({"name": "a", "strict": 1})), "tools[0].function.strict"),
        (function(json!({"name": "a", "parameters": []})), "tools[0].function.parameters"),
        (
            function(json!({"name": "a", "parameters": {"type": "array"}})),
            "tools[0].function.parameters.type",
        ),
        (json!({"tools": [tool("a"), tool("a")]}), "tools[1].function.name"),
        (json!({"tools": [tool("a"), tool("b"), tool("c"), tool("d")]}), "tools"),
        (json!({"tools": [tool("a")], "parallel_tool_calls": 1}), "parallel_tool_calls"),
        (chosen(json!("maybe")), "tool_choice"),
        (chosen(json!(1)), "tool_choice"),
        (chosen(json!({})), "tool_choice.type"),
        (chosen(json!({"type": "custom"})), "tool_choice.type"),
        (chosen(json!({"type": "allowed_tools"})), "tool_choice.allowed_tools"),
        (
            chosen(json!({"type": "allowed_tools", "allowed_tools": []})),
            "tool_choice.allowed_tools",
        ),
        (allowed(json!({"mode": "auto"})), "tool_choice.allowed_tools.tools"),
        (allowed(json!({"mode": "auto", "tools": {}})), "tool_choice.allowed_tools.tools"),
        (allowed(json!({"mode": "required", "tools": []})), "tool_choice.allowed_tools.tools"),
        (allowed(json!({"tools": [by_name("a")]})), "tool_choice.allowed_tools.mode"),
        (
            allowed(json!({"mode": "none", "tools": [by_name("a")]})),
            "tool_choice.allowed_tools.mode",
        ),
        (allowed(json!({"mode": "auto", "tools": [1]})), "tool_choice.allowed_tools.tools[0]"),
        (
            allowed(json!({"mode": "auto", "tools": [by_name("a"), {"type": "mcp"}]})),
            "tool_choice.allowed_tools.tools[1].type",
        ),
        (
            allowed(json!({"mode": "auto", "tools": [by_name("b")]})),
            "tool_choice.allowed_tools.tools[0].function.name",
        ),
        (chosen(json!({"type": "function"})), "tool_choice.function"),
        (chosen(json!({"type": "function", "function": {}})), "tool_choice.function.name"),
        (
            chosen(json!({"type": "function", "function": {"name": "b"}})),
            "tool_choice.function.name",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
    ] {
        let error = read(&body).expect_err(param);
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{body}");
        assert!(error.to_string().contains(param), "{error}");
    }
}

#[test]
fn names_and_sizes_are_taken_up_to_their_limits() {
    assert!(read(&json!({"tools": [tool(&"a".repeat(64))]})).unwrap().is_some());
    assert!(read(&json!({"tools": [tool("a"), tool("b-_9"), tool("c")]})).unwrap().is_some());
    let described = |bytes: usize| {
        let tool = |text: &str| {
            let function = json!({"name": "a", "description": text});
            json!({"type": "function", "function": function})
        };
        let rest = bytes - tool("").to_string().len();
        json!({"tools": [tool(&"x".repeat(rest))]})
    };
    assert!(read(&described(1000)).unwrap().is_some());
    assert_eq!(read(&described(1001)).unwrap_err().param.as_deref(), Some("tools"));
}

#[test]
fn a_grammar_is_of_the_tools_that_may_be_called() {
    let named = json!({"type": "function", "function": {"name": "b"}});
    let grammar = |choice: Value| {
        let body = json!({"tools": [tool("a"), tool("b")], "tool_choice": choice});
        read(&body).unwrap().unwrap().grammar(ToolFamily::Hermes, &|_| None)
    };
    let may = grammar(json!("auto")).unwrap();
    assert!(may.contains("call_0 | call_1") && may.contains("\"lenient\":true"), "{may}");
    let one = grammar(named).unwrap();
    assert!(one.contains("\\\"b\"") && !one.contains("\\\"a\""), "{one}");
    let all = grammar(json!("required")).unwrap();
    assert!(all.contains("call_0 | call_1") && all.contains("block)*"), "{all}");
}

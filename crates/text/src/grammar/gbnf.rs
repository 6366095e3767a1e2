//! GBNF, as llama.cpp and XGrammar write grammars, to Lark.
//!
//! Rules that do not name themselves, by any way, become terminals: a terminal is matched as one
//! regular expression, in whichever way it can be, where the parts of a rule are each matched as
//! far as they go.

mod parse;

use std::collections::HashMap;
use std::fmt::Write;

use super::spec::literal;
use parse::{Item, Part, Rule};

/// Where GBNF begins.
const ROOT: &str = "root";

/// Whether a grammar is GBNF: some line of it defines a rule with `::=`.
pub(super) fn is_gbnf(text: &str) -> bool {
    text.lines().any(|line| {
        let before = line.split_once("::=").map(|(before, _)| before.trim());
        before.is_some_and(|name| !name.is_empty() && name.chars().all(parse::is_name))
    })
}

/// The same grammar in Lark.
pub(super) fn to_lark(text: &str) -> Result<String, String> {
    let rules = parse::rules(text)?;
    let index: HashMap<&str, usize> =
        rules.iter().enumerate().map(|(index, rule)| (rule.name.as_str(), index)).collect();
    if index.len() < rules.len() {
        let twice = rules.iter().enumerate().find(|(at, rule)| index[rule.name.as_str()] != *at);
        let name = twice.map_or("", |(_, rule)| &rule.name);
        return Err(format!("the rule {name} is defined twice"));
    }
    let Some(root) = index.get(ROOT) else {
        return Err(format!("there is no rule {ROOT}, where a grammar begins"));
    };
    let uses = uses(&rules, &index)?;
    let cyclic = cyclic(&uses);
    let names: Vec<String> = (0..rules.len())
        .map(|index| if cyclic[index] { format!("r{index}") } else { format!("T{index}") })
        .collect();
    let names: HashMap<&str, &str> =
        rules.iter().map(|rule| rule.name.as_str()).zip(names.iter().map(String::as_str)).collect();
    let mut lark = format!("start: {}\n", names[rules[*root].name.as_str()]);
    for rule in &rules {
        let _ = write!(lark, "{}: ", names[rule.name.as_str()]);
        alternatives(&mut lark, &rule.alternatives, &names);
        lark.push('\n');
    }
    Ok(lark)
}

/// Rules that each rule names.
fn uses(rules: &[Rule], index: &HashMap<&str, usize>) -> Result<Vec<Vec<usize>>, String> {
    let mut uses = vec![Vec::new(); rules.len()];
    for (rule, uses) in rules.iter().zip(&mut uses) {
        let mut open: Vec<&Part> = rule.alternatives.iter().flatten().collect();
        while let Some(part) = open.pop() {
            match &part.item {
                Item::Rule(name) => {
                    let used = index.get(name.as_str());
                    let used = used.ok_or_else(|| format!("the rule {name} is not defined"))?;
                    uses.push(*used);
                }
                Item::Group(group) => open.extend(group.iter().flatten()),
                Item::Literal(_) | Item::Class(_) | Item::Any => {}
            }
        }
    }
    Ok(uses)
}

/// Rules that are in a circle, or name one that is: what is left when rules whose names are all
/// resolved are taken away, again and again.
fn cyclic(uses: &[Vec<usize>]) -> Vec<bool> {
    let mut waits: Vec<usize> = uses.iter().map(Vec::len).collect();
    let mut users = vec![Vec::new(); uses.len()];
    for (user, used) in uses.iter().enumerate() {
        for used in used {
            users[*used].push(user);
        }
    }
    let mut ready: Vec<usize> = (0..uses.len()).filter(|rule| waits[*rule] == 0).collect();
    let mut cyclic = vec![true; uses.len()];
    while let Some(rule) = ready.pop() {
        cyclic[rule] = false;
        for user in &users[rule] {
            waits[*user] -= 1;
            if waits[*user] == 0 {
                ready.push(*user);
            }
        }
    }
    cyclic
}

fn alternatives(lark: &mut String, list: &[Vec<Part>], names: &HashMap<&str, &str>) {
    for (at, parts) in list.iter().enumerate() {
        if at > 0 {
            lark.push_str(" | ");
        }
        if parts.is_empty() {
            lark.push_str("\"\"");
        }
        for part in parts {
            write_part(lark, part, names);
            lark.push(' ');
        }
    }
}

fn write_part(lark: &mut String, part: &Part, names: &HashMap<&str, &str>) {
    match &part.item {
        Item::Literal(text) => lark.push_str(&literal(text)),
        Item::Class(class) => {
            let _ = write!(lark, "/{class}/");
        }
        Item::Any => lark.push_str("/(?s:.)/"),
        Item::Rule(name) => lark.push_str(names[name.as_str()]),
        Item::Group(group) => {
            lark.push('(');
            alternatives(lark, group, names);
            lark.push(')');
        }
    }
    match part.repeat {
        (1, Some(1)) => {}
        (0, Some(1)) => lark.push('?'),
        (0, None) => lark.push('*'),
        (1, None) => lark.push('+'),
        (least, None) => {
            let _ = write!(lark, "{{{least},}}");
        }
        (least, Some(most)) => {
            let _ = write!(lark, "{{{least},{most}}}");
        }
    }
}

#[cfg(test)]
mod tests;

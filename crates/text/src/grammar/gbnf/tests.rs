//! GBNF against the Lark that it means, and what is wrong with it by line.

use super::*;

#[test]
fn rules_become_terminals_unless_they_are_in_a_circle() {
    let text = r#"
# A list of words.
root  ::= list
list  ::= "[" word ("," word)* "]"   # flat
        | "[]"
word  ::= [a-z]+ | [^\n"\]-]{2,3} | .
tree  ::= "(" tree? ")" | "\x41\u00e9\"\\"
odd-one ::= | "x"{4} "y"{2,}
"#;
    let expected = "start: T0\n\
        T0: T1 \n\
        T1: \"[\" T2 (\",\" T2 )* \"]\"  | \"[]\" \n\
        T2: /[a-z]/+  | /[^\\x{a}\\x{22}\\x{5d}\\x{2d}]/{2,3}  | /(?s:.)/ \n\
        r3: \"(\" r3? \")\"  | \"A\u{e9}\\\"\\\\\" \n\
        T4: \"\" | \"x\"{4,4} \"y\"{2,} \n";
    assert_eq!(to_lark(text).unwrap(), expected);
}

#[test]
fn what_names_a_circle_is_a_rule_too() {
    let lark = to_lark("root ::= a b\na ::= b | \"(\" a \")\"\nb ::= \"b\"").unwrap();
    assert_eq!(lark, "start: r0\nr0: r1 T2 \nr1: T2  | \"(\" r1 \")\" \nT2: \"b\" \n");
}

#[test]
fn wrong_grammars_are_refused_by_line() {
    for (text, expected) in [
        ("root ::= \"a", "line 1: a \" is not closed"),
        ("root ::= [a", "line 1: a [ is not closed"),
        ("root ::= []", "line 1: a class of characters is empty"),
        ("root ::= (\"a\"", "line 1: a ( is not closed"),
        ("root ::=\n\n )", "line 3: a rule was expected, NAME ::= …, after \"\""),
        ("root ::= \"a\"\n$", "line 2: '$' was not expected"),
        ("root ::= \"\\q\"", "line 1: \\q is not known"),
        ("root ::= \"\\xg0\"", "line 1: \"g0\" is not the number of a character"),
        ("root ::= \"\\ud800\"", "line 1: \"d800\" is not the number of a character"),
        ("root ::= \"a\"{2,1}", "line 1: repetitions are {n}, {n,} or {n,m} with m from 1 and n"),
        ("root ::= \"a\"{10001}", "line 1: more than 10000 repetitions: 10001"),
        ("root ::= a", "the rule a is not defined"),
        ("a ::= \"a\"", "there is no rule root, where a grammar begins"),
        ("root ::= \"a\"\nroot ::= \"b\"", "the rule root is defined twice"),
    ] {
        assert_eq!(to_lark(text).unwrap_err(), expected, "{text}");
    }
    let deep = |depth| format!("root ::= {}\"a\"{}", "(".repeat(depth), ")".repeat(depth));
    assert!(to_lark(&deep(24)).is_ok());
    assert_eq!(to_lark(&deep(25)).unwrap_err(), "line 1: groups are more than 24 deep");
}

#[test]
fn the_dialect_is_known_by_its_sign() {
    assert!(is_gbnf("# x\nroot ::= \"a\"") && is_gbnf("a-1::=b"));
    assert!(!is_gbnf("start: \"a ::= b\"") && !is_gbnf("r::_ : \"a\"") && !is_gbnf(""));
}

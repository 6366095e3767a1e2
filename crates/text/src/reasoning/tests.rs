//! Tests of the split: each text cut at every place and into single characters.

use super::*;

fn joined(pieces: &[&str], opened: bool) -> (String, String) {
    let mut split = ReasoningSplit::new(THINK, opened);
    let mut parts: Vec<_> = pieces.iter().flat_map(|piece| split.push(piece)).collect();
    parts.extend(split.finish());
    let (mut thoughts, mut content) = (String::new(), String::new());
    for part in parts {
        match part {
            ReasoningPart::Reasoning(text) => {
                assert!(content.is_empty(), "a thought after the answer began");
                thoughts.push_str(&text);
            }
            ReasoningPart::Content(text) => content.push_str(&text),
        }
    }
    (thoughts, content)
}

#[test]
fn thoughts_and_answer_are_the_same_however_cut() {
    for (text, opened, thoughts, content) in [
        ("<think>\nA b.\n</think>\n\nHello", false, "A b.", "Hello"),
        ("<think>\n\n</think>\n\nHello", false, "", "Hello"),
        ("A b.\n</think>\n\nHello", true, "A b.", "Hello"),
        ("<think>A</think>B", true, "A", "B"),
        ("\n  <think>A</think>B</think><think>C", false, "A", "B</think><think>C"),
        ("Hello <think>no</think>", false, "", "Hello <think>no</think>"),
        ("  Hello", false, "", "  Hello"),
        ("<think>cut off ", false, "cut off", ""),
        ("<think>a </thin b </think", false, "a </thin b </think", ""),
        ("<thi", false, "", "<thi"),
        ("<thinking>", false, "", "<thinking>"),
        ("a\n\nb \n</think>\n", true, "a\n\nb", ""),
        ("< é<</think>> é", true, "< é<", "> é"),
        ("", false, "", ""),
        ("", true, "", ""),
        (" \n", false, "", " \n"),
    ] {
        let expected = (thoughts.to_owned(), content.to_owned());
        let cuts = text.char_indices().map(|(at, _)| at);
        for at in cuts {
            let (before, after) = text.split_at(at);
            assert_eq!(joined(&[before, after], opened), expected, "{text:?} at {at}");
        }
        let letters: Vec<&str> = text.split("").collect();
        assert_eq!(joined(&letters, opened), expected, "{text:?} by letters");
    }
}

#[test]
fn thoughts_come_as_they_are_thought() {
    let mut split = ReasoningSplit::new(THINK, false);
    assert!(split.push("<think>").is_empty() && split.is_thinking());
    assert_eq!(split.push("one "), [ReasoningPart::Reasoning("one".to_owned())]);
    assert_eq!(split.push("two</"), [ReasoningPart::Reasoning(" two".to_owned())]);
    assert!(split.push("think>").is_empty() && !split.is_thinking());
    assert_eq!(split.push("\nthree "), [ReasoningPart::Content("three ".to_owned())]);
    assert_eq!(split.push("four"), [ReasoningPart::Content("four".to_owned())]);
}

#[test]
fn markers_are_found_in_templates_and_prompts() {
    let of = ReasoningMarks::of_template;
    assert_eq!(of("{{ content.split('</think>')[-1] }}"), Some(THINK));
    assert_eq!(of("[THINK]{{ t }}[/THINK]"), Some(MISTRAL));
    assert_eq!(of("{{ messages }}"), None);
    assert!(THINK.opened_by("<|assistant|><think>\n") && !THINK.opened_by("what is <think>?"));
    assert!(THINK.open_in("<think>a</think><think>") && !THINK.open_in("<think>a</think>"));
    assert!(NAMES.iter().all(|(name, marks)| ReasoningMarks::named(name) == Some(*marks)));
    assert_eq!(ReasoningMarks::named("none"), None);
}

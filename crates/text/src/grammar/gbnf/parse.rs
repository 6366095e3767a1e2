//! Reads GBNF: rules of alternatives of parts. A rule goes on over lines until the next one begins.

use std::fmt::Write;
use std::iter::Peekable;
use std::str::Chars;

/// Groups in groups at most.
const DEPTH: usize = 24;

/// Most times that a part may be repeated by numbers.
const REPEATS: u32 = 10_000;

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) alternatives: Vec<Vec<Part>>,
}

#[derive(Debug)]
pub(super) struct Part {
    pub(super) item: Item,
    /// Least and most times; `None`: as often as wanted.
    pub(super) repeat: (u32, Option<u32>),
}

#[derive(Debug)]
pub(super) enum Item {
    Literal(String),
    /// A class of characters, as regular expressions write it.
    Class(String),
    /// Any character.
    Any,
    Rule(String),
    Group(Vec<Vec<Part>>),
}

/// A letter of a rule's name.
pub(super) fn is_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '-' || letter == '_'
}

pub(super) fn rules(text: &str) -> Result<Vec<Rule>, String> {
    let mut reader = Reader { chars: text.chars().peekable(), line: 1 };
    let mut rules = Vec::new();
    let read = loop {
        reader.space();
        if reader.chars.peek().is_none() {
            break Ok(());
        }
        match reader.rule() {
            Ok(rule) => rules.push(rule),
            Err(error) => break Err(error),
        }
    };
    read.map(|()| rules).map_err(|error| format!("line {}: {error}", reader.line))
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
    line: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.chars.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    fn takes(&mut self, letter: char) -> bool {
        let found = self.chars.peek() == Some(&letter);
        if found {
            self.next();
        }
        found
    }

    /// Over spaces, lines and comments.
    fn space(&mut self) {
        while let Some(letter) = self.chars.peek() {
            if *letter == '#' {
                while self.next().is_some_and(|letter| letter != '\n') {}
            } else if letter.is_whitespace() {
                self.next();
            } else {
                return;
            }
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(letter) = self.chars.next_if(|letter| is_name(*letter)) {
            name.push(letter);
        }
        name
    }

    /// Whether what follows is the head of a rule.
    fn at_rule(&self) -> bool {
        let mut ahead = self.chars.clone();
        while ahead.next_if(|letter| is_name(*letter)).is_some() {}
        while ahead.next_if(|letter| matches!(letter, ' ' | '\t')).is_some() {}
        [':', ':', '='].iter().all(|sign| ahead.next() == Some(*sign))
    }

    fn rule(&mut self) -> Result<Rule, String> {
        let name = self.name();
        if name.is_empty() || !self.at_rule() {
            return Err(format!("a rule was expected, NAME ::= …, after {name:?}"));
        }
        self.space();
        for _ in "::=".chars() {
            self.next();
        }
        let alternatives = self.alternatives(0)?;
        Ok(Rule { name, alternatives })
    }

    fn alternatives(&mut self, depth: usize) -> Result<Vec<Vec<Part>>, String> {
        if depth > DEPTH {
            return Err(format!("groups are more than {DEPTH} deep"));
        }
        let mut list = vec![Vec::new()];
        loop {
            self.space();
            if self.takes('|') {
                list.push(Vec::new());
                continue;
            }
            let closes = self.chars.peek().is_none_or(|letter| *letter == ')');
            if closes || (depth == 0 && self.at_rule()) {
                return Ok(list);
            }
            let item = self.item(depth)?;
            let repeat = self.repeat()?;
            list.last_mut().expect("it has one from the start").push(Part { item, repeat });
        }
    }

    fn item(&mut self, depth: usize) -> Result<Item, String> {
        match self.chars.peek().copied() {
            Some('"') => self.literal(),
            Some('[') => self.class(),
            Some('.') => {
                self.next();
                Ok(Item::Any)
            }
            Some('(') => {
                self.next();
                let group = self.alternatives(depth + 1)?;
                if self.takes(')') {
                    Ok(Item::Group(group))
                } else {
                    Err("a ( is not closed".into())
                }
            }
            Some(letter) if is_name(letter) => Ok(Item::Rule(self.name())),
            other => Err(format!("{:?} was not expected", other.unwrap_or(' '))),
        }
    }

    fn literal(&mut self) -> Result<Item, String> {
        self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(Item::Literal(text)),
                Some('\\') => text.push(self.escape()?),
                Some(letter) => text.push(letter),
                None => return Err("a \" is not closed".to_owned()),
            }
        }
    }

    fn class(&mut self) -> Result<Item, String> {
        self.next();
        let mut class = String::from(if self.takes('^') { "[^" } else { "[" });
        let empty = class.len();
        loop {
            match self.next() {
                Some(']') if class.len() > empty => {
                    class.push(']');
                    return Ok(Item::Class(class));
                }
                Some(']') => return Err("a class of characters is empty".to_owned()),
                Some('\\') => {
                    let letter = self.escape()?;
                    push_letter(&mut class, letter);
                }
                // A range; at either end it is itself.
                Some('-') if class.len() > empty && self.chars.peek() != Some(&']') => {
                    class.push('-');
                }
                Some(letter) => push_letter(&mut class, letter),
                None => return Err("a [ is not closed".to_owned()),
            }
        }
    }

    /// The character behind a backslash.
    fn escape(&mut self) -> Result<char, String> {
        let digits = match self.next() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(letter) if letter.is_ascii_punctuation() => return Ok(letter),
            other => return Err(format!("\\{} is not known", other.unwrap_or(' '))),
        };
        let hex: String = (0..digits).filter_map(|_| self.next()).collect();
        let code = u32::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == digits);
        code.and_then(char::from_u32)
            .ok_or_else(|| format!("{hex:?} is not the number of a character"))
    }

    fn repeat(&mut self) -> Result<(u32, Option<u32>), String> {
        let spaces = |reader: &mut Self| {
            while reader.chars.next_if(|letter| matches!(letter, ' ' | '\t')).is_some() {}
        };
        for (sign, repeat) in [('*', (0, None)), ('+', (1, None)), ('?', (0, Some(1)))] {
            if self.takes(sign) {
                return Ok(repeat);
            }
        }
        if !self.takes('{') {
            return Ok((1, Some(1)));
        }
        spaces(self);
        let least = self.number()?.unwrap_or(0);
        spaces(self);
        let most = if self.takes(',') {
            spaces(self);
            self.number()?
        } else {
            Some(least)
        };
        spaces(self);
        if !self.takes('}') || most.is_some_and(|most| most < least.max(1)) {
            return Err("repetitions are {n}, {n,} or {n,m} with m from 1 and n".to_owned());
        }
        Ok((least, most))
    }

    fn number(&mut self) -> Result<Option<u32>, String> {
        let mut digits = String::new();
        while let Some(digit) = self.chars.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        if digits.is_empty() {
            return Ok(None);
        }
        let number = digits.parse().ok().filter(|number| *number <= REPEATS);
        number.map(Some).ok_or_else(|| format!("more than {REPEATS} repetitions: {digits}"))
    }
}

/// A character of a class, by its number unless it can stand for nothing else.
fn push_letter(class: &mut String, letter: char) {
    if letter.is_ascii_alphanumeric() {
        class.push(letter);
    } else {
        let _ = write!(class, "\\x{{{:x}}}", letter as u32);
    }
}

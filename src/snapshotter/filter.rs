//! The filters of `List`: selectors joined by commas, all of which must hold; of several filters any.
//!
//! A selector is a path of fields, and maybe an operator (`==`, `!=`, `~=`) with a value. Without an operator it asks
//! whether the field is there. Fields and values may stand in double quotes with Go's escapes; the pattern of `~=` also
//! between slashes or bars, so that its own backslashes and quotes need no escape.

use regex::Regex;

use super::error::SnapshotError;
use super::record::{Record, SnapshotKind};

/// The longest pattern, compiled, in bytes: it comes from outside.
const PATTERN_LIMIT: usize = 1 << 20;

/// What a list shows.
#[derive(Debug)]
pub(super) struct Filters {
    /// Any of them; none for all.
    any: Vec<Vec<Selector>>,
}

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    /// Parses all.
    pub(super) fn parse(filters: &[String]) -> Result<Filters, SnapshotError> {
        let mut any = Vec::new();
        for text in filters {
            let parsed = Parser { text, at: 0 }
                .filter()
                .map_err(|why| SnapshotError::InvalidArgument(format!("filter {text:?}: {why}")))?;
            any.push(parsed);
        }
        Ok(Filters { any })
    }

    /// Whether a snapshot is shown.
    pub(super) fn matches(&self, record: &Record) -> bool {
        self.any.is_empty()
            || self
                .any
                .iter()
                .any(|all| all.iter().all(|selector| selector.matches(record)))
    }
}

impl Selector {
    fn matches(&self, record: &Record) -> bool {
        let value = field(record, &self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            // As containerd has it: a field that is not there differs from every value.
            Test::NotEqual(unwanted) => value != Some(unwanted),
            Test::Matches(pattern) => value.is_some_and(|value| pattern.is_match(value)),
        }
    }
}

fn field<'a>(record: &'a Record, path: &[String]) -> Option<&'a str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "name" => Some(&record.name),
        "parent" => Some(record.parent.as_deref().unwrap_or_default()),
        "kind" => Some(match record.kind {
            SnapshotKind::View => "view",
            SnapshotKind::Active => "active",
            SnapshotKind::Committed => "committed",
        }),
        "labels" => record.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn filter(mut self) -> Result<Vec<Selector>, String> {
        let mut all = Vec::new();
        self.blanks();
        // An empty filter matches everything.
        if self.peek().is_none() {
            return Ok(all);
        }
        loop {
            all.push(self.selector()?);
            match self.peek() {
                None => return Ok(all),
                Some(',') => self.skip(','),
                Some(other) => return Err(format!("{other:?} is not expected")),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, String> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.skip('.');
            path.push(self.field()?);
        }
        self.blanks();
        let test = match self.peek() {
            None | Some(',') => Test::Present,
            Some(_) => match self.operator()? {
                "==" => Test::Equal(self.value(&['"'])?),
                "!=" => Test::NotEqual(self.value(&['"'])?),
                "~=" => {
                    let pattern = self.value(&['"', '/', '|'])?;
                    let pattern = regex::RegexBuilder::new(&pattern)
                        .size_limit(PATTERN_LIMIT)
                        .build()
                        .map_err(|e| e.to_string())?;
                    Test::Matches(pattern)
                }
                other => return Err(format!("unknown operator {other:?}: == != ~= are known")),
            },
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, String> {
        self.blanks();
        if self.peek() == Some('"') {
            return self.quoted('"');
        }
        match self.take(|c| c == '_' || c.is_ascii_alphanumeric()) {
            "" => Err("the name of a field is expected".into()),
            name => Ok(name.to_owned()),
        }
    }

    fn operator(&mut self) -> Result<&str, String> {
        self.blanks();
        match self.take(|c| "=!~".contains(c)) {
            "" => Err("an operator is expected: == != ~=".into()),
            operator => Ok(operator),
        }
    }

    fn value(&mut self, quotes: &[char]) -> Result<String, String> {
        self.blanks();
        let value = match self.peek() {
            Some(quote) if quotes.contains(&quote) => self.quoted(quote)?,
            _ => match self.take(|c| c != ',' && !c.is_whitespace() && !c.is_control()) {
                "" => return Err("a value is expected".into()),
                value => value.to_owned(),
            },
        };
        self.blanks();
        Ok(value)
    }

    /// What stands between quotes. Between slashes or bars only the quote itself is escaped.
    fn quoted(&mut self, quote: char) -> Result<String, String> {
        self.skip(quote);
        let mut out = Vec::new();
        let push = |out: &mut Vec<u8>, c: char| {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        };
        loop {
            match self.next() {
                None | Some('\n') => return Err("a quote is not closed".into()),
                Some(c) if c == quote => break,
                Some('\\') if quote == '"' => self.escape(&mut out)?,
                Some('\\') if self.peek() == Some(quote) => {
                    self.skip(quote);
                    push(&mut out, quote);
                }
                Some(c) => push(&mut out, c),
            }
        }
        String::from_utf8(out).map_err(|_| "a quoted text is not UTF-8".into())
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let wrong = || "unknown escape".to_owned();
        let byte = match self.next().ok_or_else(wrong)? {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            c @ ('\\' | '"') => c as u8,
            'x' => u8::try_from(self.digits(16, 2)?).map_err(|_| wrong())?,
            c @ '0'..='7' => {
                let rest = self.digits(8, 2)?;
                let first = u32::from(c) - u32::from('0');
                u8::try_from(first * 64 + rest).map_err(|_| wrong())?
            }
            c @ ('u' | 'U') => {
                let code = self.digits(16, if c == 'u' { 4 } else { 8 })?;
                let c = char::from_u32(code).ok_or_else(wrong)?;
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(wrong()),
        };
        out.push(byte);
        Ok(())
    }

    fn digits(&mut self, base: u32, count: usize) -> Result<u32, String> {
        let mut number = 0u32;
        for _ in 0..count {
            let digit = self.next().and_then(|c| c.to_digit(base));
            let digit = digit.ok_or("a digit is missing in an escape")?;
            number = number.wrapping_mul(base).wrapping_add(digit);
        }
        Ok(number)
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn skip(&mut self, expected: char) {
        if self.peek() == Some(expected) {
            self.at += expected.len_utf8();
        }
    }

    fn blanks(&mut self) {
        self.take(char::is_whitespace);
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &str {
        let rest = &self.text[self.at..];
        let length = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshotter::record::Time;

    fn record() -> Record {
        Record {
            id: 1,
            name: "default/1/a b".into(),
            parent: None,
            kind: SnapshotKind::Active,
            created: Time::default(),
            updated: Time::default(),
            labels: [
                ("containerd.io/gc.root", "now"),
                ("l", "1"),
                ("q", "a\"b\tc"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
            usage: None,
        }
    }

    fn matches(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(|f| (*f).to_owned()).collect();
        Filters::parse(&filters).unwrap().matches(&record())
    }

    #[test]
    fn selectors() {
        for yes in [
            "",
            "kind==active",
            "name==\"default/1/a b\"",
            "name~=/^default\\/[0-9]+/",
            "name~=\"^default/\\\\d\"",
            "name~=|a b$|",
            "parent==\"\"",
            "parent!=x",
            "labels.l",
            "labels.l==1,kind!=view",
            "labels.\"containerd.io/gc.root\"==now",
            "labels.q==\"a\\\"b\\u0009c\"",
            "labels.q==\"\\x61\\\"\\142\\tc\"",
            "unknown!=1",
            " kind == active , labels.l ",
        ] {
            assert!(matches(&[yes]), "{yes}");
        }
        for no in [
            "kind==view",
            "labels.m",
            "labels.l==2",
            "name~=^b",
            "unknown",
            "parent!=\"\"",
            "kind==active,labels.m",
        ] {
            assert!(!matches(&[no]), "{no}");
        }
        assert!(matches(&["kind==view", "labels.l"]), "any of them");
        assert!(matches(&[]));
    }

    #[test]
    fn what_is_no_filter_is_told() {
        for wrong in [
            "=",
            "kind=",
            "kind==",
            "kind=active",
            "kind===x",
            "kind<x",
            "name~=[",
            "a..b",
            ",",
            "a,",
            "\"a",
            "a==\"\\q\"",
            "a==\"\\x6\"",
            "a==\"\\xff\"",
            "a==\"\\777\"",
            "a b",
            "ä",
            "name~=(a{1000}){1000}",
            "a==b c",
        ] {
            let error = Filters::parse(&[wrong.to_owned()]);
            assert!(
                matches!(error, Err(SnapshotError::InvalidArgument(_))),
                "{wrong}"
            );
        }
    }
}

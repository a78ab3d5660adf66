//! Splits PTX text into tokens, each with its line.

use crate::fault::LoadError;

/// A token of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// A name: an opcode, register, label or variable.
    Word(&'a str),
    /// A dotted word without its dot: a directive or modifier, such as `reg` or `L1::no_allocate`.
    Dot(&'a str),
    /// A number as written.
    Number(&'a str),
    /// A quoted string without its quotes.
    Text(&'a str),
    /// Any other character.
    Mark(char),
}

/// All tokens of `source` with their line numbers, from 1.
pub(crate) fn tokens(source: &str) -> Result<Vec<(Token<'_>, u32)>, LoadError> {
    let bytes = source.as_bytes();
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'$';
    let mut out = Vec::with_capacity(source.len() / 4);
    let (mut i, mut line) = (0, 1);
    while i < bytes.len() {
        let c = bytes[i];
        let start = i;
        let end_of = |mut j: usize, accept: &dyn Fn(u8) -> bool| {
            while j < bytes.len() && accept(bytes[j]) {
                j += 1;
            }
            j
        };
        match c {
            b'\n' => {
                line += 1;
                i += 1;
            }
            _ if c.is_ascii_whitespace() => i += 1,
            b'/' if bytes.get(i + 1) == Some(&b'/') => i = end_of(i, &|c| c != b'\n'),
            b'/' if bytes.get(i + 1) == Some(&b'*') => {
                let end = source[i..].find("*/").ok_or_else(|| {
                    LoadError::new(line, "/*", "this comment has no end".to_owned())
                })?;
                line += source[i..i + end].matches('\n').count() as u32;
                i += end + 2;
            }
            b'"' => {
                let end = source[i + 1..].find('"').ok_or_else(|| {
                    LoadError::new(line, "\"", "this string has no end".to_owned())
                })?;
                out.push((Token::Text(&source[i + 1..i + 1 + end]), line));
                i += end + 2;
            }
            b'0'..=b'9' => {
                i = end_of(i, &|c| c.is_ascii_alphanumeric());
                // A decimal point belongs to the number: `9.0`, `1.5`.
                if bytes.get(i) == Some(&b'.') && bytes.get(i + 1).is_some_and(u8::is_ascii_digit) {
                    i = end_of(i + 1, &|c| c.is_ascii_alphanumeric());
                }
                out.push((Token::Number(&source[start..i]), line));
            }
            b'.' if bytes.get(i + 1).is_some_and(|&c| word(c)) => {
                i = end_of(i + 1, &|c| word(c) || c == b':');
                // A single colon is not part of a modifier such as `L2::128B`.
                let text = source[start + 1..i].trim_end_matches(':');
                i = start + 1 + text.len();
                out.push((Token::Dot(text), line));
            }
            _ if word(c) || c == b'%' => {
                i = end_of(i + 1, &word);
                out.push((Token::Word(&source[start..i]), line));
            }
            _ if c.is_ascii() => {
                out.push((Token::Mark(c as char), line));
                i += 1;
            }
            _ => {
                let shown: String = source[i..].chars().take(1).collect();
                return Err(LoadError::new(
                    line,
                    &shown,
                    "this character is no part of PTX".to_owned(),
                ));
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_modifiers_numbers_and_comments() {
        let text = "@%p1 ld.global.L2::128B.v2.f32 {%f1, _}, [%rd1+-4]; // end\n/* a\nb */ $L: mov 0f3F800000 9.0";
        let got: Vec<_> = tokens(text).unwrap();
        let words: Vec<_> = got.iter().map(|t| t.0).collect();
        assert_eq!(
            words,
            [
                Token::Mark('@'),
                Token::Word("%p1"),
                Token::Word("ld"),
                Token::Dot("global"),
                Token::Dot("L2::128B"),
                Token::Dot("v2"),
                Token::Dot("f32"),
                Token::Mark('{'),
                Token::Word("%f1"),
                Token::Mark(','),
                Token::Word("_"),
                Token::Mark('}'),
                Token::Mark(','),
                Token::Mark('['),
                Token::Word("%rd1"),
                Token::Mark('+'),
                Token::Mark('-'),
                Token::Number("4"),
                Token::Mark(']'),
                Token::Mark(';'),
                Token::Word("$L"),
                Token::Mark(':'),
                Token::Word("mov"),
                Token::Number("0f3F800000"),
                Token::Number("9.0"),
            ]
        );
        assert_eq!(got.last().unwrap().1, 3);
        assert!(tokens("/* a").is_err());
    }
}

//! Names that come from data, such as those of files and folders, as people and line-based files may have them.

/// `name` on one line: control characters and those that change the direction of writing become escapes such as `\n` and
/// `\u{1b}`. A terminal obeys the former, and a line or a column would end at some of them.
pub(crate) fn one_line(name: &str) -> String {
    escape(name, |_| false)
}

/// Like [`one_line`], for text of several lines: line breaks and tabs stay.
pub(crate) fn lines(text: &str) -> String {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        let directs = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let breaks = matches!(c, '\u{2028}' | '\u{2029}');
        if (c.is_control() || directs || breaks) && !keep(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_terminal_obeys_is_escaped() {
        assert_eq!(one_line("Zoë 王 \\ 'x'"), "Zoë 王 \\ 'x'");
        assert_eq!(
            one_line("a\n\t\r\u{1b}[2J\u{9b}1m\u{7f}\u{202e}b"),
            "a\\n\\t\\r\\u{1b}[2J\\u{9b}1m\\u{7f}\\u{202e}b"
        );
        assert_eq!(lines("a\n\tb\u{1b}c\r\n"), "a\n\tb\\u{1b}c\\r\n");
    }
}

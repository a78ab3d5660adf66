//! Words for people: counts with their nouns, and names that come from data, such as those of files and folders, as a
//! terminal and line-based files may have them.

use std::path::Path;

/// `1,234,567`
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 identity`, `1,234 identities`: a count with its noun, which is given in the singular.
pub(crate) fn count(n: impl TryInto<u64>, noun: &str) -> String {
    // A count on any machine has at most 64 bits.
    let n = n.try_into().unwrap_or(u64::MAX);
    let plural = match noun.strip_suffix('y') {
        _ if n == 1 => noun.to_owned(),
        Some(stem) => format!("{stem}ies"),
        None if noun.ends_with('s') || noun.ends_with("tch") => format!("{noun}es"),
        None => format!("{noun}s"),
    };
    format!("{} {plural}", grouped(n))
}

/// `there is no preset smal: did you mean small? There are small, demo`
pub(crate) fn no_such(what: &str, name: &str, known: &[&str]) -> String {
    let there_are = match nearest(name, known.iter().copied()) {
        Some(nearest) => format!(": did you mean {nearest}? There are"),
        None => "; there are".to_owned(),
    };
    format!(
        "there is no {what} {}{there_are} {}",
        one_line(name),
        known.join(", ")
    )
}

/// The one of `names` that `name` may be a slip of the pen for.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The measure and the limit that clap has for flags.
    let near = names
        .into_iter()
        .map(|known| (strsim::jaro(name, known), known));
    let near = near.filter(|(likeness, _)| *likeness > 0.7);
    near.max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// `name` on one line: control characters and those that change the direction of writing become escapes such as `\n` and
/// `\u{1b}`. A terminal obeys the former, and a line or a column would end at some of them.
pub(crate) fn one_line(name: &str) -> String {
    escape(name, |_| false)
}

/// A path as messages show it, on one line.
pub(crate) fn shown(path: impl AsRef<Path>) -> String {
    one_line(&path.as_ref().to_string_lossy())
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
    fn counts_have_their_noun() {
        assert_eq!(
            [0, 999, 1000, 85_642, 1_234_567].map(grouped),
            ["0", "999", "1,000", "85,642", "1,234,567"]
        );
        assert_eq!(count(1_u64, "identity"), "1 identity");
        assert_eq!(count(0_usize, "identity"), "0 identities");
        assert_eq!(count(1200_u64, "picture"), "1,200 pictures");
        assert_eq!(count(2_usize, "batch"), "2 batches");
        assert_eq!(count(2_usize, "epoch"), "2 epochs");
        assert_eq!(count(3_usize, "class"), "3 classes");
        assert_eq!(count(3_usize, "epoch"), "3 epochs");
        assert_eq!(count(1_usize, "batch"), "1 batch");
    }

    #[test]
    fn a_slip_of_the_pen_has_a_nearest_name() {
        let names = [
            "small",
            "seed-resnet50",
            "insightface-r50",
            "insightface-r18",
        ];
        assert_eq!(nearest("smal", names), Some("small"));
        assert_eq!(nearest("insightface-50", names), Some("insightface-r50"));
        assert_eq!(nearest("xyz", names), None);
        assert_eq!(
            no_such("preset", "smal", &names[..2]),
            "there is no preset smal: did you mean small? There are small, seed-resnet50"
        );
        assert_eq!(
            no_such("preset", "xyz", &names[..2]),
            "there is no preset xyz; there are small, seed-resnet50"
        );
    }

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

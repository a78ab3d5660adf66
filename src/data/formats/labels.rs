//! Classes from names: what formats say that call an identity by a folder's name, a number or any other text.
//!
//! The names that occur are sorted, as numbers if every one is a number, else by their bytes; the rank of a name is its
//! class. So the same pictures have the same classes in every format, and numbers with gaps (CASIA-WebFace goes from 45
//! to 6,573,378) make no classes without pictures. [`Dataset::class_name`](crate::data::Dataset::class_name) keeps the name.

use std::collections::HashMap;

/// Sorts names by their bytes, or by value if all of them are numbers (of any length).
pub(crate) fn sort(names: &mut [String]) {
    let number = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
    if names.iter().all(|name| number(name)) {
        names.sort_unstable_by(|a, b| {
            let (x, y) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
            (x.len(), x, a).cmp(&(y.len(), y, b))
        });
    } else {
        names.sort_unstable();
    }
}

/// A label without the spaces around it.
///
/// # Errors
/// It is empty, or a number below 0, which means "unknown" wherever it is written; what was found, for a message.
pub(crate) fn check(text: &str) -> Result<&str, String> {
    let label = text.trim();
    let digits = label.strip_prefix('-').unwrap_or("");
    if label.is_empty() {
        Err("no label".into())
    } else if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        Err(format!("the label {label}"))
    } else {
        Ok(label)
    }
}

/// Gives each different name a number, in the order in which they come.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    names: Vec<String>,
    numbers: HashMap<String, u32>,
}

impl Interner {
    /// The number of `name`.
    pub(crate) fn number(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        // Each name comes from a record of its own, and there are fewer than 2^32 of those.
        let number = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }

    /// The names by number.
    pub(crate) fn into_names(self) -> Vec<String> {
        self.names
    }
}

/// Sorts `names`, which are all different, and makes each of `labels`, numbers of names, the rank of its name.
pub(crate) fn rank(mut names: Vec<String>, labels: &mut [u32]) -> Vec<String> {
    let unsorted = names.clone();
    sort(&mut names);
    let ranks: HashMap<&str, u32> = (names.iter().zip(0..))
        .map(|(name, rank)| (&name[..], rank))
        .collect();
    let of: Vec<u32> = unsorted.iter().map(|name| ranks[&name[..]]).collect();
    labels
        .iter_mut()
        .for_each(|label| *label = of[*label as usize]);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_ranks_of_names() {
        let classes = |labels: &[&str]| {
            let mut interner = Interner::default();
            let mut numbers: Vec<u32> = labels.iter().map(|l| interner.number(l)).collect();
            let names = rank(interner.into_names(), &mut numbers);
            (names, numbers)
        };
        let (names, numbers) = classes(&["45", "6573378", "100", "45", "010"]);
        assert_eq!(names, ["010", "45", "100", "6573378"]);
        assert_eq!(numbers, [1, 3, 2, 1, 0]);
        let (names, numbers) = classes(&["b", "10", "9", "b"]);
        assert_eq!(names, ["10", "9", "b"]);
        assert_eq!(numbers, [2, 0, 1, 2]);
    }
}

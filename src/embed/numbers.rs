//! The number of each identity, as `labels.npy` has it.

use crate::data::Dataset;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The number of a picture without an identity.
pub(super) const NO_IDENTITY: i64 = -1;

/// The label of each identity, by number: the value of its name where all names are different numbers, else its place
/// among the identities. A class without a name is none.
pub(super) fn numbers(dataset: &dyn Dataset) -> BTreeMap<u64, u32> {
    let labels: Vec<(u32, String)> = (0..dataset.classes() as u32)
        .map(|label| (label, dataset.class_name(label)))
        .filter(|(_, name)| !name.is_empty())
        .collect();
    let named: Option<BTreeMap<u64, u32>> = (labels.iter())
        .map(|(label, name)| Some((value(name)?, *label)))
        .collect();
    named
        .filter(|named| named.len() == labels.len())
        .unwrap_or_else(|| (0..).zip(labels.iter().map(|(label, _)| *label)).collect())
}

/// A name's value, if it is a number. Labels in files are signed.
fn value(name: &str) -> Option<u64> {
    let number: u64 = name.parse().ok()?;
    i64::try_from(number).is_ok().then_some(number)
}

/// The number of each label. `taken` are the numbers of a gallery that is added to, with their names: an identity that is
/// there keeps its number, another one has the value of its name if that is free, or else the next number after all.
pub(super) fn label_numbers(dataset: &dyn Dataset, taken: &BTreeMap<i64, String>) -> Vec<i64> {
    let mut of_label = vec![NO_IDENTITY; dataset.classes()];
    if taken.is_empty() {
        for (number, label) in numbers(dataset) {
            of_label[label as usize] = number as i64;
        }
        return of_label;
    }
    let mut by_name: HashMap<String, i64> = (taken.iter())
        .filter(|(_, name)| !name.is_empty())
        .map(|(number, name)| (name.clone(), *number))
        .collect();
    let mut used: BTreeSet<i64> = taken.keys().copied().collect();
    let names: Vec<String> = (0..dataset.classes() as u32)
        .map(|label| dataset.class_name(label))
        .collect();
    for name in &names {
        if let Some(number) = value(name)
            && !by_name.contains_key(name)
            // `7` and `007` are two people.
            && used.insert(number as i64)
        {
            by_name.insert(name.clone(), number as i64);
        }
    }
    for (name, number) in names.iter().zip(&mut of_label) {
        if name.is_empty() {
            continue;
        }
        *number = *by_name.entry(name.clone()).or_insert_with(|| {
            let after_all = used.last().map_or(Some(0), |last| last.checked_add(1));
            let free = || (0..).find(|number| !used.contains(number));
            let number = after_all.or_else(free).expect("there are 2^63 numbers");
            used.insert(number);
            number
        });
    }
    of_label
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Result;
    use crate::data::Image;

    /// Classes by name, without images.
    struct Names(&'static [&'static str]);

    impl Dataset for Names {
        fn len(&self) -> usize {
            0
        }

        fn classes(&self) -> usize {
            self.0.len()
        }

        fn label(&self, _: usize) -> u32 {
            0
        }

        fn read(&self, _: usize, _: &mut Image) -> Result<()> {
            Ok(())
        }

        fn describe(&self, _: usize) -> String {
            String::new()
        }

        fn class_name(&self, label: u32) -> String {
            self.0[label as usize].to_owned()
        }
    }

    #[test]
    fn numbers_are_values_or_places_and_nobody_has_none() {
        let of = |names| label_numbers(&Names(names), &BTreeMap::new());
        assert_eq!(of(&["0012", "7"]), [12, 7]);
        assert_eq!(of(&["7", "007"]), [0, 1]);
        assert_eq!(of(&["ann", "7"]), [0, 1]);
        assert_eq!(of(&["", "ann", "", "bob"]), [-1, 0, -1, 1]);
        assert_eq!(of(&["", "12"]), [-1, 12]);
        assert_eq!(of(&["9223372036854775808"]), [0]);
    }

    #[test]
    fn a_gallery_that_is_added_to_keeps_its_numbers() {
        let taken = |names: &[(i64, &str)]| -> BTreeMap<i64, String> {
            let names = names
                .iter()
                .map(|(number, name)| (*number, (*name).to_owned()));
            names.collect()
        };
        let of = |names, there: &[(i64, &str)]| label_numbers(&Names(names), &taken(there));
        let there = [(0, "ann"), (1, "bob"), (4, "")];
        assert_eq!(
            of(&["bob", "cid", "", "ann", "dot"], &there),
            [1, 5, -1, 0, 6]
        );
        // A value that is free is kept, one that is not is another's.
        let there = [(7, "7"), (12, "0012")];
        assert_eq!(of(&["12", "9", "007", "7"], &there), [13, 9, 14, 7]);
        let most = i64::MAX;
        assert_eq!(of(&["ann", "9223372036854775807"], &there), [0, most]);
    }
}

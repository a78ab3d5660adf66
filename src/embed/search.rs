//! The nearest embeddings of a gallery for each of some queries: exact, by all cosines.
//!
//! Cosines are computed in blocks of queries and gallery rows, so that memory does not grow with their product; of each
//! query's block those that may be among the nearest go to a heap. What is left in the end is computed again in f64: the
//! order, and the order of ties (by row), do not depend on how a matrix product is cut up. Where a row that was not kept may
//! be as near as the last that is asked for, by the bound on rounding in f32, that query's cosines are all computed in f64:
//! it happens where more than a few rows are about equally near, and takes longer.

use crate::backend::cpu::inner_products;
use crate::embed::Stored;
use rayon::prelude::*;
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

/// Queries and gallery rows in a block: 256 KiB of cosines.
const QUERIES: usize = 64;
const GALLERY: usize = 1024;

/// So many rows more than asked for go into a heap, so that the last asked for is seldom as near as one that is left out.
const SPARE: usize = 16;

/// A row of the gallery.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Hit {
    /// The row.
    pub row: usize,
    /// Its cosine with the query.
    pub cosine: f64,
}

impl Hit {
    /// The nearest first; of equals the first row.
    fn order(&self, other: &Hit) -> Ordering {
        (other.cosine.total_cmp(&self.cosine)).then(self.row.cmp(&other.row))
    }
}

/// A candidate whose greatest is the worst, for a heap.
struct Candidate(Hit);

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.order(&other.0)
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// The `top` nearest rows of `gallery` for each row of `queries`, the nearest first, or all where there are fewer. Both
/// are unit vectors of `dim` numbers. With `others_only` the two are the same list, and a row does not find itself.
///
/// # Panics
/// If the rows are not whole.
pub fn search(
    gallery: &[f32],
    queries: &[f32],
    dim: usize,
    top: usize,
    others_only: bool,
) -> Vec<Vec<Hit>> {
    if top == 0 {
        return vec![Vec::new(); queries.len() / dim];
    }
    let keep = top.saturating_add(SPARE);
    queries
        .par_chunks(QUERIES * dim)
        .enumerate()
        .flat_map_iter(|(block, queries)| {
            let count = queries.len() / dim;
            let mut heaps: Vec<BinaryHeap<Candidate>> = Vec::new();
            heaps.resize_with(count, BinaryHeap::new);
            let mut cosines = Vec::new();
            for (part, rows) in gallery.chunks(GALLERY * dim).enumerate() {
                let width = rows.len() / dim;
                cosines.resize(count * width, 0.0);
                inner_products(queries, rows, dim, &mut cosines);
                for (q, (heap, cosines)) in heaps
                    .iter_mut()
                    .zip(cosines.chunks_exact(width))
                    .enumerate()
                {
                    let own = others_only.then_some(block * QUERIES + q);
                    offer(heap, cosines, part * GALLERY, own, keep);
                }
            }
            let rows = queries.chunks_exact(dim).zip(heaps);
            let found: Vec<Vec<Hit>> = rows
                .enumerate()
                .map(|(q, (query, heap))| {
                    // Nothing left out is nearer than the worst that was kept.
                    let left_out = match heap.len() < keep {
                        true => f64::NEG_INFINITY,
                        false => heap.peek().map_or(1.0, |c| c.0.cosine) + rounding(dim),
                    };
                    let mut hits: Vec<Hit> = heap
                        .into_iter()
                        .map(|Candidate(Hit { row, .. })| Hit {
                            row,
                            cosine: cosine(query, &gallery[row * dim..][..dim]),
                        })
                        .collect();
                    hits.sort_by(Hit::order);
                    hits.truncate(top);
                    if hits.last().is_some_and(|last| last.cosine <= left_out) {
                        let own = others_only.then_some(block * QUERIES + q);
                        return all_in_f64(gallery, query, top, own);
                    }
                    hits
                })
                .collect();
            found
        })
        .collect()
}

/// Puts what is better than the worst of a full heap in its place.
fn offer(
    heap: &mut BinaryHeap<Candidate>,
    cosines: &[f32],
    first: usize,
    own: Option<usize>,
    keep: usize,
) {
    let mut worst = match heap.len() < keep {
        true => f32::NEG_INFINITY,
        false => heap.peek().map_or(f32::NEG_INFINITY, |c| c.0.cosine as f32),
    };
    for (i, &cosine) in cosines.iter().enumerate() {
        // Rows come in order, so that an equal is no better.
        if cosine <= worst || own == Some(first + i) {
            continue;
        }
        heap.push(Candidate(Hit {
            row: first + i,
            cosine: f64::from(cosine),
        }));
        if heap.len() > keep {
            heap.pop();
        }
        if heap.len() == keep {
            worst = heap.peek().map_or(worst, |c| c.0.cosine as f32);
        }
    }
}

/// A bound on the error of a cosine in f32: each of its `dim` terms is rounded `dim` times at most, by half an
/// [`f32::EPSILON`] of it, and the terms' magnitudes add up to 1 at most. The other half covers that unit vectors are rounded.
fn rounding(dim: usize) -> f64 {
    (dim + 1) as f64 * f64::from(f32::EPSILON)
}

/// The `top` nearest rows for one query, without row `own`.
fn all_in_f64(gallery: &[f32], query: &[f32], top: usize, own: Option<usize>) -> Vec<Hit> {
    let mut heap = BinaryHeap::new();
    for (row, values) in gallery.chunks_exact(query.len()).enumerate() {
        if own == Some(row) {
            continue;
        }
        heap.push(Candidate(Hit {
            row,
            cosine: cosine(query, values),
        }));
        if heap.len() > top {
            heap.pop();
        }
    }
    heap.into_sorted_vec().into_iter().map(|c| c.0).collect()
}

/// The cosine of two unit vectors, f64.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&x, &y)| f64::from(x) * f64::from(y))
        .sum()
}

/// How often the nearest rows show the query's identity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Identification {
    /// Queries whose identity is in the gallery; the others count nowhere.
    pub queries: usize,
    /// The share of them whose nearest row is of their identity.
    pub rank_1: f64,
    /// The share of them with a row of their identity among the nearest five.
    pub rank_5: f64,
}

/// How a threshold answers who a query shows, where the gallery may not hold the person.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OpenSet {
    /// Queries whose identity is in the gallery.
    pub members: usize,
    /// The share of them that are answered with their identity; none where there is none of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identified: Option<f64>,
    /// Queries whose identity is known, and not in the gallery.
    pub strangers: usize,
    /// The share of them that are taken for somebody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mistaken: Option<f64>,
}

/// The identity of each query, and whether the gallery has a row of it besides the query itself; none for a query without
/// an identity. None at all where labels are missing. Identities are the same where they are called the same.
fn members(
    gallery: &Stored,
    queries: &Stored,
    others_only: bool,
) -> Option<Vec<Option<(String, bool)>>> {
    gallery.labels.as_ref()?;
    queries.labels.as_ref()?;
    let mut there: BTreeMap<String, usize> = BTreeMap::new();
    for identity in (0..gallery.rows()).filter_map(|row| gallery.identity(row)) {
        *there.entry(identity).or_default() += 1;
    }
    let member = |query| {
        let identity = queries.identity(query)?;
        let rows = there.get(&identity).copied().unwrap_or(0);
        Some((identity, rows > usize::from(others_only)))
    };
    Some((0..queries.rows()).map(member).collect())
}

/// Rates of identification for hits of at least five rows a query (or all there are); none where labels are missing, or no
/// query's identity is in the gallery. Pictures without an identity count nowhere, but may be hits.
pub fn identification(
    gallery: &Stored,
    queries: &Stored,
    hits: &[Vec<Hit>],
    others_only: bool,
) -> Option<Identification> {
    let members = members(gallery, queries, others_only)?;
    let (mut known, mut first, mut fifth) = (0, 0, 0);
    for (member, hits) in members.into_iter().zip(hits) {
        let Some((identity, true)) = member else {
            continue;
        };
        known += 1;
        let right = |hit: &Hit| gallery.identity(hit.row).as_ref() == Some(&identity);
        first += usize::from(hits.first().is_some_and(right));
        fifth += usize::from(hits.iter().take(5).any(right));
    }
    (known > 0).then(|| Identification {
        queries: known,
        rank_1: first as f64 / known as f64,
        rank_5: fifth as f64 / known as f64,
    })
}

/// Rates of the answers that `accepts` makes of the nearest row of each query; none where labels are missing, or no query
/// has an identity.
pub fn open_set(
    gallery: &Stored,
    queries: &Stored,
    hits: &[Vec<Hit>],
    others_only: bool,
    accepts: impl Fn(&Hit) -> bool,
) -> Option<OpenSet> {
    let (mut members_seen, mut identified) = (0, 0);
    let (mut strangers, mut mistaken) = (0, 0);
    for (member, hits) in members(gallery, queries, others_only)?
        .into_iter()
        .zip(hits)
    {
        let answer = hits.first().filter(|hit| accepts(hit));
        match member {
            Some((identity, true)) => {
                members_seen += 1;
                let right = answer.is_some_and(|hit| gallery.identity(hit.row) == Some(identity));
                identified += usize::from(right);
            }
            Some((_, false)) => {
                strangers += 1;
                mistaken += usize::from(answer.is_some());
            }
            None => {}
        }
    }
    let share = |part: usize, of: usize| (of > 0).then(|| part as f64 / of as f64);
    (members_seen + strangers > 0).then(|| OpenSet {
        members: members_seen,
        identified: share(identified, members_seen),
        strangers,
        mistaken: share(mistaken, strangers),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::{Purpose, Random};

    fn unit_rows(n: usize, dim: usize, seed: u64) -> Vec<f32> {
        let mut random = Random::new(seed, Purpose::Faces, 0);
        let mut rows: Vec<f32> = (0..n * dim).map(|_| random.normal()).collect();
        for row in rows.chunks_exact_mut(dim) {
            let length = cosine(row, row).sqrt();
            row.iter_mut()
                .for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
        rows
    }

    fn naive(
        gallery: &[f32],
        query: &[f32],
        dim: usize,
        top: usize,
        own: Option<usize>,
    ) -> Vec<Hit> {
        let mut all: Vec<Hit> = (gallery.chunks_exact(dim).enumerate())
            .filter(|(row, _)| Some(*row) != own)
            .map(|(row, values)| {
                let cosine = (0..dim)
                    .map(|d| f64::from(query[d]) * f64::from(values[d]))
                    .sum();
                Hit { row, cosine }
            })
            .collect();
        all.sort_by(|a, b| {
            b.cosine
                .partial_cmp(&a.cosine)
                .unwrap()
                .then(a.row.cmp(&b.row))
        });
        all.truncate(top);
        all
    }

    #[test]
    fn hits_are_those_of_sorting_everything() {
        for (g, q, dim, top) in [
            (1, 1, 3, 4),
            (2500, 130, 37, 7),
            (1025, 65, 16, 1),
            (40, 3, 8, 99),
        ] {
            let mut gallery = unit_rows(g, dim, 5);
            // Many equal rows, in every place of a block.
            for row in (0..g).step_by(3) {
                gallery.copy_within(0..dim, row * dim);
            }
            let mut queries = unit_rows(q, dim, 6);
            queries[..dim].copy_from_slice(&gallery[..dim]);
            let found = search(&gallery, &queries, dim, top, false);
            assert_eq!(found.len(), q);
            for (k, hits) in found.iter().enumerate() {
                let expected = naive(&gallery, &queries[k * dim..][..dim], dim, top, None);
                assert_eq!(hits, &expected, "{g} {q} {dim}, query {k}");
            }
            let found = search(&gallery, &gallery, dim, top, true);
            for (k, hits) in found.iter().enumerate().step_by(19) {
                let expected = naive(&gallery, &gallery[k * dim..][..dim], dim, top, Some(k));
                assert_eq!(hits, &expected, "{g} {dim}, row {k}");
            }
        }
    }

    /// More rows than are kept lie so near one another that f32 cannot tell which are nearest.
    #[test]
    fn rounding_in_f32_decides_nothing() {
        let dim = 32;
        let mut gallery = unit_rows(1, dim, 9).repeat(400);
        // Near the rows, where f32 is coarsest.
        let mut queries = unit_rows(8, dim, 8);
        for query in queries.chunks_exact_mut(dim) {
            let near = query.iter().zip(&gallery).map(|(q, g)| g + 0.3 * q);
            let near: Vec<f32> = near.collect();
            let length = cosine(&near, &near).sqrt() as f32;
            query
                .iter_mut()
                .zip(near)
                .for_each(|(q, n)| *q = n / length);
        }
        for (k, row) in gallery.chunks_exact_mut(dim).enumerate() {
            for (place, steps) in [(k % dim, k * 5 % 7), (k * 7 % dim, k % 3)] {
                row[place] = f32::from_bits(row[place].to_bits() + steps as u32);
            }
        }
        let found = search(&gallery, &queries, dim, 5, false);
        for (hits, query) in found.iter().zip(queries.chunks_exact(dim)) {
            assert_eq!(hits, &naive(&gallery, query, dim, 5, None));
        }
    }

    #[test]
    fn rates_are_counted_by_name_over_those_who_are_there() {
        let stored = |rows: &[(f32, i64)], names: &[(i64, &str)]| Stored {
            embeddings: rows.iter().flat_map(|(a, _)| [a.cos(), a.sin()]).collect(),
            dim: 2,
            files: rows.iter().map(|(a, _)| a.to_string()).collect(),
            labels: Some(rows.iter().map(|r| r.1).collect()),
            names: names
                .iter()
                .map(|&(n, name)| (n, name.to_owned()))
                .collect(),
            origin: None,
        };
        // By angle: ann at 0, bob at 1, and cid at 2.
        let gallery = stored(
            &[(0.0, 0), (1.0, 1), (2.0, 2)],
            &[(0, "ann"), (1, "bob"), (2, "cid")],
        );
        // Bob has another number here, eve is unknown, the second bob is nearer to cid.
        let queries = stored(&[(0.9, 0), (1.6, 0), (0.1, 7)], &[(0, "bob"), (7, "eve")]);
        let hits = search(&gallery.embeddings, &queries.embeddings, 2, 5, false);
        let found = identification(&gallery, &queries, &hits, false).unwrap();
        assert_eq!((found.queries, found.rank_1, found.rank_5), (2, 0.5, 1.0));
        // One bob at 0.1 from bob, one at 0.4 from cid, and a stranger at 0.1 from ann.
        for (angle, expected) in [
            (0.5_f64, (0.5, 1.0)),
            (0.11, (0.5, 1.0)),
            (0.05, (0.0, 0.0)),
        ] {
            let found = open_set(&gallery, &queries, &hits, false, |hit| {
                hit.cosine > angle.cos()
            });
            let found = found.unwrap();
            assert_eq!((found.members, found.strangers), (2, 1));
            assert_eq!(
                (found.identified.unwrap(), found.mistaken.unwrap()),
                expected,
                "{angle}"
            );
        }
        // Nobody has a second picture.
        let hits = search(&gallery.embeddings, &gallery.embeddings, 2, 5, true);
        assert_eq!(identification(&gallery, &gallery, &hits, true), None);
    }
}

//! Exact search: the five nearest of 100,000 embeddings for each of 1,000 queries, 512 numbers each.
//!
//!     cargo bench --bench search

use arcface_cu::base::random::{Purpose, Random};
use arcface_cu::embed::search::{cosine, search};
use std::time::Instant;

const GALLERY: usize = 100_000;
const QUERIES: usize = 1_000;
const DIM: usize = 512;
const TOP: usize = 5;
const ROUNDS: usize = 3;

fn rows(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed, Purpose::Faces, 0);
    let mut rows: Vec<f32> = (0..n * DIM).map(|_| random.normal()).collect();
    for row in rows.chunks_exact_mut(DIM) {
        let length = cosine(row, row).sqrt() as f32;
        row.iter_mut().for_each(|x| *x /= length);
    }
    rows
}

fn main() {
    let (gallery, queries) = (rows(GALLERY, 1), rows(QUERIES, 2));
    let mut seconds = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let hits = search(&gallery, &queries, DIM, TOP, false);
        seconds.push(began.elapsed().as_secs_f64());
        // The answer, by hand, for some of the queries.
        for (query, hits) in queries.chunks_exact(DIM).zip(&hits).step_by(97) {
            let mut all: Vec<(f64, usize)> = (gallery.chunks_exact(DIM).enumerate())
                .map(|(row, values)| (-cosine(query, values), row))
                .collect();
            all.sort_by(|a, b| a.partial_cmp(b).expect("finite"));
            let found: Vec<usize> = hits.iter().map(|hit| hit.row).collect();
            let expected: Vec<usize> = all[..TOP].iter().map(|&(_, row)| row).collect();
            assert_eq!(found, expected);
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[ROUNDS / 2];
    let operations = 2.0 * (GALLERY * QUERIES * DIM) as f64;
    println!(
        "{QUERIES} queries in {GALLERY} x {DIM}, top {TOP}: {median:.2} s (median of {ROUNDS}), {:.0} GFLOP/s",
        operations / median / 1e9
    );
}

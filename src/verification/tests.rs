use super::*;
use crate::base::random::{Purpose, Random};

/// The protocol word for word, in O(pairs * thresholds * folds).
fn naive_folds(distances: &[f64], same: &[bool]) -> Vec<Fold> {
    let n = distances.len();
    let fold_of = |k: usize| {
        let (short, long) = (n / 10, n % 10);
        if k < long * (short + 1) {
            k / (short + 1)
        } else {
            long + (k - long * (short + 1)) / short
        }
    };
    let accuracy = |t: f64, in_set: &dyn Fn(usize) -> bool| {
        let set: Vec<usize> = (0..n).filter(|&k| in_set(k)).collect();
        let right = set
            .iter()
            .filter(|&&k| (distances[k] < t) == same[k])
            .count();
        right as f64 / set.len() as f64
    };
    (0..10)
        .map(|fold| {
            let mut best = (f64::NEG_INFINITY, 0.0);
            for i in 0..400 {
                let t = f64::from(i) * 0.01;
                let a = accuracy(t, &|k| fold_of(k) != fold);
                if a > best.0 {
                    best = (a, t);
                }
            }
            Fold {
                accuracy: accuracy(best.1, &|k| fold_of(k) == fold),
                threshold: best.1,
            }
        })
        .collect()
}

fn naive_auc(distances: &[f64], same: &[bool]) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for (i, &d) in distances.iter().enumerate().filter(|(i, _)| same[*i]) {
        for (j, &e) in distances.iter().enumerate().filter(|(j, _)| !same[*j]) {
            assert_ne!(i, j);
            count += 1.0;
            sum += if d < e {
                1.0
            } else if d == e {
                0.5
            } else {
                0.0
            };
        }
    }
    sum / count
}

fn naive_tar(distances: &[f64], same: &[bool], rate: f64) -> f64 {
    let share = |t: f64, truth: bool| {
        let of: Vec<f64> = (0..distances.len())
            .filter(|&k| same[k] == truth)
            .map(|k| distances[k])
            .collect();
        of.iter().filter(|&&d| d < t).count() as f64 / of.len() as f64
    };
    distances
        .iter()
        .copied()
        .chain([f64::INFINITY])
        .filter(|&t| share(t, false) <= rate)
        .map(|t| share(t, true))
        .fold(0.0, f64::max)
}

/// Distances in which genuine pairs tend to be closer; `grid` > 0 rounds them to multiples of 1 / grid, for ties.
fn pairs(n: usize, grid: f64, index: u64) -> (Vec<f64>, Vec<bool>) {
    let mut random = Random::new(11, Purpose::Faces, index);
    (0..n)
        .map(|k| {
            let same = k < 2 && k == 0 || k >= 2 && random.uniform() < 0.4;
            let d = f64::from(random.range(0.0, if same { 2.5 } else { 4.0 }));
            let d = if grid > 0.0 {
                (d * grid).round() / grid
            } else {
                d
            };
            (d, same)
        })
        .unzip()
}

#[test]
fn agrees_with_the_protocol_word_for_word() {
    for (case, n) in [10, 11, 19, 20, 37, 100, 103, 209].into_iter().enumerate() {
        for grid in [0.0, 3.0, 100.0] {
            let (distances, same) = pairs(n, grid, case as u64);
            let v = verify(&distances, &same).unwrap();
            assert_eq!(
                v.folds,
                naive_folds(&distances, &same),
                "{n} pairs, grid {grid}"
            );
            let auc = naive_auc(&distances, &same);
            assert!((v.auc - auc).abs() <= 1e-12, "auc {} is not {auc}", v.auc);
            for (name, rate) in FALSE_ACCEPT_RATES {
                assert_eq!(v.tar[name], naive_tar(&distances, &same, rate), "{name}");
                let threshold = v.far_threshold[name];
                let accepted = |which: bool| {
                    let of = distances.iter().zip(&same).filter(|pair| *pair.1 == which);
                    let near = of.clone().filter(|pair| *pair.0 < threshold);
                    near.count() as f64 / of.count() as f64
                };
                assert_eq!(accepted(true), v.tar[name], "{name}");
                assert!(accepted(false) <= rate, "{name}");
            }
            let mean = v.folds.iter().map(|f| f.accuracy).sum::<f64>() / 10.0;
            assert!((v.accuracy - mean).abs() <= 1e-12);
            assert_eq!(v.impostor_pairs, same.iter().filter(|s| !**s).count());
        }
    }
}

#[test]
fn the_equal_error_rate_is_interpolated() {
    let distances = [0.5, 1.0, 1.0, 2.0, 2.0, 3.0, 3.5, 3.75, 3.75, 3.8];
    let same = [
        true, true, false, true, false, true, false, false, false, false,
    ];
    let v = verify(&distances, &same).unwrap();
    // Genuine at 0.5, 1, 2, 3; impostors at 1, 2, 3.5, 3.75, 3.75, 3.8.
    // Up to 1: far 1/6, frr 1/2. Up to 2: far 1/3, frr 1/4: they cross at s = (1/3) / (1/6 + 1/4) = 4/5.
    assert!(
        (v.eer - (1.0 / 6.0 + 0.8 / 6.0)).abs() <= 1e-12,
        "{}",
        v.eer
    );
}

#[test]
fn a_false_accept_rate_may_be_met_exactly() {
    // Ten impostors at 1, 2 .. 10; genuine pairs between them.
    let distances: Vec<f64> = (2..=20).map(|k| f64::from(k) / 2.0).collect();
    let same: Vec<bool> = (2..=20).map(|k| k % 2 == 1).collect();
    let v = verify(&distances, &same).unwrap();
    // One impostor in ten may be accepted: the genuine pair at 1.5 then is; none in a hundred.
    assert_eq!((v.tar["1e-1"], v.tar["1e-2"]), (1.0 / 9.0, 0.0));
    assert_eq!((v.pairs, v.impostor_pairs), (19, 10));
}

#[test]
fn perfect_and_hopeless_distances() {
    let same: Vec<bool> = (0..33).map(|k| k % 3 == 0).collect();
    let good: Vec<f32> = same.iter().map(|&s| if s { 0.5 } else { 1.5 }).collect();
    let v = verify(&good, &same).unwrap();
    assert_eq!(
        (v.accuracy, v.accuracy_std, v.auc, v.eer),
        (1.0, 0.0, 1.0, 0.0)
    );
    assert_eq!(v.tar["1e-4"], 1.0);
    // 0.5 itself does not accept d = 0.5: the first threshold above it does.
    assert!(v.folds.iter().all(|f| f.threshold == 51.0 * 0.01));
    let bad: Vec<f64> = same.iter().map(|&s| if s { 1.5 } else { 0.5 }).collect();
    let v = verify(&bad, &same).unwrap();
    assert_eq!((v.auc, v.eer, v.tar["1e-1"]), (0.0, 1.0, 0.0));
}

#[test]
fn distances_are_those_of_unit_vectors() {
    let embeddings = [3.0, 4.0, 0.0, 2.0, 1.0, 0.0, -5.0, 0.0];
    let d = pair_distances(&embeddings, 2).unwrap();
    assert!((d[0] - (0.36 + 0.04)).abs() <= 1e-12, "{}", d[0]);
    assert!((d[1] - 4.0).abs() <= 1e-12, "{}", d[1]);
}

#[test]
fn mirror_images_combine() {
    let (f, flip) = ([3.0f32, 4.0, 0.0, 2.0], [0.0f32, 2.0, 7.0, 0.0]);
    assert_eq!(
        combine(&f, &[], 2, Tta::None).unwrap(),
        [0.6, 0.8, 0.0, 1.0]
    );
    let sum = combine(&f, &flip, 2, Tta::FlipSum).unwrap();
    let length = 45.0f64.sqrt();
    assert_eq!(sum[..2], [(3.0 / length) as f32, (6.0 / length) as f32]);
    let both = combine(&f, &flip, 2, Tta::FlipConcat).unwrap();
    assert_eq!(both.len(), 8);
    // Halved: the mean of the halves' squared distances 0.4 and 2.
    let d = pair_distances(&both, 4).unwrap();
    assert!((d[0] - 1.2).abs() <= 1e-6, "{}", d[0]);
    let error = combine(&f, &flip[..2], 2, Tta::FlipSum).unwrap_err();
    assert!(error.to_string().contains("found 2 and 4"), "{error}");
    for tta in [Tta::None, Tta::FlipSum, Tta::FlipConcat] {
        assert_eq!(tta.to_string().parse::<Tta>().unwrap(), tta);
    }
    assert!("flip".parse::<Tta>().is_err());
}

#[test]
fn examples_are_the_farthest_from_the_threshold() {
    let distances = [0.2, 1.3, 0.1, 1.1, 1.9, 0.9, 1.3];
    let same = [false, true, false, true, false, true, true];
    let of = |verdict| examples(&distances, &same, 1.0, verdict, 2);
    assert_eq!(of(Verdict::FalseAccept), [2, 0]);
    assert_eq!(of(Verdict::FalseReject), [1, 6]);
    assert_eq!(of(Verdict::RightAccept), [5]);
    assert_eq!(of(Verdict::RightReject), [4]);
}

#[test]
fn what_cannot_be_verified_is_an_error() {
    let same: Vec<bool> = (0..12).map(|k| k % 2 == 0).collect();
    let d: Vec<f64> = (0..12).map(|k| f64::from(k) * 0.3).collect();
    let says = |result: Result<Verification>, words: &str| {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(words), "\"{text}\" does not say \"{words}\"");
    };
    says(verify(&d[..11], &same), "11 distances and 12 truths");
    says(verify(&d[..9], &same[..9]), "at least 10 pairs: found 9");
    says(verify(&d, &[true; 12]), "no impostor pairs");
    says(verify(&d, &[false; 12]), "no genuine pairs");
    says(verify(&[0.7; 12], &same), "collapsed");
    let mut bad = d.clone();
    bad[5] = f64::NAN;
    says(verify(&bad, &same), "pair 5 is not finite");

    let mut random = Random::new(5, Purpose::Faces, 0);
    let mut e: Vec<f32> = (0..24 * 3).map(|_| random.normal()).collect();
    assert!(verify_embeddings(&e, 3, &same).is_ok());
    says(
        verify_embeddings(&e[..71], 3, &same),
        "do not make rows of 3",
    );
    says(verify_embeddings(&e, 0, &same), "do not make rows of 0");
    says(verify_embeddings(&e[..69], 3, &same), "even number");
    // Scaled copies of one direction are equal as unit vectors, up to rounding.
    let collapsed: Vec<f32> = (0..24)
        .flat_map(|k| [0.1, 0.7, -0.3].map(|x: f32| x * (k as f32 + 0.3)))
        .collect();
    says(verify_embeddings(&collapsed, 3, &same), "collapsed");
    e[40] = f32::INFINITY;
    says(verify_embeddings(&e, 3, &same), "image 13 is not finite");
    e[39..42].fill(0.0);
    says(verify_embeddings(&e, 3, &same), "image 13 is zero");
}

#[test]
fn json_has_the_form_that_scripts_rely_on() {
    let (distances, same) = pairs(50, 0.0, 77);
    let results = Results {
        sets: vec![SetResult {
            name: "lfw".to_owned(),
            verification: verify(&distances, &same).unwrap(),
        }],
        ..Results::default()
    };
    let text = serde_json::to_string(&results).unwrap();
    assert!(
        text.starts_with("{\"sets\":[{\"name\":\"lfw\",\"pairs\":50,"),
        "{text}"
    );
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let set = &json["sets"][0];
    for key in ["accuracy", "accuracy_std", "threshold", "auc", "eer"] {
        assert!(set[key].is_f64(), "{key}");
    }
    assert!(set["tar"]["1e-3"].is_number());
    assert_eq!(set["folds"].as_array().unwrap().len(), 10);
    assert!(set["folds"][9]["threshold"].is_number());
    assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results);
}

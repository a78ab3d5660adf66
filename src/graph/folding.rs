//! The inference program's parameter slab: filters with batch norm folded in, and slopes.

use super::program::{BatchNormLayer, Layer, LayerId};
use crate::backend::{BatchNormAt, FilterAt, bn};

/// What the folded slab is made of, layer by layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Folding {
    layers: Vec<FoldedLayer>,
    /// Source, target, length.
    slopes: Vec<(usize, usize, usize)>,
    len: usize,
}

#[derive(Clone, Debug)]
struct FoldedLayer {
    source: FilterAt,
    target: FilterAt,
    /// Output channels.
    k: usize,
    /// Elements of the filter.
    len: usize,
    depthwise: bool,
    batch_norm: Option<BatchNormAt>,
}

impl Folding {
    /// Elements of the folded slab.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn place(&mut self, len: usize) -> usize {
        let at = self.len;
        self.len += len.next_multiple_of(16);
        at
    }

    /// Places the filter of the program's next layer, and a bias.
    pub(super) fn filter(&mut self, layer: &Layer) -> FilterAt {
        let taps = layer.window.r * layer.window.s;
        let (k, len) = match layer.k {
            Some(k) => (k, k * taps * layer.c),
            None => (layer.c, taps * layer.c),
        };
        let target = FilterAt {
            weights: self.place(len),
            bias: Some(self.place(k)),
        };
        self.layers.push(FoldedLayer {
            source: layer.filter,
            target,
            k,
            len,
            depthwise: layer.k.is_none(),
            batch_norm: None,
        });
        target
    }

    /// Folds a batch norm into a layer; not if it has one already.
    pub(super) fn batch_norm(&mut self, layer: LayerId, at: BatchNormAt) -> bool {
        let folded = &mut self.layers[layer].batch_norm;
        let free = folded.is_none();
        folded.get_or_insert(at);
        free
    }

    /// Places `c` slopes that begin at `source` of the learnt slab.
    pub(super) fn slopes(&mut self, source: usize, c: usize) -> usize {
        let target = self.place(c);
        self.slopes.push((source, target, c));
        target
    }

    /// Computes the folded slab from the learnt parameters and the running statistics, in f64.
    pub(crate) fn fold(&self, params: &[f32], statistics: &[f32]) -> Vec<f32> {
        let mut folded = vec![0.0; self.len];
        for layer in &self.layers {
            let (scale, shift) = match layer.batch_norm {
                Some(at) => scale_and_shift(at, layer.k, params, statistics),
                None => (vec![1.0; layer.k], vec![0.0; layer.k]),
            };
            let a_filter = layer.len / layer.k;
            for i in 0..layer.len {
                let k = if layer.depthwise {
                    i % layer.k
                } else {
                    i / a_filter
                };
                let weight = f64::from(params[layer.source.weights + i]);
                folded[layer.target.weights + i] = (weight * scale[k]) as f32;
            }
            let bias_at = layer.target.bias.expect("a folded layer has a bias");
            for k in 0..layer.k {
                let bias = layer
                    .source
                    .bias
                    .map_or(0.0, |at| f64::from(params[at + k]));
                folded[bias_at + k] = (bias * scale[k] + shift[k]) as f32;
            }
        }
        for (source, target, len) in &self.slopes {
            folded[*target..][..*len].copy_from_slice(&params[*source..][..*len]);
        }
        folded
    }
}

/// Forward coefficients ([`bn`]) of a batch norm from its running statistics.
pub(crate) fn frozen(layer: &BatchNormLayer, params: &[f32], statistics: &[f32]) -> Vec<f32> {
    let c = layer.shape.c;
    let (scale, shift) = scale_and_shift(layer.at, c, params, statistics);
    let mut forward = vec![0.0; bn::forward_len(c)];
    for i in 0..c {
        forward[bn::SCALE * c + i] = scale[i] as f32;
        forward[bn::SHIFT * c + i] = shift[i] as f32;
    }
    forward
}

/// What a batch norm does to each channel with its running statistics: `x * scale + shift`.
pub(crate) fn scale_and_shift(
    at: BatchNormAt,
    c: usize,
    params: &[f32],
    statistics: &[f32],
) -> (Vec<f64>, Vec<f64>) {
    let of = |slab: &[f32], at: Option<usize>, i: usize, absent: f64| {
        at.map_or(absent, |at| f64::from(slab[at + i]))
    };
    (0..c)
        .map(|i| {
            let mean = of(statistics, Some(at.statistics), i, 0.0);
            let variance = of(statistics, Some(at.statistics + c), i, 1.0);
            let scale = of(params, at.gamma, i, 1.0) / (variance + f64::from(at.epsilon)).sqrt();
            (scale, of(params, at.beta, i, 0.0) - mean * scale)
        })
        .unzip()
}

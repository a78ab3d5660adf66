//! What an ONNX graph computes, from the operators' definitions: naive loops in f64 on N x C x H x W.
//!
//! It knows nothing of layers, views or layouts. `tests/onnx_network.rs` holds it against PyTorch's answers first.

use arcface_cu::weights::formats::onnx::{Attribute, Elements, Graph, Node, Tensor};
use std::collections::HashMap;

/// Numbers in row-major order; whole ones, too.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) shape: Vec<usize>,
    pub(crate) numbers: Vec<f64>,
}

impl Value {
    pub(crate) fn new(shape: &[usize], numbers: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), numbers.len());
        Value {
            shape: shape.to_vec(),
            numbers,
        }
    }

    fn of(tensor: &Tensor) -> Self {
        let numbers = match &tensor.elements {
            Elements::Floats(values) => values.iter().map(|&x| f64::from(x)).collect(),
            Elements::Ints(values) => values.iter().map(|&n| n as f64).collect(),
            other => panic!("{other:?}"),
        };
        Value::new(&tensor.shape, numbers)
    }

    fn four(&self) -> [usize; 4] {
        self.shape[..].try_into().expect("N x C x H x W")
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Value::new(&self.shape, self.numbers.iter().map(|&x| f(x)).collect())
    }

    /// Both, broadcast to the same shape.
    fn with(&self, other: &Value, f: impl Fn(f64, f64) -> f64) -> Self {
        let rank = self.shape.len().max(other.shape.len());
        let wide =
            |value: &Value| [vec![1; rank - value.shape.len()], value.shape.clone()].concat();
        let (a, b) = (wide(self), wide(other));
        let axes = a.iter().zip(&b);
        let shape: Vec<usize> = axes
            .map(|(&a, &b)| {
                assert!(a == b || a == 1 || b == 1, "{a} and {b}");
                a.max(b)
            })
            .collect();
        let at = |of: &[usize], mut i: usize| {
            let (mut at, mut step) = (0, 1);
            for axis in (0..rank).rev() {
                at += i % shape[axis] % of[axis] * step;
                (i, step) = (i / shape[axis], step * of[axis]);
            }
            at
        };
        let all = 0..shape.iter().product();
        let numbers = all.map(|i| f(self.numbers[at(&a, i)], other.numbers[at(&b, i)]));
        let numbers = numbers.collect();
        Value { shape, numbers }
    }

    fn reshaped(&self, target: &[f64]) -> Self {
        let all = self.numbers.len();
        let mut shape: Vec<usize> = (target.iter().enumerate())
            .map(|(axis, &n)| match n {
                0.0 => self.shape[axis],
                -1.0 => 1,
                n => n as usize,
            })
            .collect();
        if let Some(open) = target.iter().position(|&n| n == -1.0) {
            shape[open] = all / shape.iter().product::<usize>();
        }
        Value::new(&shape, self.numbers.clone())
    }

    fn transposed(&self, perm: &[usize]) -> Self {
        let shape: Vec<usize> = perm.iter().map(|&axis| self.shape[axis]).collect();
        let stride = |axis: usize| self.shape[axis + 1..].iter().product::<usize>();
        let at = |mut i: usize| {
            let mut at = 0;
            for (axis, length) in perm.iter().zip(&shape).rev() {
                at += i % length * stride(*axis);
                i /= length;
            }
            self.numbers[at]
        };
        Value::new(&shape, (0..self.numbers.len()).map(at).collect())
    }
}

fn ints(node: &Node, name: &str, absent: &[i64]) -> Vec<i64> {
    match node.attribute(name) {
        Some(Attribute::Ints(ints)) => ints.clone(),
        None => absent.to_vec(),
        other => panic!("{name}: {other:?}"),
    }
}

fn int(node: &Node, name: &str, absent: i64) -> i64 {
    match node.attribute(name) {
        Some(Attribute::Int(n)) => *n,
        None => absent,
        other => panic!("{name}: {other:?}"),
    }
}

fn float(node: &Node, name: &str, absent: f64) -> f64 {
    match node.attribute(name) {
        Some(Attribute::Float(x)) => f64::from(*x),
        None => absent,
        other => panic!("{name}: {other:?}"),
    }
}

/// Rows, columns and the numbers of the window at each place of the output: (which of N x C, place, numbers), where `None`
/// lies outside.
fn windows(
    node: &Node,
    [h, w]: [usize; 2],
    kernel: &[i64],
) -> ([usize; 2], Vec<Vec<Option<usize>>>) {
    let strides = ints(node, "strides", &[1, 1]);
    let pads = ints(node, "pads", &[0; 4]);
    if let Some(Attribute::Text(how)) = node.attribute("auto_pad") {
        assert_eq!(how, "NOTSET");
    }
    let ceil = int(node, "ceil_mode", 0) == 1;
    let count = |axis: usize, size: usize| {
        let room = size as i64 + pads[axis] + pads[axis + 2] - kernel[axis];
        let steps = room as f64 / strides[axis] as f64;
        (if ceil { steps.ceil() } else { steps.floor() }) as usize + 1
    };
    let out = [count(0, h), count(1, w)];
    let place = |p: usize, q: usize| {
        let taps = (0..kernel[0]).flat_map(|r| (0..kernel[1]).map(move |s| (r, s)));
        taps.map(|(r, s)| {
            let y = p as i64 * strides[0] + r - pads[0];
            let x = q as i64 * strides[1] + s - pads[1];
            let inside = (0..h as i64).contains(&y) && (0..w as i64).contains(&x);
            inside.then_some(y as usize * w + x as usize)
        })
        .collect()
    };
    let places = (0..out[0]).flat_map(|p| (0..out[1]).map(move |q| (p, q)));
    (out, places.map(|(p, q)| place(p, q)).collect())
}

/// A pool of each channel by itself.
fn pool(node: &Node, x: &Value, of: impl Fn(&[Option<f64>]) -> f64) -> Value {
    let [n, c, h, w] = x.four();
    let (out, places) = windows(node, [h, w], &ints(node, "kernel_shape", &[]));
    let mut numbers = Vec::new();
    for map in x.numbers.chunks_exact(h * w) {
        numbers.extend(places.iter().map(|place| {
            let taps: Vec<Option<f64>> = place.iter().map(|at| at.map(|at| map[at])).collect();
            of(&taps)
        }));
    }
    Value::new(&[n, c, out[0], out[1]], numbers)
}

fn conv(node: &Node, x: &Value, weights: &Value, bias: Option<&Value>) -> Value {
    let ([n, c, h, w], [k, a_filter, r, s]) = (x.four(), weights.four());
    let group = int(node, "group", 1) as usize;
    assert_eq!((a_filter * group, k % group), (c, 0));
    let (out, places) = windows(node, [h, w], &[r as i64, s as i64]);
    let mut numbers = Vec::new();
    for (image, filter) in (0..n).flat_map(|image| (0..k).map(move |k| (image, k))) {
        let first = filter / (k / group) * a_filter;
        for place in &places {
            let mut sum = bias.map_or(0.0, |bias| bias.numbers[filter]);
            for channel in 0..a_filter {
                let map = &x.numbers[(image * c + first + channel) * h * w..][..h * w];
                let taps = &weights.numbers[(filter * a_filter + channel) * r * s..][..r * s];
                for (at, weight) in place.iter().zip(taps) {
                    sum += at.map_or(0.0, |at| map[at] * weight);
                }
            }
            numbers.push(sum);
        }
    }
    Value::new(&[n, k, out[0], out[1]], numbers)
}

fn product(a: &Value, b: &Value) -> Value {
    let (&[n, c], &[rows, k]) = (&a.shape[..], &b.shape[..]) else {
        panic!("{:?} times {:?}", a.shape, b.shape)
    };
    assert_eq!(c, rows);
    let element = |i: usize| {
        (0..c)
            .map(|j| a.numbers[i / k * c + j] * b.numbers[j * k + i % k])
            .sum()
    };
    Value::new(&[n, k], (0..n * k).map(element).collect())
}

/// The graph's first output for an input.
pub(crate) fn run(graph: &Graph, input: Value) -> Value {
    let constants = graph.initializers.iter();
    let mut values: HashMap<&str, Value> = constants.map(|t| (&t.name[..], Value::of(t))).collect();
    values.insert(&graph.inputs[0].name, input);
    for node in &graph.nodes {
        let value = {
            let get = |i: usize| node.input(i).map(|name| &values[name]);
            let x = get(0);
            compute(node, x, &get)
        };
        if let Some(value) = value {
            values.insert(&node.outputs[0], value);
        }
    }
    values[&graph.outputs[0].name[..]].clone()
}

/// None of an operator that is not here: then nothing may read what it gives.
fn compute<'a>(
    node: &Node,
    x: Option<&'a Value>,
    get: &impl Fn(usize) -> Option<&'a Value>,
) -> Option<Value> {
    if node.op == "Constant" {
        let Some((_, Attribute::Tensor(tensor))) = node.attributes.first() else {
            panic!("{node:?}")
        };
        return Some(Value::of(tensor));
    }
    let (x, y) = (x.expect("an input"), get(1));
    let second = || y.expect("a second input");
    let by_channel = |i: usize, of: &Value| of.numbers[i % of.numbers.len()];
    Some(match &node.op[..] {
        "Identity" | "Dropout" | "Cast" => x.clone(),
        "Relu" => x.map(|x| x.max(0.0)),
        "Clip" => {
            let limit = |name, i: usize, none| {
                get(i).map_or(float(node, name, none), |limit| limit.numbers[0])
            };
            let (min, max) = (
                limit("min", 1, f64::NEG_INFINITY),
                limit("max", 2, f64::INFINITY),
            );
            x.map(|x| x.clamp(min, max))
        }
        "LeakyRelu" => {
            let alpha = float(node, "alpha", 0.01);
            x.map(|x| if x < 0.0 { alpha * x } else { x })
        }
        "PRelu" => x.with(second(), |x, slope| if x < 0.0 { slope * x } else { x }),
        "Add" | "Sum" => x.with(second(), |a, b| a + b),
        "Sub" => x.with(second(), |a, b| a - b),
        "Mul" => x.with(second(), |a, b| a * b),
        "Div" => x.with(second(), |a, b| a / b),
        "Conv" => conv(node, x, second(), get(2)),
        "MatMul" => product(x, second()),
        "Gemm" => {
            let weights = second();
            let weights = match int(node, "transB", 0) {
                1 => weights.transposed(&[1, 0]),
                _ => weights.clone(),
            };
            let y = product(x, &weights).map(|y| y * float(node, "alpha", 1.0));
            match get(2) {
                Some(bias) => y.with(bias, |y, b| y + b * float(node, "beta", 1.0)),
                None => y,
            }
        }
        "BatchNormalization" => {
            let epsilon = float(node, "epsilon", f64::from(1e-5_f32));
            let pixels: usize = x.shape[2..].iter().product();
            let [gamma, beta, mean, variance] = [1, 2, 3, 4].map(|i| get(i).unwrap());
            let numbers = x.numbers.iter().enumerate();
            let numbers = numbers.map(|(i, x)| {
                let of = |vector| by_channel(i / pixels, vector);
                of(gamma) * (x - of(mean)) / (of(variance) + epsilon).sqrt() + of(beta)
            });
            Value::new(&x.shape, numbers.collect())
        }
        "MaxPool" => pool(node, x, |taps| {
            let inside = taps.iter().flatten().copied();
            inside.fold(f64::NEG_INFINITY, f64::max)
        }),
        "AveragePool" => {
            let outside = int(node, "count_include_pad", 0) == 1;
            pool(node, x, |taps| {
                let inside: Vec<f64> = taps.iter().flatten().copied().collect();
                let count = if outside { taps.len() } else { inside.len() };
                inside.iter().sum::<f64>() / count as f64
            })
        }
        "GlobalAveragePool" | "ReduceMean" => {
            let axes = ints(node, "axes", &[2, 3]);
            assert!(axes == [2, 3] || axes == [-2, -1], "{axes:?}");
            let [n, c, h, w] = x.four();
            let maps = x.numbers.chunks_exact(h * w);
            let numbers = maps.map(|map| map.iter().sum::<f64>() / (h * w) as f64);
            match int(node, "keepdims", 1) {
                1 => Value::new(&[n, c, 1, 1], numbers.collect()),
                _ => Value::new(&[n, c], numbers.collect()),
            }
        }
        "Flatten" => {
            assert_eq!(int(node, "axis", 1), 1);
            x.reshaped(&[x.shape[0] as f64, -1.0])
        }
        "Unsqueeze" => {
            let axes: Vec<i64> = match y {
                Some(axes) => axes.numbers.iter().map(|&axis| axis as i64).collect(),
                None => ints(node, "axes", &[]),
            };
            let (mut rest, rank) = (x.shape.iter(), x.shape.len() + axes.len());
            let shape = (0..rank as i64).map(|axis| match axes.contains(&axis) {
                true => 1,
                false => *rest.next().expect("an axis"),
            });
            Value::new(&Vec::from_iter(shape), x.numbers.clone())
        }
        "Reshape" => x.reshaped(&second().numbers),
        "Squeeze" => {
            let axes: Vec<usize> = match y {
                Some(axes) => axes.numbers.iter().map(|&axis| axis as usize).collect(),
                None => ints(node, "axes", &[])
                    .iter()
                    .map(|&axis| axis as usize)
                    .collect(),
            };
            let kept = (0..x.shape.len()).filter(|axis| !axes.contains(axis));
            let shape: Vec<usize> = kept.map(|axis| x.shape[axis]).collect();
            Value::new(&shape, x.numbers.clone())
        }
        "Transpose" => {
            let reversed: Vec<i64> = (0..x.shape.len() as i64).rev().collect();
            let perm = ints(node, "perm", &reversed);
            let perm: Vec<usize> = perm.iter().map(|&axis| axis as usize).collect();
            x.transposed(&perm)
        }
        "Pad" => {
            let pads: Vec<usize> = match y {
                Some(pads) => pads.numbers.iter().map(|&n| n as usize).collect(),
                None => ints(node, "pads", &[])
                    .iter()
                    .map(|&n| n as usize)
                    .collect(),
            };
            padded(x, &pads)
        }
        _ => return None,
    })
}

/// Zeros around the images: top, left, bottom, right at places 2, 3, 6, 7.
fn padded(x: &Value, pads: &[usize]) -> Value {
    let [n, c, h, w] = x.four();
    let [rows, columns] = [h + pads[2] + pads[6], w + pads[3] + pads[7]];
    let mut numbers = vec![0.0; n * c * rows * columns];
    for (i, number) in x.numbers.iter().enumerate() {
        let (map, row, column) = (i / (h * w), i / w % h, i % w);
        numbers[(map * rows + row + pads[2]) * columns + column + pads[3]] = *number;
    }
    Value::new(&[n, c, rows, columns], numbers)
}

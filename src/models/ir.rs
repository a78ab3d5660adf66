//! The IR networks of AdaFace, CVLFace and face.evoLVe: IResNet's ancestors, for 112 x 112 faces.
//!
//! Sources of names and constants: `net.py` of mk-minchul/AdaFace, `models/iresnet/model.py` of mk-minchul/CVLface (the same
//! network), `backbone/model_irse.py` of ZhaoJ9014/face.evoLVe. Layers are called as in their state dicts. A block is BN,
//! 3x3, BN, PReLU, strided 3x3, BN beside a shortcut; face.evoLVe has no batch norm before its PReLU. Where a block is as
//! wide as the one before it, its shortcut is a max pool of one pixel, which only takes every `stride`th pixel (of stride
//! 1, nothing at all); else it is a 1x1 convolution with batch norm. No convolution has a bias; batch norm has epsilon 1e-5
//! and keeps 0.9.
//!
//! AdaFace's own weights take blue, green, red; those of the others red, green, blue. Pixels are x/127.5 - 1 in all.

use super::Embedding;
use crate::Result;
use crate::backend::Activation;
use crate::backend::geometry::Padding;
use crate::graph::params::Init;
use crate::graph::{BatchNorm, Builder, Model, NodeId, Square};

const NORM: BatchNorm = BatchNorm {
    epsilon: 1e-5,
    momentum: 0.9,
    gamma: true,
    beta: true,
};

/// Whose network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// AdaFace's and CVLFace's.
    AdaFace,
    /// face.evoLVe's: a block's first convolution goes into its PReLU as it is.
    Evolve,
}

impl Family {
    fn init(self) -> Init {
        match self {
            Family::AdaFace => Init::HeFanOut,
            Family::Evolve => Init::GlorotUniform,
        }
    }
}

/// A network of so many blocks in each of its four stages, on `size` x `size` images.
///
/// # Errors
/// An image too small for the network.
pub fn ir(size: usize, family: Family, blocks: [usize; 4], embedding: Embedding) -> Result<Model> {
    let (mut g, input) = Builder::new(size, size);
    let mut net = Net { g: &mut g, family };
    let x = net.conv("input_layer.0", input, 64, (3, 1));
    let x = net.g.batch_norm("input_layer.1", x, NORM);
    let mut x = (net.g).activation("input_layer.2", x, Activation::PRelu(()));
    let mut place = 0;
    for (blocks, filters) in blocks.into_iter().zip([64, 128, 256, 512]) {
        for block in 0..blocks {
            let stride = if block == 0 { 2 } else { 1 };
            x = net.block(&format!("body.{place}"), x, filters, stride);
            place += 1;
        }
    }
    embedding.append(&mut g, x, NORM, family.init());
    g.finish()
}

/// The embedding layers: batch norm, dropout, flatten, dense with bias, batch norm.
pub(super) fn embed(g: &mut Builder, x: NodeId, (d, dropout): (usize, f32), family: Family) {
    let x = g.batch_norm("output_layer.0", x, NORM);
    let x = match dropout > 0.0 {
        true => g.dropout("output_layer.1", x, dropout),
        false => x,
    };
    let x = g.flatten("output_layer.2", x);
    let x = g.linear("output_layer.3", x, d, true, family.init());
    let learnt = family == Family::Evolve;
    let norm = BatchNorm {
        gamma: learnt,
        beta: learnt,
        ..NORM
    };
    g.batch_norm("output_layer.4", x, norm);
}

struct Net<'a> {
    g: &'a mut Builder,
    family: Family,
}

impl Net<'_> {
    /// A convolution that keeps the size except for its stride; `(kernel, stride)`.
    fn conv(
        &mut self,
        name: &str,
        x: NodeId,
        filters: usize,
        (kernel, stride): (usize, usize),
    ) -> NodeId {
        let square = Square::new(kernel, stride, Padding::same(kernel / 2));
        let init = self.family.init();
        self.g.conv2d(name, x, filters, square, false, init)
    }

    fn block(&mut self, name: &str, x: NodeId, filters: usize, stride: usize) -> NodeId {
        let mut parts = 0;
        let mut part = || {
            parts += 1;
            format!("{name}.res_layer.{}", parts - 1)
        };
        let y = self.g.batch_norm(&part(), x, NORM);
        let mut y = self.conv(&part(), y, filters, (3, 1));
        if self.family == Family::AdaFace {
            y = self.g.batch_norm(&part(), y, NORM);
        }
        let y = self.g.activation(&part(), y, Activation::PRelu(()));
        let y = self.conv(&part(), y, filters, (3, stride));
        let y = self.g.batch_norm(&part(), y, NORM);
        let shortcut = format!("{name}.shortcut_layer");
        let x = if self.g.shape(x).c != filters {
            let x = self.conv(&format!("{shortcut}.0"), x, filters, (1, stride));
            self.g.batch_norm(&format!("{shortcut}.1"), x, NORM)
        } else if stride > 1 {
            let pixel = Square::new(1, stride, Padding::default());
            self.g.max_pool(&shortcut, x, pixel)
        } else {
            x
        };
        self.g.add(&format!("{name}.add"), x, y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Op;
    use crate::graph::layers::Layers;
    use crate::graph::params::ParamTable;
    use crate::models::{Network, build};

    /// `reference/ir.py` counts them in PyTorch.
    #[test]
    fn parameters_are_those_of_their_sources() {
        for (network, embedding, learnt, statistics) in [
            (Network::Ir18, Embedding::ir(512), 24_020_352, 14_592),
            (Network::Ir50, Embedding::ir(512), 43_585_600, 38_016),
            (Network::Ir101, Embedding::ir(512), 65_150_912, 69_504),
            (
                Network::EvolveIr50,
                Embedding::evolve_ir(512),
                43_574_976,
                26_368,
            ),
        ] {
            let model = build(network, 112, embedding).unwrap();
            let table = ParamTable::new(&model);
            let count: usize = table.params().iter().map(|p| p.len()).sum();
            assert_eq!(
                (count, table.statistics_len()),
                (learnt, statistics),
                "{network:?}"
            );
        }
    }

    /// In a list of layers, too, the last batch norm learns nothing; of others the list says no more than before.
    #[test]
    fn a_list_of_layers_is_the_same_network() {
        let model = build(Network::Ir18, 112, Embedding::ir(8)).unwrap();
        let text = serde_json::to_string(&Layers::of(&model).unwrap()).unwrap();
        assert_eq!(text.matches("\"beta\":false").count(), 1);
        assert_eq!(text.matches("\"beta\"").count(), 1);
        let layers: Layers = serde_json::from_str(&text).unwrap();
        assert_eq!(layers.build().unwrap(), model);
    }

    #[test]
    fn a_shortcut_is_a_max_pool_a_convolution_or_nothing() {
        let model = build(Network::Ir50, 112, Embedding::ir(512)).unwrap();
        let pools = (model.nodes().iter()).filter(|node| matches!(node.op, Op::MaxPool(_)));
        let names: Vec<&str> = pools.map(|node| &node.name[..]).collect();
        assert_eq!(names, ["body.0.shortcut_layer"]);
        let convs = (model.nodes().iter()).filter(|node| node.name.ends_with("shortcut_layer.0"));
        let names: Vec<&str> = convs.map(|node| &node.name[..]).collect();
        let expected = [3, 7, 21].map(|place| format!("body.{place}.shortcut_layer.0"));
        assert_eq!(names, expected);
    }
}

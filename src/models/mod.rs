//! The networks, each as the framework it comes from builds it: layer names, paddings, epsilons, momenta, biases and
//! initialisers.

mod insightface_mbf;
mod ir;
mod iresnet;
mod mobilefacenet;
mod mobilenet_v2;
mod resnet;

pub use insightface_mbf::insightface_mbf;
pub use ir::{Family, ir};
pub use iresnet::{iresnet18, iresnet34, iresnet50, iresnet100};
pub use mobilefacenet::{mobilefacenet, mobilefacenet_tiny};
pub use mobilenet_v2::mobilenet_v2;
pub use resnet::{resnet50, resnet101, resnet152};

use crate::graph::params::Init;
use crate::graph::{BatchNorm, Builder, Model, NodeId};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Which backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Keras's ResNet50.
    Resnet50,
    /// Keras's ResNet101.
    Resnet101,
    /// Keras's ResNet152.
    Resnet152,
    /// Keras's MobileNetV2, width 1.0.
    MobilenetV2,
    /// MobileFaceNet as in the paper.
    Mobilefacenet,
    /// MobileFaceNet with half the channels and fewer blocks, for demonstrations.
    MobilefacenetTiny,
    /// InsightFace's IResNet18.
    Iresnet18,
    /// InsightFace's IResNet34.
    Iresnet34,
    /// InsightFace's IResNet50.
    Iresnet50,
    /// InsightFace's IResNet100.
    Iresnet100,
    /// InsightFace's MobileFaceNet.
    InsightfaceMbf,
    /// IR-18 of AdaFace and CVLFace.
    Ir18,
    /// Their IR-34.
    Ir34,
    /// Their IR-50.
    Ir50,
    /// Their IR-101.
    Ir101,
    /// face.evoLVe's IR-50.
    EvolveIr50,
    /// Its IR-101.
    EvolveIr101,
    /// Its IR-152.
    EvolveIr152,
}

impl Network {
    /// All of them.
    pub const ALL: [Network; 18] = [
        Network::Resnet50,
        Network::Resnet101,
        Network::Resnet152,
        Network::MobilenetV2,
        Network::Mobilefacenet,
        Network::MobilefacenetTiny,
        Network::Iresnet18,
        Network::Iresnet34,
        Network::Iresnet50,
        Network::Iresnet100,
        Network::InsightfaceMbf,
        Network::Ir18,
        Network::Ir34,
        Network::Ir50,
        Network::Ir101,
        Network::EvolveIr50,
        Network::EvolveIr101,
        Network::EvolveIr152,
    ];

    /// Its name on the command line and in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Network::Resnet50 => "resnet50",
            Network::Resnet101 => "resnet101",
            Network::Resnet152 => "resnet152",
            Network::MobilenetV2 => "mobilenet-v2",
            Network::Mobilefacenet => "mobilefacenet",
            Network::MobilefacenetTiny => "mobilefacenet-tiny",
            Network::Iresnet18 => "iresnet18",
            Network::Iresnet34 => "iresnet34",
            Network::Iresnet50 => "iresnet50",
            Network::Iresnet100 => "iresnet100",
            Network::InsightfaceMbf => "insightface-mbf",
            Network::Ir18 => "ir18",
            Network::Ir34 => "ir34",
            Network::Ir50 => "ir50",
            Network::Ir101 => "ir101",
            Network::EvolveIr50 => "evolve-ir50",
            Network::EvolveIr101 => "evolve-ir101",
            Network::EvolveIr152 => "evolve-ir152",
        }
    }
}

impl Network {
    /// Whose IR network it is, if it is one.
    pub fn family(self) -> Option<Family> {
        match self {
            Network::Ir18 | Network::Ir34 | Network::Ir50 | Network::Ir101 => Some(Family::AdaFace),
            Network::EvolveIr50 | Network::EvolveIr101 | Network::EvolveIr152 => {
                Some(Family::Evolve)
            }
            _ => None,
        }
    }
}

impl FromStr for Network {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Network::ALL.into_iter().find(|known| known.name() == name);
        known.ok_or_else(|| {
            let names = Network::ALL.map(Network::name).join(", ");
            Error::Usage(format!("there is no network {name}; there are {names}"))
        })
    }
}

/// Builds a network on `size` x `size` images.
///
/// # Errors
/// An image too small for the network, an embedding or a dropout rate that makes no sense.
pub fn build(network: Network, size: usize, embedding: Embedding) -> Result<Model> {
    if embedding.size() == 0 {
        return Err(Error::Invalid(
            "the embedding size must be at least 1".into(),
        ));
    }
    match network {
        Network::Resnet50 => resnet50(size, embedding),
        Network::Resnet101 => resnet101(size, embedding),
        Network::Resnet152 => resnet152(size, embedding),
        Network::MobilenetV2 => mobilenet_v2(size, embedding),
        Network::Mobilefacenet => mobilefacenet(size, embedding),
        Network::MobilefacenetTiny => mobilefacenet_tiny(size, embedding),
        Network::Iresnet18 => iresnet18(size, embedding),
        Network::Iresnet34 => iresnet34(size, embedding),
        Network::Iresnet50 => iresnet50(size, embedding),
        Network::Iresnet100 => iresnet100(size, embedding),
        Network::InsightfaceMbf => insightface_mbf(size, embedding),
        Network::Ir18 => ir(size, Family::AdaFace, [2, 2, 2, 2], embedding),
        Network::Ir34 => ir(size, Family::AdaFace, [3, 4, 6, 3], embedding),
        Network::Ir50 => ir(size, Family::AdaFace, [3, 4, 14, 3], embedding),
        Network::Ir101 => ir(size, Family::AdaFace, [3, 13, 30, 3], embedding),
        Network::EvolveIr50 => ir(size, Family::Evolve, [3, 4, 14, 3], embedding),
        Network::EvolveIr101 => ir(size, Family::Evolve, [3, 13, 30, 3], embedding),
        Network::EvolveIr152 => ir(size, Family::Evolve, [3, 8, 36, 3], embedding),
    }
}

/// How a backbone's feature map becomes an embedding.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Embedding {
    /// Global average pooling, dropout, dense with bias: the original TensorFlow project's.
    PoolDropoutDense {
        /// Embedding size D.
        size: usize,
        /// Dropout's rate.
        dropout: f32,
    },
    /// Batch norm, dropout, flatten (H, W, C), dense with bias, batch norm: arcface-tf2's.
    BatchNormDropoutFlattenDense {
        /// Embedding size D.
        size: usize,
        /// Dropout's rate.
        dropout: f32,
    },
    /// The same with a batch norm of fixed scale at the end: InsightFace's "E".
    InsightFaceE {
        /// Embedding size D.
        size: usize,
        /// Dropout's rate.
        dropout: f32,
    },
    /// A global depthwise convolution and a linear one with batch norm: MobileFaceNet's own.
    GlobalDepthwise {
        /// Embedding size D.
        size: usize,
    },
    /// The same with the layers of InsightFace's MobileFaceNet: the linear one is fully connected.
    InsightfaceGdc {
        /// Embedding size D.
        size: usize,
    },
    /// The layers of "E" as AdaFace and CVLFace have them, with a batch norm at the end that learns nothing.
    Ir {
        /// Embedding size D.
        size: usize,
        /// Dropout's rate.
        dropout: f32,
    },
    /// The same as face.evoLVe has them: the batch norm at the end learns its scale and shift.
    EvolveIr {
        /// Embedding size D.
        size: usize,
        /// Dropout's rate.
        dropout: f32,
    },
}

/// What Keras's `BatchNormalization()` has where nothing else is said, as in arcface-tf2's output layer, whatever its backbone.
const KERAS_NORM: BatchNorm = BatchNorm {
    epsilon: 1e-3,
    momentum: 0.99,
    gamma: true,
    beta: true,
};

impl Embedding {
    /// Global average pooling, dropout 0.5, dense.
    pub fn pool_dropout_dense(size: usize) -> Self {
        Embedding::PoolDropoutDense { size, dropout: 0.5 }
    }

    /// Batch norm, dropout 0.5, flatten, dense, batch norm.
    pub fn batch_norm_dropout_flatten_dense(size: usize) -> Self {
        Embedding::BatchNormDropoutFlattenDense { size, dropout: 0.5 }
    }

    /// InsightFace's "E" without dropout, as its r50 recipe has it.
    pub fn insightface_e(size: usize) -> Self {
        Embedding::InsightFaceE { size, dropout: 0.0 }
    }

    /// AdaFace's and CVLFace's.
    pub fn ir(size: usize) -> Self {
        Embedding::Ir { size, dropout: 0.4 }
    }

    /// face.evoLVe's.
    pub fn evolve_ir(size: usize) -> Self {
        Embedding::EvolveIr { size, dropout: 0.5 }
    }

    /// Embedding size D.
    pub fn size(&self) -> usize {
        match *self {
            Embedding::PoolDropoutDense { size, .. }
            | Embedding::BatchNormDropoutFlattenDense { size, .. }
            | Embedding::InsightFaceE { size, .. }
            | Embedding::GlobalDepthwise { size }
            | Embedding::InsightfaceGdc { size }
            | Embedding::Ir { size, .. }
            | Embedding::EvolveIr { size, .. } => size,
        }
    }

    /// Whose IR networks end so, if it is theirs.
    pub fn family(&self) -> Option<Family> {
        match self {
            Embedding::Ir { .. } => Some(Family::AdaFace),
            Embedding::EvolveIr { .. } => Some(Family::Evolve),
            _ => None,
        }
    }

    /// The same layers for embeddings of another size.
    pub fn with_size(mut self, d: usize) -> Self {
        match &mut self {
            Embedding::PoolDropoutDense { size, .. }
            | Embedding::BatchNormDropoutFlattenDense { size, .. }
            | Embedding::InsightFaceE { size, .. }
            | Embedding::GlobalDepthwise { size }
            | Embedding::InsightfaceGdc { size }
            | Embedding::Ir { size, .. }
            | Embedding::EvolveIr { size, .. } => *size = d,
        }
        self
    }

    /// Appends the layers to a backbone whose batch norms have the constants `norm`.
    fn append(self, g: &mut Builder, x: NodeId, norm: BatchNorm, init: Init) {
        match self {
            Embedding::PoolDropoutDense { size, dropout } => {
                let x = g.global_avg_pool("avg_pool", x);
                let x = g.dropout("dropout", x, dropout);
                g.linear("dense", x, size, true, init);
            }
            Embedding::BatchNormDropoutFlattenDense { size, dropout } => {
                let norm = KERAS_NORM;
                let x = g.batch_norm("batch_normalization", x, norm);
                let x = g.dropout("dropout", x, dropout);
                let x = g.flatten("flatten", x);
                let x = g.linear("dense", x, size, true, init);
                g.batch_norm("batch_normalization_1", x, norm);
            }
            Embedding::InsightFaceE { size, dropout } => {
                let x = g.batch_norm("bn2", x, norm);
                let x = if dropout > 0.0 {
                    g.dropout("dropout", x, dropout)
                } else {
                    x
                };
                let x = g.flatten("flatten", x);
                let x = g.linear("fc", x, size, true, Init::FanInUniform);
                let fixed = BatchNorm {
                    gamma: false,
                    ..norm
                };
                g.batch_norm("features", x, fixed);
            }
            Embedding::GlobalDepthwise { size } => mobilefacenet::embed(g, x, size),
            Embedding::InsightfaceGdc { size } => insightface_mbf::embed(g, x, size),
            Embedding::Ir { size, dropout } => ir::embed(g, x, (size, dropout), Family::AdaFace),
            Embedding::EvolveIr { size, dropout } => {
                ir::embed(g, x, (size, dropout), Family::Evolve);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_one_name_everywhere() {
        for network in Network::ALL {
            assert_eq!(serde_json::to_value(network).unwrap(), network.name());
            assert_eq!(network.name().parse::<Network>().unwrap(), network);
        }
        let error = "resnet".parse::<Network>().unwrap_err().to_string();
        assert!(error.contains("resnet50, resnet101"), "{error}");
    }
}

//! `plan`: memory and arithmetic before running.

use super::device::{DeviceArgs, Gpus, OnDevice, with_device};
use super::output::{count, grouped, say, size};
use super::recipe::RecipeArgs;
use super::weights;
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Element};
use crate::graph::params::ParamTable;
use crate::graph::plan::MemoryPlan;
use crate::graph::{Model, infer, train};
use crate::head::ArcFace;
use crate::recipe::config::Precision;
use crate::{Error, Result};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Plan for the network in FILE, of any kind that `import` reads. Default: the preset's.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["preset", "config"])]
    weights: Option<PathBuf>,
    /// Identities to train on, V.
    #[arg(long, value_name = "V", default_value_t = 85_642)]
    classes: usize,
    /// Plan embedding with trained weights, instead of training. Default: off.
    #[arg(long)]
    infer: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Memory to plan for, in GiB. Default: what is free on the device.
    #[arg(long, value_name = "GIB")]
    memory: Option<f64>,
    /// How many of the largest slots to list.
    #[arg(long, value_name = "N", default_value_t = 12)]
    rows: usize,
}

/// Plans embedding on one kind of device.
type PlanInference = fn(&Model, Element) -> MemoryPlan;

/// Asks a device for its free memory, for its elements under a precision, and how embedding is planned for it.
struct Ask<'a> {
    precision: Precision,
    free: &'a mut u64,
    element: &'a mut Element,
    plan_inference: &'a mut PlanInference,
}

impl OnDevice for Ask<'_> {
    fn run<B: Backend>(self, backend: B) -> Result<()> {
        *self.free = backend.memory_available();
        *self.element = self.precision.element(&backend)?;
        *self.plan_inference = infer::memory_plan::<B>;
        Ok(())
    }
}

pub(super) fn run(args: Args, gpus: &impl Gpus) -> Result<()> {
    let stored = match &args.weights {
        Some(path) => Some(weights::load(path, false)?.weights.config),
        None => None,
    };
    let flags: Vec<String> = args.device.precision_setting().into_iter().collect();
    let config = args.recipe.config(stored.as_ref(), &flags)?;
    let precision = config.train.precision;
    let mut element = match precision {
        Precision::Bf16 => Element::Bf16,
        Precision::Auto | Precision::F32 => Element::F32,
    };
    let (batch, margin) = (config.train.batch_size, &config.head.margin);
    let model = config.model.build()?;
    let d = model.embedding_size();
    if !args.infer && args.classes.checked_mul(2 * d).is_none_or(|n| n > 1 << 40) {
        return Err(Error::Usage(format!(
            "--classes {}: so many class rows cannot be planned",
            args.classes
        )));
    }
    // For memory without a device: the CPU keeps more.
    let mut plan_inference: PlanInference = infer::memory_plan::<Cpu>;
    let available = match args.memory {
        Some(gib) if gib > 0.0 && gib < 1e9 => (gib * f64::from(1 << 30)) as u64,
        Some(gib) => {
            return Err(Error::Usage(format!(
                "--memory takes a size in GiB above 0, not {gib}"
            )));
        }
        None => {
            let mut free = 0;
            let ask = Ask {
                precision,
                free: &mut free,
                element: &mut element,
                plan_inference: &mut plan_inference,
            };
            with_device(args.device.device, gpus, ask)?;
            free
        }
    };
    say(format!(
        "network: {}, {d}-d embedding, {} parameters, {:.3} GMAC per image forward{}",
        config.model.network_name(),
        grouped(ParamTable::new(&model).count() as u64),
        model.macs() as f64 / 1e9,
        if args.infer {
            ""
        } else {
            ", about three times that for a training step"
        }
    ));
    let plan = if args.infer {
        plan_inference(&model, element)
    } else {
        say(format!(
            "head: {}, {:.3} GMAC per image forward, scale {}, margins m1 {} m2 {} m3 {}",
            count(args.classes, "identity"),
            (args.classes * d) as f64 / 1e9,
            margin.scale,
            margin.m1,
            margin.m2,
            margin.m3
        ));
        train::memory_plan(
            &model,
            element,
            ArcFace::<Cpu>::bytes(element, args.classes, d, batch),
        )
    };
    say(format!("activations in {element}"));
    say("");
    say(plan.table(batch, args.rows).trim_end());
    if !args.infer {
        say(format!(
            "{:9.1}  of them class rows and their momentum",
            ArcFace::<Cpu>::class_bytes(element, args.classes, d) as f64 / f64::from(1 << 20)
        ));
    }
    let total = plan.bytes(batch);
    say(format!(
        "{:9.1}  in all at batch {batch}",
        total as f64 / f64::from(1 << 20)
    ));
    say("");
    let largest = plan.largest_batch(available);
    let room = match args.memory {
        Some(_) => size(available),
        None => format!("the {} that are free on the device", size(available)),
    };
    if largest == 0 {
        return Err(Error::Invalid(format!(
            "not even one image fits into {room}"
        )));
    }
    say(format!(
        "largest batch in {room}: {} ({} per image)",
        grouped(largest as u64),
        size(plan.bytes_an_image())
    ));
    say("not counted: the loader's batches of pixels, and the backend's scratch memory");
    Ok(())
}

use arcface_cu::backend::cpu::Cpu;
use arcface_cu::config::Config;
use arcface_cu::data;
use arcface_cu::train::{DataOptions, Trainer};
use std::sync::Arc;

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let preset = args.first().map_or("small", String::as_str);
    let settings: Vec<String> = args.iter().skip(1).cloned().collect();
    let config = Config::load(preset, None, &settings).unwrap();
    let dataset: Arc<dyn data::Dataset> =
        Arc::from(data::open("../shared/data/lfw3d".as_ref()).unwrap());
    let mut trainer = Trainer::new(Cpu::new(), config, dataset, DataOptions::default()).unwrap();
    println!("expected {}", trainer.expected_initial_loss());
    let mut total = 0.0;
    for i in 0..12 {
        let r = trainer.step().unwrap();
        if i >= 2 {
            total += r.images_per_s() / 10.0;
        }
        println!(
            "{} loss {:.4} acc {:.3} {:.1} img/s wait {:.2}",
            r.step,
            r.loss,
            r.accuracy,
            r.images_per_s(),
            r.data_wait()
        );
    }
    println!("mean {total:.1} img/s");
}

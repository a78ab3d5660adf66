//! What `eval --report` writes: a page, its figures as SVG and PNG, and everything in it as JSON.
//!
//! | file | content |
//! |---|---|
//! | `report.html` | the page; it needs no other file |
//! | `report.json` | what `eval --json` writes, with the curves, intervals and settings |
//! | `roc.svg`, `roc.png` | the ROC curves of all sets |
//! | `distances-NAME.svg`, `.png` | the distances of a set |
//! | `pairs-NAME.png` | its clearest right and wrong pairs |

use super::{ChannelOrder, EvalOptions, EvalSet, Evaluation, pair_pictures};
use crate::base::files;
use crate::base::text::count;
use crate::report::figure::{Axis, Corner, Dash, Figure, Layer, Paint, SERIES};
use crate::report::markup::escape;
use crate::report::page::{data_uri, document};
use crate::report::pairs::{self, PairPicture};
use crate::verification::{
    CONFIDENCE, Curves, OperatingPoint, SetResult, Tta, Verdict, Verification, curves, wilson,
};
use crate::weights::checkpoint::Weights;
use crate::{Error, Result};
use serde::Serialize;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Pairs of each verdict that are shown.
const EXAMPLES: usize = 8;

/// Genuine and impostor pairs have these colours throughout.
const GENUINE: Paint = Paint::Series(0);
const IMPOSTOR: Paint = Paint::Series(1);

/// What was evaluated, and how.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// This program and its version.
    pub program: String,
    /// The weights file's name.
    pub weights_file: String,
    /// The weights' fingerprint.
    pub weights: String,
    /// The preset that they were trained with.
    pub preset: String,
    /// The backbone.
    pub network: String,
    /// Embedding size D.
    pub embedding_size: usize,
    /// Identities that they were trained on; 0 where that is unknown.
    pub classes: usize,
    /// Where the evaluation sets lie.
    pub data: String,
    /// What computed.
    pub device: String,
    /// What is done with mirror images in all that is no table of modes.
    pub tta: Tta,
    /// Whether pictures are enlarged and cropped.
    pub ccrop: bool,
    /// The order of the channels.
    pub channel_order: ChannelOrder,
    /// The probability with which each interval covers the true value.
    pub confidence: f64,
    /// How intervals are made.
    pub interval: &'static str,
}

impl Settings {
    /// Of `weights`, which were read from `file`, evaluated on the sets in `data` by `device`.
    ///
    /// # Errors
    /// Weights of no network.
    pub fn new(
        file: &Path,
        weights: &Weights,
        data: &Path,
        device: String,
        options: &EvalOptions,
    ) -> Result<Self> {
        let config = &weights.config;
        Ok(Settings {
            program: format!("arcface-cu {}", env!("CARGO_PKG_VERSION")),
            weights_file: file
                .file_name()
                .unwrap_or(file.as_os_str())
                .to_string_lossy()
                .into_owned(),
            weights: weights.fingerprint(),
            preset: config.preset.clone(),
            network: config.model.network_name().to_owned(),
            embedding_size: config.model.embedding_size()?,
            classes: weights.classes,
            data: data.to_string_lossy().into_owned(),
            device,
            tta: options.tta,
            ccrop: options.ccrop,
            channel_order: options.channel_order,
            confidence: CONFIDENCE,
            interval: "Wilson score, without continuity correction",
        })
    }
}

/// One way of treating mirror images.
#[derive(Clone, Debug, Serialize)]
struct Mode {
    tta: Tta,
    accuracy_interval: [f64; 2],
    #[serde(flatten)]
    verification: Verification,
}

#[derive(Clone, Debug, Serialize)]
struct Example {
    pair: usize,
    distance: f64,
    verdict: String,
}

#[derive(Clone, Debug, Serialize)]
struct SetReport {
    #[serde(flatten)]
    result: SetResult,
    #[serde(flatten)]
    curves: Curves,
    modes: Vec<Mode>,
    examples: Vec<Example>,
    #[serde(skip)]
    pictures: Vec<PairPicture>,
}

impl SetReport {
    fn genuine(&self) -> usize {
        self.verification().pairs - self.verification().impostor_pairs
    }

    fn verification(&self) -> &Verification {
        &self.result.verification
    }
}

/// The report of an evaluation.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    settings: Settings,
    sets: Vec<SetReport>,
}

impl Report {
    /// A report of no sets so far.
    pub fn new(settings: Settings) -> Self {
        Report {
            settings,
            sets: Vec::new(),
        }
    }

    /// Adds a set with its evaluations under each of [`Tta::ALL`].
    ///
    /// # Errors
    /// A picture cannot be read, or as [`curves`].
    pub fn add(&mut self, set: &mut EvalSet, evaluations: &[Evaluation; 3]) -> Result<()> {
        let chosen = Tta::ALL.iter().position(|&tta| tta == self.settings.tta);
        let shown = &evaluations[chosen.unwrap_or(0)];
        let pictures = pair_pictures(set, shown, EXAMPLES)?;
        let modes = Tta::ALL.into_iter().zip(evaluations);
        self.sets.push(SetReport {
            result: shown.result.clone(),
            curves: curves(&shown.distances, set.same())?,
            modes: modes
                .map(|(tta, evaluation)| {
                    let verification = evaluation.result.verification.clone();
                    Mode {
                        tta,
                        accuracy_interval: wilson(verification.accuracy, verification.pairs),
                        verification,
                    }
                })
                .collect(),
            examples: (pictures.iter())
                .map(|picture| Example {
                    pair: picture.pair,
                    distance: picture.distance,
                    verdict: picture.verdict.to_string(),
                })
                .collect(),
            pictures,
        });
        Ok(())
    }

    /// Writes everything to `folder`, which is made if it is not there, and gives the page's path.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<PathBuf> {
        fs::create_dir_all(folder).map_err(Error::io("creating the folder", folder))?;
        self.roc().save(folder, "roc")?;
        for set in &self.sets {
            let name = &set.result.name;
            self.distances(set)
                .save(folder, &format!("distances-{name}"))?;
            let sheet = folder.join(format!("pairs-{name}.png"));
            pairs::save(&sheet, name, set.verification().threshold, &set.pictures)?;
        }
        let mut json = serde_json::to_string_pretty(self).expect("a report is plain data");
        json.push('\n');
        files::write(&folder.join("report.json"), json.as_bytes())?;
        let page = folder.join("report.html");
        files::write(&page, self.page().as_bytes())?;
        Ok(page)
    }

    fn mode(&self) -> String {
        let crop = if self.settings.ccrop { ", ccrop" } else { "" };
        format!("tta {}{crop}", self.settings.tta)
    }

    /// All ROC curves on one logarithmic axis, down to the rate of one false accept in the largest set.
    fn roc(&self) -> Figure {
        let most = |set: &SetReport| set.verification().impostor_pairs as f64;
        let most = self.sets.iter().map(most).fold(10.0, f64::max);
        let axis = Axis::decades("false accept rate", -(most.log10().ceil() as i32), 0);
        let mut layers = Vec::new();
        for (k, set) in self.sets.iter().enumerate() {
            let paint = Paint::Series(k);
            let least = 1.0 / set.verification().impostor_pairs as f64;
            let mut points: Vec<(f64, f64)> = Vec::new();
            // Below the rate of one false accept the curve says only what no false accept allows.
            let none = match set.curves.roc.first() {
                Some(&[0.0, tar]) => tar,
                _ => 0.0,
            };
            points.push((least, none));
            for &[far, tar] in set.curves.roc.iter().filter(|corner| corner[0] > 0.0) {
                let before = points.last().map_or(0.0, |p| p.1);
                points.extend([(far, before), (far, tar)]);
            }
            layers.push(Layer::Curve {
                name: None,
                points: vec![(axis.from(), none), (least, none)],
                paint,
                dash: Dash::Dotted,
            });
            layers.push(Layer::Curve {
                name: Some(format!(
                    "{}  AUC {:.4}",
                    set.result.name,
                    set.verification().auc
                )),
                points,
                paint,
                dash: if k < SERIES {
                    Dash::Solid
                } else {
                    Dash::Dashed
                },
            });
        }
        Figure {
            title: "ROC".to_owned(),
            subtitle: format!(
                "{}; dotted: fewer than one false accept, which the set's impostor pairs cannot tell",
                self.mode()
            ),
            x: axis,
            y: Axis::linear("true accept rate", 0.0, 1.0, true),
            layers,
            legend: Corner::LowerRight,
        }
    }

    /// The distances of genuine and impostor pairs of a set, each as shares of its kind.
    fn distances(&self, set: &SetReport) -> Figure {
        let histogram = &set.curves.histogram;
        let shares = |counts: &[usize]| -> Vec<f64> {
            let all = counts.iter().sum::<usize>().max(1) as f64;
            counts.iter().map(|&n| n as f64 / all).collect()
        };
        let (genuine, impostor) = (shares(&histogram.genuine), shares(&histogram.impostor));
        let highest = genuine.iter().chain(&impostor).copied().fold(0.0, f64::max);
        let threshold = set.verification().threshold;
        let end = (histogram.width * genuine.len() as f64).max(threshold * 1.05);
        Figure {
            title: format!("Distances of {}", set.result.name),
            subtitle: format!(
                "{} genuine and {} impostor pairs, {}",
                set.genuine(),
                set.verification().impostor_pairs,
                self.mode()
            ),
            x: Axis::linear("squared distance", 0.0, end, false),
            y: Axis::linear("share of its pairs in a bin", 0.0, highest * 1.12, true),
            layers: vec![
                Layer::Bars {
                    name: "genuine: one person".to_owned(),
                    width: histogram.width,
                    heights: genuine,
                    paint: GENUINE,
                },
                Layer::Bars {
                    name: "impostor: two people".to_owned(),
                    width: histogram.width,
                    heights: impostor,
                    paint: IMPOSTOR,
                },
                Layer::Rule {
                    at: threshold,
                    label: format!("threshold {threshold:.3}"),
                },
            ],
            legend: Corner::UpperRight,
        }
    }

    fn page(&self) -> String {
        let mut body = self.heading();
        body.push_str(&self.modes());
        body.push_str(&self.operating_points());
        body.push_str("<h2 id=\"roc\">ROC</h2>\n");
        body.push_str(&self.roc().svg(false));
        for set in &self.sets {
            body.push_str(&self.section(set));
        }
        body.push_str(&self.footer());
        document(
            &format!("Face verification: {}", self.settings.weights_file),
            &body,
        )
    }

    fn heading(&self) -> String {
        let s = &self.settings;
        let mut html = format!(
            "<h1>Face verification</h1>\n<p class=\"lead\">{} on {}</p>\n<nav>\
             <a href=\"#accuracy\">Accuracy</a><a href=\"#tar\">TAR at FAR</a><a href=\"#roc\">ROC</a>",
            escape(&s.weights_file),
            (self.sets.iter())
                .map(|set| escape(&set.result.name))
                .collect::<Vec<_>>()
                .join(", ")
        );
        for set in &self.sets {
            let name = escape(&set.result.name);
            let _ = write!(html, "<a href=\"#set-{name}\">{name}</a>");
        }
        html.push_str("</nav>\n<dl>");
        for (term, text) in [
            (
                "Weights",
                format!("{}, fingerprint {}", s.weights_file, s.weights),
            ),
            (
                "Network",
                format!(
                    "{}, {} numbers an embedding, preset {}{}",
                    s.network,
                    s.embedding_size,
                    s.preset,
                    match s.classes {
                        0 => String::new(),
                        n => format!(", trained on {}", count(n, "identity")),
                    }
                ),
            ),
            ("Data", s.data.clone()),
            (
                "Input",
                format!(
                    "channels {}{}",
                    s.channel_order,
                    if s.ccrop {
                        ", ccrop: enlarged from 112 to 128 pixels, the middle 112"
                    } else {
                        ""
                    }
                ),
            ),
            (
                "Mirror images",
                format!("tta {}, except in the first table", s.tta),
            ),
            ("Computed by", format!("{}; {}", s.program, s.device)),
        ] {
            let _ = write!(html, "<dt>{term}</dt><dd>{}</dd>", escape(&text));
        }
        html.push_str("</dl>\n");
        html
    }

    /// The table of sets and modes.
    fn modes(&self) -> String {
        let mut html = String::from(
            "<h2 id=\"accuracy\">Accuracy</h2>\n<div class=\"wide\"><table><thead><tr>\
             <th class=\"name\">Set</th><th class=\"name\">tta</th><th>Pairs<small>genuine + impostor</small></th>\
             <th>Accuracy, %<small>± std over folds</small></th><th>95 % interval</th>\
             <th>Threshold</th><th>AUC</th><th>EER, %</th></tr></thead><tbody>\n",
        );
        for set in &self.sets {
            for (k, mode) in set.modes.iter().enumerate() {
                let v = &mode.verification;
                let main = mode.tta == self.settings.tta;
                let class = [(k == 0).then_some("first"), main.then_some("main")];
                let class: Vec<&str> = class.into_iter().flatten().collect();
                let (name, pairs) = match k {
                    0 => (
                        escape(&set.result.name),
                        format!("{} + {}", set.genuine(), v.impostor_pairs),
                    ),
                    _ => Default::default(),
                };
                let _ = writeln!(
                    html,
                    "<tr class=\"{}\"><td class=\"name\">{name}</td><td class=\"name\">{}</td><td>{pairs}</td>\
                     <td>{} ± {}</td><td>{}</td><td>{:.3}</td><td>{:.4}</td><td>{}</td></tr>",
                    class.join(" "),
                    mode.tta,
                    percent(v.accuracy),
                    percent(v.accuracy_std),
                    interval(mode.accuracy_interval),
                    v.threshold,
                    v.auc,
                    percent(v.eer)
                );
            }
        }
        html.push_str("</tbody></table></div>\n");
        html
    }

    /// The table of true accept rates.
    fn operating_points(&self) -> String {
        let mut html = String::from(
            "<h2 id=\"tar\">True accept rate at a false accept rate</h2>\n<div class=\"wide\"><table><thead><tr>\
             <th class=\"name\">Set</th>",
        );
        let points = self.sets.first().map(|set| &set.curves.operating_points);
        for point in points.into_iter().flatten() {
            let _ = write!(html, "<th>TAR, %, at FAR {:e}</th>", point.far);
        }
        html.push_str("</tr></thead><tbody>\n");
        let mut untold = false;
        for set in &self.sets {
            let _ = write!(
                html,
                "<tr class=\"first\"><td class=\"name\">{}<small>{} impostor pairs</small></td>",
                escape(&set.result.name),
                set.verification().impostor_pairs
            );
            for point in &set.curves.operating_points {
                untold |= !point.told;
                html.push_str(&operating_point(point));
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody></table></div>\n");
        if untold {
            html.push_str(
                "<p class=\"grey\">In brackets: the set has fewer impostor pairs than it takes for one false accept at this \
                 rate. The number is the TAR with no false accept at all; it is no measurement at that FAR.</p>\n",
            );
        }
        html
    }

    fn section(&self, set: &SetReport) -> String {
        let name = escape(&set.result.name);
        let threshold = set.verification().threshold;
        let mut html = format!(
            "<h2 id=\"set-{name}\">{name}</h2>\n{}\
             <p>Two pictures are taken for one person where their squared distance is below <b>{threshold:.3}</b> (a cosine \
             above {:.3}), the mean of the folds' thresholds. The pairs farthest from it on either side:</p>\n",
            self.distances(set).svg(false),
            1.0 - threshold / 2.0
        );
        for verdict in Verdict::ALL {
            let class = match verdict.is_right() {
                true => "right",
                false => "wrong",
            };
            let _ = write!(
                html,
                "<h3 class=\"{class}\">{verdict}: {}</h3>\n<div class=\"pairs {class}\">",
                pairs::meaning(verdict)
            );
            let mut none = true;
            for picture in set.pictures.iter().filter(|p| p.verdict == verdict) {
                none = false;
                html.push_str("<figure><div class=\"faces\">");
                for (image, which) in picture.images.iter().zip(["first", "second"]) {
                    let _ = write!(
                        html,
                        "<img alt=\"pair {}, {which} picture\" src=\"{}\">",
                        picture.pair,
                        data_uri(image)
                    );
                }
                let _ = writeln!(
                    html,
                    "</div><figcaption><span>distance {:.3}</span><span class=\"grey\">pair {}</span></figcaption></figure>",
                    picture.distance, picture.pair
                );
            }
            html.push_str(if none {
                "<p class=\"grey\">none</p></div>\n"
            } else {
                "</div>\n"
            });
        }
        html
    }

    fn footer(&self) -> String {
        "<footer><p><b>Protocol.</b> Distances are squared Euclidean distances of unit embeddings, from 0 to 4: \
         2 − 2 cos. Ten folds without shuffling; on nine of them the first of the thresholds 0, 0.01 … 3.99 with the highest \
         accuracy is chosen and scored on the tenth. Accuracy and its standard deviation are over the folds. AUC and EER do \
         not depend on folds.</p>\
         <p><b>Intervals</b> hold with a probability of 95 % and are Wilson's score intervals (Wilson 1927; Brown, Cai and \
         DasGupta 2001), of the pairs for the accuracy and of the genuine pairs for a TAR. They take pairs for independent, \
         and a TAR's threshold for given: how surely a set's impostor pairs tell the threshold of a FAR is not in them.</p>\
         <p><b>Mirror images.</b> none: the picture alone; flip-sum: the sum of both embeddings, normalised; flip-concat: \
         both, one after the other.</p></footer>\n"
            .to_owned()
    }
}

/// A cell of the table of true accept rates.
fn operating_point(point: &OperatingPoint) -> String {
    let tar = percent(point.tar);
    let (class, tar) = match point.told {
        true => ("told", tar),
        false => ("untold", format!("({tar})")),
    };
    format!(
        "<td class=\"{class}\">{tar}<small>{}</small><small>distance &lt; {:.3}</small><small>{} false {}</small></td>",
        interval(point.tar_interval),
        point.threshold,
        point.false_accepts,
        if point.false_accepts == 1 {
            "accept"
        } else {
            "accepts"
        }
    )
}

fn percent(share: f64) -> String {
    format!("{:.2}", 100.0 * share)
}

fn interval([low, high]: [f64; 2]) -> String {
    format!("{} – {}", percent(low), percent(high))
}

//! Progress for people: a line redrawn in place on a terminal, plain lines every few seconds otherwise.
//!
//! Loss, L2 term, accuracy, images per second and the wait for data are means over the epoch so far, each image
//! counting once, as Keras shows them; after a resumed start the epoch so far begins there. The learning rate is the
//! last step's. Nothing here opens standard output: a command hands over where to write.

use std::io::Write;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{StepReport, ratio};
use crate::base::text;

/// Seconds between plain lines.
const LINE_INTERVAL: f64 = 5.0;
/// Characters in the bar, where there is room, and where there is less.
const BARS: [usize; 2] = [24, 6];

/// How many columns a terminal has; it may change at any time.
pub type Columns = Box<dyn Fn() -> usize + Send + Sync>;

/// Where progress goes.
pub enum Output {
    /// A line redrawn in place, no longer than the number of columns that the function gives.
    Bar(ProgressDrawTarget, Columns),
    /// A line every few seconds.
    Lines(Box<dyn Write + Send>),
}

impl Output {
    /// A bar where the reader is a terminal, else lines:
    /// `Output::choose(io::stdout().is_terminal(), (ProgressDrawTarget::stdout(), columns), Box::new(io::stdout()))`.
    pub fn choose(
        is_terminal: bool,
        (bar, columns): (ProgressDrawTarget, Columns),
        lines: Box<dyn Write + Send>,
    ) -> Self {
        if is_terminal {
            Output::Bar(bar, columns)
        } else {
            Output::Lines(lines)
        }
    }
}

enum Screen {
    Bar(ProgressBar, Columns),
    Lines(Box<dyn Write + Send>),
}

impl Screen {
    fn new(output: Output) -> Self {
        match output {
            Output::Bar(target, columns) => {
                let bar = ProgressBar::with_draw_target(None, target);
                // The whole line is the message: cut off at the terminal's width instead of wrapped.
                if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
                    bar.set_style(style);
                }
                Screen::Bar(bar, columns)
            }
            Output::Lines(out) => Screen::Lines(out),
        }
    }

    /// The columns of a bar's line; plain output has no end.
    fn columns(&self) -> Option<usize> {
        match self {
            Screen::Bar(_, columns) => Some(columns()),
            Screen::Lines(_) => None,
        }
    }

    /// Redraws the bar's line; plain output has none.
    fn redraw(&self, line: String) {
        if let Screen::Bar(bar, _) = self {
            bar.set_message(text::lines(&line));
        }
    }

    /// Writes lines that stay, above the bar.
    fn print(&mut self, text: &str) {
        let text = text::lines(text);
        match self {
            Screen::Bar(bar, _) => bar.println(text),
            Screen::Lines(out) => {
                // Training goes on when nobody reads its progress any more.
                let _ = writeln!(out, "{text}").and_then(|()| out.flush());
            }
        }
    }

    fn clear(&self) {
        if let Screen::Bar(bar, _) = self {
            bar.finish_and_clear();
        }
    }
}

/// Sums over the epoch so far.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    epoch: u64,
    step: u64,
    steps: u64,
    images: f64,
    loss: f64,
    l2: f64,
    accuracy: f64,
    lr: f64,
    seconds: f64,
    waited: f64,
}

impl Sums {
    fn add(&mut self, report: &StepReport) {
        if report.epoch != self.epoch {
            *self = Sums {
                epoch: report.epoch,
                ..Sums::default()
            };
        }
        let images = report.images as f64;
        self.step = report.step;
        self.steps += 1;
        self.images += images;
        self.loss += images * report.loss;
        self.l2 += images * report.l2;
        self.accuracy += images * report.accuracy;
        self.lr = report.lr;
        self.seconds += report.seconds;
        self.waited += report.waited;
    }
}

/// The length of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunLength {
    /// The number of epochs.
    pub epochs: u64,
    /// The number of steps in each.
    pub steps_per_epoch: u64,
    /// The step after which the run ends, counted from 1: all of them, or fewer on request.
    pub last_step: u64,
}

/// The progress of training.
pub struct Progress {
    length: RunLength,
    screen: Screen,
    sums: Sums,
    since_line: f64,
}

impl Progress {
    /// Progress of a run of that length; a resumed run starts with any step.
    pub fn new(length: RunLength, output: Output) -> Self {
        Progress {
            length,
            screen: Screen::new(output),
            sums: Sums::default(),
            // The first step has its line at once.
            since_line: LINE_INTERVAL,
        }
    }

    /// Shows a step.
    pub fn step(&mut self, report: &StepReport) {
        self.sums.add(report);
        self.since_line += report.seconds;
        let columns = self.screen.columns();
        if columns.is_some() {
            self.screen
                .redraw(step_line(&self.sums, &self.length, columns, false));
        } else if self.since_line >= LINE_INTERVAL {
            self.since_line = 0.0;
            self.screen
                .print(&step_line(&self.sums, &self.length, None, false));
        }
    }

    /// Leaves a line with the means of the epoch that has ended and the time it took, if it had a step.
    pub fn epoch_end(&mut self) {
        if self.sums.steps == 0 {
            return;
        }
        let line = step_line(&self.sums, &self.length, self.screen.columns(), true);
        self.screen.print(&line);
        self.since_line = 0.0;
        self.sums = Sums::default();
    }

    /// Prints something that stays, above the bar: a checkpoint was saved, a set was evaluated.
    pub fn message(&mut self, text: &str) {
        self.screen.print(text);
    }

    /// Shows something in the bar's place until the next step ("evaluating ..."); plain output does not show it.
    pub fn status(&mut self, text: &str) {
        self.screen.redraw(text.to_owned());
    }

    /// Removes the bar.
    pub fn finish(&mut self) {
        self.screen.clear();
    }
}

/// `Epoch 3/16  120/886 [===>....] ETA 03:12, run 52:40 152 img/s loss 12.345 acc 0.4567 lr 0.05 wait 2% l2 0.123`, with
/// a bar and no longer than `columns` if they are given. Where that is too long, `l2` and `wait` go first, then length of
/// the bar, `lr`, the bar, `acc` and `loss`; the times and the speed stay.
fn step_line(sums: &Sums, length: &RunLength, columns: Option<usize>, ended: bool) -> String {
    let in_epoch = sums
        .step
        .saturating_sub(sums.epoch.saturating_sub(1) * length.steps_per_epoch);
    let digits = length.steps_per_epoch.to_string().len();
    let per_step = ratio(sums.seconds, sums.steps as f64);
    let left = |to: u64, from: u64| duration(to.saturating_sub(from) as f64 * per_step);
    let time = if ended {
        format!("in {}", duration(sums.seconds))
    } else {
        let epoch_end = sums.epoch * length.steps_per_epoch;
        let run = left(length.last_step, sums.step);
        if epoch_end >= length.last_step {
            format!("ETA {run}")
        } else {
            format!("ETA {}, run {run}", left(epoch_end, sums.step))
        }
    };
    let place = format!(
        "Epoch {}/{}  {in_epoch:>digits$}/{}",
        sums.epoch, length.epochs, length.steps_per_epoch
    );
    let speed = format!("{time} {} img/s", grouped(ratio(sums.images, sums.seconds)));
    let means = [
        format!("loss {}", decimals(sums.loss / sums.images)),
        format!("acc {:.4}", sums.accuracy / sums.images),
        format!("lr {}", significant(sums.lr)),
        format!("wait {:.0}%", 100.0 * ratio(sums.waited, sums.seconds)),
        format!("l2 {}", decimals(sums.l2 / sums.images)),
    ];
    let line = |bar: usize, shown: usize| {
        let bar = (bar > 0).then(|| progress_bar(in_epoch, length.steps_per_epoch, bar));
        let parts = [Some(place.clone()), bar, Some(speed.clone())]
            .into_iter()
            .flatten();
        let parts: Vec<String> = parts.chain(means[..shown].iter().cloned()).collect();
        parts.join(" ")
    };
    let Some(columns) = columns else {
        return line(0, means.len());
    };
    let [long, short] = BARS;
    let forms = [
        (long, 5),
        (long, 4),
        (long, 3),
        (short, 3),
        (short, 2),
        (0, 2),
        (0, 1),
        (0, 0),
    ];
    let mut lines = forms.into_iter().map(|(bar, shown)| line(bar, shown));
    lines
        .find(|line| line.len() <= columns)
        .unwrap_or_else(|| line(0, 0))
}

/// What is counted, and how its rate is called.
type Unit = (&'static str, &'static str);
const IMAGES: Unit = ("images", "img/s");
const MEGABYTES: Unit = ("MB", "MB/s");

/// The progress of a count of images (evaluating, embedding, packing) or of megabytes (indexing).
pub struct Counter {
    name: String,
    unit: Unit,
    total: u64,
    done: u64,
    /// What was done before the clock started.
    before: u64,
    start: Instant,
    last_line: f64,
    screen: Screen,
}

impl Counter {
    /// `total` images are to come; the clock starts now.
    pub fn new(name: &str, total: u64, output: Output) -> Self {
        Self::of(IMAGES, name, total, output)
    }

    /// `total` megabytes are to come; the clock starts now.
    pub fn megabytes(name: &str, total: u64, output: Output) -> Self {
        Self::of(MEGABYTES, name, total, output)
    }

    fn of(unit: Unit, name: &str, total: u64, output: Output) -> Self {
        Counter {
            name: name.to_owned(),
            unit,
            total,
            done: 0,
            before: 0,
            start: Instant::now(),
            last_line: 0.0,
            screen: Screen::new(output),
        }
    }

    /// Of the total, `done` were done in an earlier run.
    pub fn after(mut self, done: u64) -> Self {
        (self.done, self.before) = (done, done);
        self
    }

    /// `more` are done.
    pub fn advance(&mut self, more: u64) {
        self.advance_at(more, self.start.elapsed().as_secs_f64());
    }

    fn advance_at(&mut self, more: u64, seconds: f64) {
        self.done += more;
        let counts = [self.before, self.done, self.total];
        let line = |name: &str| line_of(self.unit, name, counts, seconds);
        if let Some(columns) = self.screen.columns() {
            // A name from data may be long.
            let room = columns.saturating_sub(line("").len());
            self.screen.redraw(line(&shortened(&self.name, room)));
        } else if seconds - self.last_line >= LINE_INTERVAL && self.done < self.total {
            self.last_line = seconds;
            let line = line(&self.name);
            self.screen.print(&line);
        }
    }

    /// Prints something that stays, above the bar.
    pub fn message(&mut self, text: &str) {
        self.screen.print(text);
    }

    /// Leaves a line with the count, the rate and the time, and removes the bar.
    pub fn finish(mut self) {
        let seconds = self.start.elapsed().as_secs_f64();
        let line = finished_line(self.unit, &self.name, [self.before, self.done], seconds);
        self.screen.print(&line);
        self.screen.clear();
    }
}

/// The beginning of `name`, with a sign that there is more, in `room` characters.
fn shortened(name: &str, room: usize) -> String {
    match name.char_indices().nth(room) {
        None => name.to_owned(),
        Some(_) => {
            let kept: String = name.chars().take(room.saturating_sub(3)).collect();
            kept + "..."
        }
    }
}

/// `lfw 5120/12000 images 1,234 img/s ETA 00:05`, for a count begun `seconds` ago.
pub fn counter_line(name: &str, done: u64, total: u64, seconds: f64) -> String {
    line_of(IMAGES, name, [0, done, total], seconds)
}

/// Counts: before the clock started, done, in all.
fn line_of((what, rate): Unit, name: &str, counts: [u64; 3], seconds: f64) -> String {
    let [before, done, total] = counts;
    let timed = (done - before) as f64;
    let left = total.saturating_sub(done) as f64 * ratio(seconds, timed);
    format!(
        "{name} {done}/{total} {what} {} {rate} ETA {}",
        grouped(ratio(timed, seconds)),
        duration(left)
    )
}

fn finished_line((what, rate): Unit, name: &str, counts: [u64; 2], seconds: f64) -> String {
    let [before, done] = counts;
    let timed = done - before;
    let now = match before {
        0 => String::new(),
        _ => format!(", {timed} of them now"),
    };
    format!(
        "{name} {done} {}{now} in {}, {} {rate}",
        if done == 1 {
            what.trim_end_matches('s')
        } else {
            what
        },
        duration(seconds),
        grouped(ratio(timed as f64, seconds))
    )
}

/// `[=====>....]`
fn progress_bar(done: u64, total: u64, length: usize) -> String {
    let filled = (ratio(done as f64, total as f64).min(1.0) * length as f64) as usize;
    let head = usize::from(filled < length);
    format!(
        "[{}{}{}]",
        "=".repeat(filled),
        ">".repeat(head),
        ".".repeat(length - filled - head)
    )
}

/// `03:12`, or `1:02:03` from an hour on.
fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    if s < 3600 {
        format!("{:02}:{:02}", s / 60, s % 60)
    } else {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    }
}

/// Three decimals, or a power of ten where they would all be 0.
fn decimals(x: f64) -> String {
    if x != 0.0 && x.abs() < 0.001 {
        format!("{x:.1e}")
    } else {
        format!("{x:.3}")
    }
}

/// Up to four significant digits.
fn significant(x: f64) -> String {
    let rounded: f64 = format!("{x:.3e}").parse().unwrap_or(x);
    if rounded != 0.0 && rounded.abs() < 1e-3 {
        format!("{rounded:e}")
    } else {
        rounded.to_string()
    }
}

/// `1,234` or, below ten, `1.2`.
fn grouped(x: f64) -> String {
    if x < 9.95 {
        return format!("{x:.1}");
    }
    text::grouped(x.round_ties_even() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    /// Collects what is written, as lines or as a terminal that logs what it is told.
    #[derive(Clone, Debug, Default)]
    struct Sink(Arc<Mutex<String>>);

    impl Sink {
        fn text(&self) -> String {
            self.0.lock().unwrap().clone()
        }

        fn log(&self, s: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(s);
            Ok(())
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.log(&String::from_utf8_lossy(bytes))?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl indicatif::TermLike for Sink {
        fn width(&self) -> u16 {
            160
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, s: &str) -> io::Result<()> {
            self.log(&format!("{s}\n"))
        }
        fn write_str(&self, s: &str) -> io::Result<()> {
            self.log(s)
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    const LENGTH: RunLength = RunLength {
        epochs: 3,
        steps_per_epoch: 8,
        last_step: 24,
    };

    fn report(step: u64) -> StepReport {
        StepReport {
            epoch: 1 + (step - 1) / 8,
            step,
            // The epoch's last batch is short.
            images: if step.is_multiple_of(8) { 16 } else { 32 },
            loss: step as f64,
            l2: 0.125,
            accuracy: 0.25,
            lr: 0.05,
            seconds: 2.0,
            waited: 0.5,
        }
    }

    #[test]
    fn plain_output_has_a_line_every_few_seconds_and_one_an_epoch() {
        let sink = Sink::default();
        let bar: (_, Columns) = (ProgressDrawTarget::hidden(), Box::new(|| 160));
        let output = Output::choose(false, bar, Box::new(sink.clone()));
        let mut progress = Progress::new(LENGTH, output);
        progress.epoch_end();
        for step in 1..=8 {
            progress.step(&report(step));
        }
        progress.status("not shown");
        progress.epoch_end();
        progress.message("checkpoint saved");
        for step in 9..=10 {
            progress.step(&report(step));
        }
        progress.finish();
        // Means weigh images: (32 (1 + .. + 7) + 16 * 8) / 240 = 4.267.
        assert_eq!(
            sink.text().lines().collect::<Vec<_>>(),
            [
                "Epoch 1/3  1/8 ETA 00:14, run 00:46 16 img/s loss 1.000 acc 0.2500 lr 0.05 wait 25% l2 0.125",
                "Epoch 1/3  4/8 ETA 00:08, run 00:40 16 img/s loss 2.500 acc 0.2500 lr 0.05 wait 25% l2 0.125",
                "Epoch 1/3  7/8 ETA 00:02, run 00:34 16 img/s loss 4.000 acc 0.2500 lr 0.05 wait 25% l2 0.125",
                "Epoch 1/3  8/8 in 00:16 15 img/s loss 4.267 acc 0.2500 lr 0.05 wait 25% l2 0.125",
                "checkpoint saved",
            ]
        );
    }

    #[test]
    fn a_resumed_epoch_and_a_shortened_run_count_right() {
        let mut sums = Sums::default();
        for step in 20..=21 {
            sums.add(&report(step));
        }
        let length = RunLength {
            last_step: 23,
            ..LENGTH
        };
        assert_eq!(
            step_line(&sums, &length, Some(160), false),
            "Epoch 3/3  5/8 [===============>........] ETA 00:04 16 img/s loss 20.500 acc 0.2500 lr 0.05 wait 25% l2 0.125"
        );
    }

    /// A run of a week on a terminal of 80 columns, and on smaller ones.
    #[test]
    fn a_narrow_terminal_keeps_times_and_speed() {
        let length = RunLength {
            epochs: 120,
            steps_per_epoch: 11_322,
            last_step: 120 * 11_322,
        };
        let mut sums = Sums::default();
        sums.add(&StepReport {
            epoch: 12,
            step: 11 * 11_322 + 5_000,
            images: 512,
            seconds: 0.41,
            lr: 0.012_34,
            ..report(1)
        });
        let line = |columns| step_line(&sums, &length, Some(columns), false);
        assert_eq!(
            line(80),
            "Epoch 12/120   5000/11322 ETA 43:12, run 139:58:50 1,249 img/s loss 1.000"
        );
        for columns in 20..200 {
            let line = line(columns);
            assert!(
                line.contains("ETA 43:12, run 139:58:50 1,249 img/s"),
                "{line}"
            );
            assert!(line.len() <= columns.max(62), "{columns}: {line}");
        }
        assert!(line(110).ends_with("lr 0.01234"), "{}", line(110));
        assert!(line(199).ends_with("l2 0.125"));
        let mut sums = Sums::default();
        sums.add(&report(1));
        assert_eq!(
            step_line(&sums, &LENGTH, Some(80), false),
            "Epoch 1/3  1/8 [>.....] ETA 00:14, run 00:46 16 img/s loss 1.000 acc 0.2500"
        );
    }

    #[test]
    fn a_terminal_has_a_bar_and_messages_stay_above() {
        let sink = Sink::default();
        let target = ProgressDrawTarget::term_like(Box::new(sink.clone()));
        let bar: (_, Columns) = (target, Box::new(|| 160));
        let output = Output::choose(true, bar, Box::new(io::sink()));
        let mut progress = Progress::new(LENGTH, output);
        progress.step(&report(1));
        progress.message("checkpoint saved");
        progress.step(&report(2));
        progress.epoch_end();
        progress.finish();
        let text = sink.text();
        let at = |words: &str| {
            text.find(words)
                .unwrap_or_else(|| panic!("no \"{words}\" in {text:?}"))
        };
        let bar = at(
            "Epoch 1/3  1/8 [===>....................] ETA 00:14, run 00:46 16 img/s loss 1.000",
        );
        let message = at("checkpoint saved");
        assert!(bar < message);
        assert!(text[message..].contains("Epoch 1/3  1/8 ["), "redrawn");
        assert!(
            text.contains(
                "2/8 [======>.................] ETA 00:12, run 00:44 16 img/s loss 1.500"
            )
        );
        assert!(text.contains("in 00:04"));
    }

    #[test]
    fn a_count_that_goes_on_is_of_the_whole() {
        assert_eq!(
            line_of(IMAGES, "embed", [60, 70, 90], 5.0),
            "embed 70/90 images 2.0 img/s ETA 00:10"
        );
        assert_eq!(
            finished_line(IMAGES, "embed", [60, 90], 15.0),
            "embed 90 images, 30 of them now in 00:15, 2.0 img/s"
        );
    }

    #[test]
    fn counters_count() {
        assert_eq!(
            counter_line("lfw", 5120, 12000, 4.0),
            "lfw 5120/12000 images 1,280 img/s ETA 00:05"
        );
        assert_eq!(
            counter_line("lfw", 0, 12000, 0.0),
            "lfw 0/12000 images 0.0 img/s ETA 00:00"
        );
        let sink = Sink::default();
        let mut counter = Counter::new("lfw", 100, Output::Lines(Box::new(sink.clone())));
        for second in 1..=10 {
            counter.advance_at(10, f64::from(second));
        }
        counter.message("two images skipped");
        counter.finish();
        let text = sink.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "lfw 50/100 images 10 img/s ETA 00:05");
        assert_eq!(lines[1], "two images skipped");
        assert!(lines[2].starts_with("lfw 100 images in 00:00, "), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(progress_bar(0, 8, 24), format!("[>{}]", ".".repeat(23)));
        assert_eq!(progress_bar(8, 8, 24), format!("[{}]", "=".repeat(24)));
        assert_eq!(progress_bar(9, 0, 24), format!("[>{}]", ".".repeat(23)));
        assert_eq!(duration(59.6), "01:00");
        assert_eq!(duration(3723.0), "1:02:03");
        assert_eq!(decimals(12.3456), "12.346");
        assert_eq!(decimals(0.00012), "1.2e-4");
        assert_eq!(decimals(0.0), "0.000");
        assert_eq!(decimals(f64::NAN), "NaN");
        assert_eq!(significant(0.1f32.into()), "0.1");
        assert_eq!(significant(0.0333333), "0.03333");
        assert_eq!(significant(2.5e-5), "2.5e-5");
        assert_eq!(significant(0.0), "0");
        assert_eq!(grouped(1_234_567.2), "1,234,567");
        assert_eq!(grouped(999.6), "1,000");
        assert_eq!(grouped(152.0), "152");
        assert_eq!(grouped(3.21), "3.2");
        assert_eq!(shortened("agedb_30", 8), "agedb_30");
        assert_eq!(shortened("my own faces", 8), "my ow...");
        assert_eq!(shortened("Zoë's faces", 6), "Zoë...");
    }
}

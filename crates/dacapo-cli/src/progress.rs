//! Progress with rate and ETA: a bar where a person watches, plain lines otherwise, and
//! nothing for what is done in two seconds.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::format;
use crate::output::Output;

/// Nothing is shown before this.
const QUIET: Duration = Duration::from_secs(2);

/// Time between plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Time between redraws of a bar.
const DRAW_INTERVAL: Duration = Duration::from_millis(100);

/// Shows how far a piece of work is.
pub struct Steps<'a> {
    output: &'a Output,
    what: &'static str,
    began: Instant,
    shown: Instant,
    bar: Option<ProgressBar>,
}

impl<'a> Steps<'a> {
    /// Begins to show work called `what`, for example "reading footers".
    pub fn new(output: &'a Output, what: &'static str) -> Self {
        let now = Instant::now();
        Steps { output, what, began: now, shown: now, bar: None }
    }

    /// Notes that `done` of `all` is done.
    pub fn at(&mut self, done: u64, all: u64) {
        self.show(done, all, "");
    }

    /// Notes that `done` of `all` is done, with a remark such as "paused".
    pub fn show(&mut self, done: u64, all: u64, remark: &str) {
        let now = Instant::now();
        if now - self.began < QUIET {
            return;
        }
        let interval = if self.output.watched() { DRAW_INTERVAL } else { LINE_INTERVAL };
        if now - self.shown < interval {
            return;
        }
        self.shown = now;
        let rate = done as f64 / (now - self.began).as_secs_f64();
        let left = all.saturating_sub(done) as f64 / rate.max(0.001);
        let pace = format!("{}/s, {} left", format::number(rate as u64), format::seconds(left));
        let remark = if remark.is_empty() { pace } else { format!("{pace}, {remark}") };
        if !self.output.watched() {
            let (done, all) = (format::number(done), format::number(all));
            self.output.talk(&format!("{} {done} of {all}, {remark}", self.what));
            return;
        }
        let bar = self.bar.get_or_insert_with(|| bar(self.what));
        bar.set_length(all.max(done));
        bar.set_position(done);
        bar.set_message(remark);
        bar.tick();
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {percent}% {msg}")
        .expect("the template is fixed text")
        .progress_chars("=> ");
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr())
        .with_style(style)
        .with_prefix(what)
}

//! The parts of a drill on a line of time, as a picture in SVG.

use std::time::Duration;

use maud::{Markup, html};

use crate::report::Facts;
use crate::verdict::seconds;

/// The picture's own units; the page scales it.
const WIDTH: f64 = 830.0;
const LEFT: f64 = 120.0;
const RIGHT: f64 = 90.0;
const LANE: f64 = 26.0;
const BAR: f64 = 16.0;
const TOP: f64 = 22.0;

/// A bar is no narrower, so that a part that took no time is seen.
const BAR_MIN: f64 = 2.0;

/// The target is drawn to scale unless it is so many times the whole; then an edge stands for it.
const TARGET_FAR: f64 = 3.0;

/// As many lines of the scale at the most, at round numbers.
const TICKS_MAX: f64 = 7.0;

/// About the width of two labels above the picture, side by side.
const LABEL: f64 = 130.0;

/// About the width of the label of a target that is far, with room beside it.
const FAR_LABEL: f64 = 320.0;

const COLOURS: [&str; 7] =
    ["#4a6fa5", "#6a8caf", "#3d8a8a", "#2c6e9b", "#7a6ca8", "#1a7f4b", "#9aa7b3"];

pub(super) fn timeline(facts: &Facts) -> Markup {
    let end = facts.parts.iter().map(|part| part.from + part.took).max().unwrap_or_default();
    let whole = end.max(Duration::from_millis(1)).as_secs_f64();
    let target = facts.rto_target.map(|target| target.as_secs_f64());
    let near = target.filter(|target| *target <= whole * TARGET_FAR);
    let scale = near.map_or(whole, |target| whole.max(target * 1.04));
    let step = step(scale);
    let at = |seconds: f64| LEFT + (WIDTH - LEFT - RIGHT) * (seconds / scale);
    let height = TOP + LANE * facts.parts.len() as f64 + 22.0;
    let foot = height - 18.0;
    let label = match (facts.rto, facts.rto_target) {
        (Some(rto), Some(target)) => format!("{} of {}", seconds(rto), seconds(target)),
        (Some(rto), None) => seconds(rto),
        (None, _) => "not measured".to_owned(),
    };
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label=(format!("Recovery time: {label}")) font-family="inherit" font-size="12" {
            @for tick in 0..=(scale / step) as u32 {
                @let second = step * f64::from(tick);
                line x1=(n(at(second))) y1=(n(TOP - 6.0)) x2=(n(at(second))) y2=(n(foot)) stroke="#dfe5ea" {}
                text x=(n(at(second))) y=(n(height - 4.0)) text-anchor="middle" fill="#5b6b7b" font-size="11" { (tick_label(second)) }
            }
            @if let Some(rto) = facts.rto {
                @let x = at(rto.as_secs_f64());
                line x1=(n(x)) y1=(n(TOP - 6.0)) x2=(n(x)) y2=(n(foot)) stroke="#1c2733" stroke-width="1.5" {}
                text x=(n(x)) y="12" text-anchor="middle" fill="#1c2733" { "RTO " (seconds(rto)) }
            }
            @for (lane, part) in facts.parts.iter().enumerate() {
                @let top = TOP + LANE * lane as f64;
                @let from = part.from.as_secs_f64();
                @let width = (at(from + part.took.as_secs_f64()) - at(from)).max(BAR_MIN);
                text x=(n(LEFT - 10.0)) y=(n(top + 12.5)) text-anchor="end" fill="#1c2733" { (part.name) }
                rect x=(n(at(from))) y=(n(top)) width=(n(width)) height=(n(BAR)) rx="2" fill=(COLOURS[lane % COLOURS.len()]) {}
                text x=(n(at(from) + width + 6.0)) y=(n(top + 12.5)) fill="#5b6b7b" stroke="#fff" stroke-width="3" paint-order="stroke" { (seconds(part.took)) }
            }
            @match (near, target) {
                (Some(target), _) => {
                    line x1=(n(at(target))) y1=(n(TOP - 6.0)) x2=(n(at(target))) y2=(n(foot)) stroke="#b3261e" stroke-width="1.5" stroke-dasharray="5 3" {}
                    @let crowded = facts.rto.is_some_and(|rto| (at(rto.as_secs_f64()) - at(target)).abs() < LABEL);
                    text x=(n(if crowded { WIDTH - 4.0 } else { at(target) })) y="12" text-anchor=(if crowded { "end" } else { "middle" }) fill="#b3261e" { "RTO target " (seconds(Duration::from_secs_f64(target))) }
                },
                (None, Some(target)) => {
                    @let crowded = facts.rto.is_some_and(|rto| at(rto.as_secs_f64()) < LEFT + FAR_LABEL);
                    text x=(n(if crowded { WIDTH - 4.0 } else { LEFT })) y="12" text-anchor=(if crowded { "end" } else { "start" }) fill="#b3261e" { "RTO target " (seconds(Duration::from_secs_f64(target))) ", far beyond this picture" }
                },
                (None, None) => {},
            }
        }
    }
}

/// Returns the least round number of seconds (1, 2 or 5 times a power of ten) that is not too many
/// lines.
fn step(scale: f64) -> f64 {
    let mut power = 10_f64.powf((scale / TICKS_MAX).log10().floor());
    for factor in [1.0, 2.0, 5.0] {
        if scale / (power * factor) <= TICKS_MAX {
            return power * factor;
        }
    }
    power *= 10.0;
    power
}

fn tick_label(second: f64) -> String {
    format!("{} s", (second * 1e6).round() / 1e6)
}

/// A coordinate, with what can be seen of its decimals.
fn n(coordinate: f64) -> String {
    format!("{coordinate:.1}")
}

//! Pictures, as SVG without styles of their own: a page's sheet colours them by class.

use maud::{Markup, PreEscaped, html};

/// Width of a character of a badge's text, about.
const LETTER: usize = 7;

/// The mark as a file.
pub(super) const ICON: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 24 24\" fill=\"#0f766e\">\
    <path d=\"M2 2h9v9H2zM13 13h9v9h-9z\"/><path opacity=\".45\" d=\"M13 2h9v9h-9zM2 13h9v9H2z\"/></svg>\n";

/// The mark: blocks that agree.
pub(super) fn mark() -> Markup {
    html! {
        svg.mark viewBox="0 0 24 24" width="24" height="24" aria-hidden="true" {
            rect.a x="2" y="2" width="9" height="9" rx="2.5" {}
            rect.b x="13" y="2" width="9" height="9" rx="2.5" {}
            rect.b x="2" y="13" width="9" height="9" rx="2.5" {}
            rect.a x="13" y="13" width="9" height="9" rx="2.5" {}
        }
    }
}

/// How much of something is used.
pub(super) fn gauge(used: u64, of: u64, label: &str) -> Markup {
    let part = match of {
        0 => 0.0,
        _ => (used as f64 / of as f64).clamp(0.0, 1.0),
    };
    html! {
        svg.gauge viewBox="0 0 300 10" preserveAspectRatio="none" role="img" aria-label=(label) {
            rect.track x="0" y="0" width="300" height="10" rx="5" {}
            @if used > 0 {
                rect.fill x="0" y="0" width=(format!("{:.1}", (part * 300.0).max(6.0))) height="10" rx="5" {}
            }
        }
    }
}

/// What one observer got.
pub(super) struct Dot {
    pub(super) name: String,
    /// Which of the roots.
    pub(super) lane: usize,
    pub(super) counts: bool,
}

/// Who got which artifact: a lane for each, a dot for each observer.
pub(super) fn agreement(lanes: &[String], dots: &[Dot], good: Option<usize>) -> Markup {
    const ROW: usize = 34;
    const NAME: usize = 150;
    const LANE: usize = 150;
    let width = NAME + LANE * lanes.len().max(1);
    let height = 30 + ROW * dots.len();
    let kind = |lane: usize| match good {
        Some(good) if good == lane => "good",
        Some(_) => "bad",
        None if lanes.len() > 1 => "bad",
        None => "open",
    };
    let middle = |lane: usize| NAME + LANE * lane + LANE / 2;
    html! {
        svg.agreement viewBox=(format!("0 0 {width} {height}")) width=(width) height=(height) role="img"
            aria-label="Who observed which artifact; the table below says the same" {
            @for (lane, root) in lanes.iter().enumerate() {
                text.root x=(middle(lane)) y="16" text-anchor="middle" { (root) }
                line.(kind(lane)) x1=(middle(lane)) x2=(middle(lane)) y1="26" y2=(height - 6) {}
            }
            @for (row, dot) in dots.iter().enumerate() {
                @let y = 26 + ROW * row + ROW / 2;
                text.who x="0" y=(y + 5) { (dot.name.chars().take(18).collect::<String>()) }
                circle.(kind(dot.lane)).faint[!dot.counts] cx=(middle(dot.lane)) cy=(y) r="8" {}
            }
        }
    }
}

/// A badge as others have them: what it is about, and what is so.
pub(super) fn badge(label: &str, value: &str, colour: &str) -> String {
    let (left, right) = (label.len() * LETTER + 12, value.len() * LETTER + 12);
    let width = left + right;
    let text = |x: usize, text: &str| {
        html! { text x=(x) y="14" fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif"
        font-size="11" { (text) } }
    };
    let drawn = html! {
        (PreEscaped("<?xml version=\"1.0\" encoding=\"UTF-8\"?>"))
        svg xmlns="http://www.w3.org/2000/svg" width=(width) height="20" role="img" aria-label=(format!("{label}: {value}")) {
            title { (label) ": " (value) }
            rect width=(width) height="20" rx="4" fill=(colour) {}
            path d=(format!("M4 0h{}v20h-{}a4 4 0 0 1-4-4V4a4 4 0 0 1 4-4z", left - 4, left - 4)) fill="#4a4f57" {}
            (text(left / 2, label))
            (text(left + right / 2, value))
        }
    };
    drawn.into_string()
}

//! Bars for people, as SVG.

use std::fmt::Write;

use super::sample::Samples;

const WIDTH: u32 = 720;
const NAMES: u32 = 220;
const BAR: u32 = 26;
const TOP: u32 = 44;

/// One bar: a name, what several runs gave, and whether it is ours.
#[derive(Debug)]
pub struct Bar<'a> {
    /// What was measured.
    pub name: &'a str,
    /// Its values.
    pub values: &'a Samples,
    /// Drawn in another colour.
    pub ours: bool,
}

/// Draws medians as bars, with a line from the least to the largest value.
pub fn bars(title: &str, unit: &str, bars: &[Bar<'_>]) -> String {
    let most = bars.iter().map(|bar| bar.values.max()).fold(0.0, f64::max);
    let room = f64::from(WIDTH - NAMES - 110);
    let at = |value: f64| f64::from(NAMES) + value / most.max(f64::MIN_POSITIVE) * room;
    let height = TOP + BAR * bars.len() as u32 + 12;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"16\">{}</text>\n",
        escaped(title)
    );
    for (row, bar) in bars.iter().enumerate() {
        let y = TOP + BAR * row as u32;
        let colour = if bar.ours { "#2a6f97" } else { "#adb5bd" };
        let (low, median, high) = (bar.values.min(), bar.values.median(), bar.values.max());
        // Writing to a string does not fail.
        let _ = write!(
            out,
            "<text x=\"12\" y=\"{text}\">{name}</text>\n\
             <rect x=\"{NAMES}\" y=\"{y}\" width=\"{width:.1}\" height=\"{bar_height}\" \
             fill=\"{colour}\"/>\n\
             <line x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle}\" y2=\"{middle}\" \
             stroke=\"black\"/>\n\
             <text x=\"{after:.1}\" y=\"{text}\">{median:.1} {unit}</text>\n",
            text = y + 15,
            name = escaped(bar.name),
            width = at(median) - f64::from(NAMES),
            bar_height = BAR - 6,
            low = at(low),
            middle = y + (BAR - 6) / 2,
            after = at(high) + 6.0,
            high = at(high),
            unit = escaped(unit),
        );
    }
    out.push_str("</svg>\n");
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_value_fills_the_room() {
        let (slow, fast) = (
            Samples::of(vec![50.0]).unwrap(),
            Samples::of(vec![90.0, 100.0, 95.0]).unwrap(),
        );
        let bar = |name, values, ours| Bar { name, values, ours };
        let drawn = bars(
            "a < b",
            "MB/s",
            &[bar("slow", &slow, false), bar("fast", &fast, true)],
        );
        assert!(drawn.contains("a &lt; b"), "{drawn}");
        let end = f64::from(WIDTH - 110);
        assert!(drawn.contains(&format!("x2=\"{end:.1}\"")), "{drawn}");
        assert!(drawn.contains(">95.0 MB/s</text>"), "{drawn}");
    }
}

//! Lines for people, as SVG.

use plotters::prelude::*;
use plotters::style::RGBColor;

/// What is drawn.
#[derive(Debug)]
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    pub(crate) log_x: bool,
    pub(crate) log_y: bool,
    pub(crate) lines: Vec<Line>,
}

/// One line.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

const SIZE: (u32, u32) = (760, 420);
const COLOURS: [RGBColor; 8] = [
    RGBColor(42, 111, 151),
    RGBColor(200, 85, 61),
    RGBColor(88, 129, 87),
    RGBColor(120, 80, 140),
    RGBColor(150, 120, 30),
    RGBColor(100, 100, 100),
    RGBColor(60, 170, 190),
    RGBColor(220, 130, 170),
];

const STYLE: &str = "\n<style>@media (prefers-color-scheme: dark) {\
svg [fill=\"#FFFFFF\"] { fill: #15181c } svg text { fill: #d9dde3 } svg [stroke=\"#000000\"] { stroke: #8a929c }\
svg [stroke=\"#FFFFFF\"] { stroke: #15181c } }</style>";

/// # Errors
/// When the library cannot draw it.
pub(crate) fn draw(plot: &Plot) -> anyhow::Result<String> {
    let mut svg = String::new();
    drawn(plot, &mut svg).map_err(|error| anyhow::anyhow!("plot {}: {error}", plot.title))?;
    // Behind the first tag: attributes give way to it, so that a plot is dark where its reader is.
    let begin = svg.find('>').map_or(0, |at| at + 1);
    svg.insert_str(begin, STYLE);
    Ok(svg)
}

fn drawn(plot: &Plot, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    // A logarithmic axis is drawn as the exponent of ten.
    let at = |value: f64, log: bool| if log { value.max(1e-9).log10() } else { value };
    let place = |point: &(f64, f64)| (at(point.0, plot.log_x), at(point.1, plot.log_y));
    let points = || {
        plot.lines
            .iter()
            .flat_map(|line| line.points.iter().map(place))
    };
    // Names of lines stand above them.
    let room = match plot.lines.len() {
        0 | 1 => 0.08,
        more => 0.06 + 0.05 * more as f64,
    };
    let across = span(points().map(|(x, _)| x), None, 0.08);
    let least = (!plot.log_y).then_some(0.0);
    let up = span(points().map(|(_, y)| y), least, room);
    let mut chart = ChartBuilder::on(&root)
        .caption(&plot.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(across, up)?;
    let label = |value: f64, log: bool| {
        let value = if log { 10_f64.powf(value) } else { value };
        number(value)
    };
    chart
        .configure_mesh()
        .x_desc(&plot.x)
        .y_desc(&plot.y)
        .x_label_formatter(&|x| label(*x, plot.log_x))
        .y_label_formatter(&|y| label(*y, plot.log_y))
        .light_line_style(WHITE)
        .draw()?;
    for (number, line) in plot.lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points = line.points.iter().map(place);
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?
            .label(&line.name)
            .legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2))
            });
    }
    if plot.lines.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .draw()?;
    }
    root.present()?;
    Ok(())
}

/// From the least to the largest, with so much of it as room above; from `least` on if there is one.
fn span(values: impl Iterator<Item = f64>, least: Option<f64>, room: f64) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), one| {
        (low.min(one), high.max(one))
    });
    let low = least.unwrap_or(low);
    match low < high {
        true => low..high + (high - low) * room,
        false if low.is_finite() => low..low + 1.0,
        false => 0.0..1.0,
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1e9 => format!("{:.0}G", value / 1e9),
        size if size >= 1e6 => format!("{:.0}M", value / 1e6),
        size if size >= 1e4 => format!("{:.0}k", value / 1e3),
        size if size >= 10.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_drawn_and_named() {
        let line = |name: &str, up: f64| Line {
            name: name.to_owned(),
            points: vec![(1.0, 0.0), (100.0, up)],
        };
        let svg = draw(&Plot {
            title: "title".to_owned(),
            x: "x".to_owned(),
            y: "y".to_owned(),
            log_x: true,
            log_y: true,
            lines: vec![line("one", 1.0), line("other", 2.0)],
        })
        .unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["title", "one", "other"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(svg.matches("<polyline").count() >= 2);
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        let plot = Plot {
            title: "none".to_owned(),
            x: String::new(),
            y: String::new(),
            log_x: false,
            log_y: false,
            lines: Vec::new(),
        };
        assert!(draw(&plot).unwrap().contains("none"));
    }
}

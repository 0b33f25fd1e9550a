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
    pub(crate) lines: Vec<Line>,
}

/// One line.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

const SIZE: (u32, u32) = (760, 420);
const COLOURS: [RGBColor; 6] = [
    RGBColor(42, 111, 151),
    RGBColor(200, 85, 61),
    RGBColor(88, 129, 87),
    RGBColor(120, 80, 140),
    RGBColor(150, 120, 30),
    RGBColor(100, 100, 100),
];

/// # Errors
/// When the library cannot draw it.
pub(crate) fn draw(plot: &Plot) -> anyhow::Result<String> {
    let mut svg = String::new();
    drawn(plot, &mut svg).map_err(|error| anyhow::anyhow!("plot {}: {error}", plot.title))?;
    Ok(svg)
}

fn drawn(plot: &Plot, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let points = || plot.lines.iter().flat_map(|line| line.points.iter());
    // A logarithmic axis is drawn as the exponent of ten.
    let at = |x: f64| if plot.log_x { x.max(1e-9).log10() } else { x };
    let low = points().map(|(x, _)| at(*x)).fold(f64::INFINITY, f64::min);
    let high = points()
        .map(|(x, _)| at(*x))
        .fold(f64::NEG_INFINITY, f64::max);
    let top = points().map(|(_, y)| *y).fold(0.0, f64::max);
    let (low, high) = if low < high {
        (low, high)
    } else {
        (low - 1.0, low + 1.0)
    };
    let top = if top > 0.0 { top * 1.08 } else { 1.0 };
    let (low, high) = if low.is_finite() {
        (low, high)
    } else {
        (0.0, 1.0)
    };
    let mut chart = ChartBuilder::on(&root)
        .caption(&plot.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(low..high, 0.0..top)?;
    let label = |x: &f64| {
        let x = if plot.log_x { 10_f64.powf(*x) } else { *x };
        if x >= 10.0 {
            format!("{x:.0}")
        } else {
            format!("{x:.1}")
        }
    };
    chart
        .configure_mesh()
        .x_desc(&plot.x)
        .y_desc(&plot.y)
        .x_label_formatter(&label)
        .light_line_style(WHITE)
        .draw()?;
    for (number, line) in plot.lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points = line.points.iter().map(|(x, y)| (at(*x), *y));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?
            .label(&line.name)
            .legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2))
            });
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
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
            lines: Vec::new(),
        };
        assert!(draw(&plot).unwrap().contains("none"));
    }
}

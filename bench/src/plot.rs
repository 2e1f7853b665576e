//! Plots of lines over named positions, as SVG.
//!
//! Does not know: what the numbers mean.

use std::path::Path;

use plotters::prelude::*;

use crate::error::BenchError;

/// A line: its name, and a value for each position on the horizontal axis at which it has one.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// In the legend.
    pub(crate) name: String,
    /// Position and value.
    pub(crate) points: Vec<(usize, f64)>,
}

/// What a plot says.
#[derive(Debug, Clone)]
pub(crate) struct Plot<'a> {
    /// Above it.
    pub(crate) title: &'a str,
    /// Below the horizontal axis.
    pub(crate) axis: &'a str,
    /// Beside the vertical axis.
    pub(crate) unit: &'a str,
    /// The vertical axis is logarithmic.
    pub(crate) logarithmic: bool,
    /// Names of the positions on the horizontal axis.
    pub(crate) positions: &'a [String],
    /// The lines.
    pub(crate) lines: &'a [Line],
}

impl Plot<'_> {
    /// Draws it into an SVG file.
    ///
    /// # Errors
    /// The file cannot be written, or there is nothing to draw.
    pub(crate) fn draw(&self, path: &Path) -> Result<(), BenchError> {
        let values = || self.lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value);
        let highest = values().fold(0.0, f64::max);
        let lowest = values().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
        if self.positions.is_empty() || !lowest.is_finite() {
            return Err(BenchError::Plot { path: path.to_owned(), text: "there are no values".into() });
        }
        let root = SVGBackend::new(path, (960, 540)).into_drawing_area();
        let drawn = if self.logarithmic {
            self.draw_log(&root, lowest, highest)
        } else {
            self.draw_linear(&root, highest)
        };
        drawn
            .and_then(|()| root.present().map_err(|error| error.to_string()))
            .map_err(|text| BenchError::Plot { path: path.to_owned(), text })
    }
}

/// Builds the chart for one kind of vertical axis, whose type differs.
macro_rules! draw {
    ($plot:expr, $root:expr, $range:expr) => {{
        let (plot, root) = ($plot, $root);
        let text = |error: DrawingAreaErrorKind<_>| error.to_string();
        root.fill(&WHITE).map_err(text)?;
        let last = plot.positions.len() - 1;
        let mut chart = ChartBuilder::on(root)
            .caption(plot.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(80)
            .build_cartesian_2d(-0.25..last as f64 + 0.25, $range)
            .map_err(text)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(plot.positions.len() * 4 + 1)
            .x_label_formatter(&|at: &f64| label(plot.positions, *at))
            .x_desc(plot.axis)
            .y_desc(plot.unit)
            .draw()
            .map_err(text)?;
        for (index, line) in plot.lines.iter().enumerate() {
            let color = Palette99::pick(index).to_rgba();
            let points = || line.points.iter().map(|(at, value)| (*at as f64, *value));
            chart
                .draw_series(LineSeries::new(points(), color.stroke_width(2)))
                .map_err(text)?
                .label(line.name.clone())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
            chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled()))).map_err(text)?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()
            .map_err(text)
    }};
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

impl Plot<'_> {
    fn draw_linear(&self, root: &Area<'_>, highest: f64) -> Result<(), String> {
        draw!(self, root, 0.0..highest * 1.35)
    }

    fn draw_log(&self, root: &Area<'_>, lowest: f64, highest: f64) -> Result<(), String> {
        draw!(self, root, (lowest / 2.0..highest * 10.0).log_scale())
    }
}

/// The name of a position; nothing between positions.
fn label(positions: &[String], at: f64) -> String {
    let nearest = at.round();
    if (at - nearest).abs() > 0.01 || nearest < 0.0 {
        return String::new();
    }
    positions.get(nearest as usize).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_sizes_and_lines_and_draws_a_point_for_each_value() {
        let directory = tempfile::tempdir().unwrap();
        let positions = ["8KiB".to_owned(), "64KiB".to_owned(), "1MiB".to_owned()];
        let lines = [Line { name: "keys warm".into(), points: vec![(0, 100.0), (1, 900.0), (2, 1000.0)] }];
        for logarithmic in [false, true] {
            let path = directory.path().join("plot.svg");
            let plot = Plot {
                title: "Throughput",
                axis: "buffer size",
                unit: "MB/s",
                logarithmic,
                positions: &positions,
                lines: &lines,
            };
            plot.draw(&path).unwrap();
            let svg = std::fs::read_to_string(&path).unwrap();
            for text in ["8KiB", "64KiB", "1MiB", "keys warm", "Throughput", "MB/s", "buffer size"] {
                assert!(svg.contains(text), "{text} is missing, logarithmic {logarithmic}");
            }
            assert_eq!(svg.matches("<circle").count(), 3);
        }
    }

    #[test]
    fn a_plot_without_values_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let lines = [Line { name: "none".into(), points: vec![] }];
        let positions = ["a".to_owned()];
        let plot =
            Plot { title: "", axis: "", unit: "", logarithmic: false, positions: &positions, lines: &lines };
        assert!(plot.draw(&directory.path().join("plot.svg")).is_err());
    }

    #[test]
    fn labels_stand_at_positions_only() {
        let positions = ["a".to_owned(), "b".to_owned()];
        assert_eq!(label(&positions, 1.0), "b");
        assert_eq!(label(&positions, 0.5), "");
        assert_eq!(label(&positions, -0.25), "");
        assert_eq!(label(&positions, 2.0), "");
    }
}

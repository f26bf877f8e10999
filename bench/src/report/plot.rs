//! Bars with whiskers, as SVG. Colours are a palette's marks: the page that holds the plot maps
//! them to those of its light or dark scheme.

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::stats::Spread;

/// A plot: groups of bars from left to right.
#[derive(Debug, Clone)]
pub struct Plot {
    /// What is plotted.
    pub title: String,
    /// Its groups from top to bottom.
    pub groups: Vec<Group>,
}

/// Bars that belong together.
#[derive(Debug, Clone)]
pub struct Group {
    /// What they have in common.
    pub label: String,
    /// The bars.
    pub bars: Vec<Bar>,
}

/// A bar as long as the median, with whiskers from the smallest to the largest.
#[derive(Debug, Clone)]
pub struct Bar {
    /// Which colour of [`SERIES`], counted round.
    pub series: usize,
    /// Its length.
    pub spread: Spread,
    /// What is written beside it.
    pub text: String,
}

/// Marks for the bars' colours.
pub const SERIES: [&str; 6] = ["#8A9099", "#3B82C4", "#D9822B", "#2F9E62", "#9B59B6", "#C0392B"];
/// The mark for text and whiskers.
pub const INK: &str = "#111111";
/// The mark for the line that bars stand on.
pub const FAINT: &str = "#DDDDDD";

/// Draws it. Text is set by whoever shows it, in its own font.
///
/// # Errors
/// If the plotting library refuses.
pub fn svg(plot: &Plot) -> anyhow::Result<String> {
    let bars: usize = plot.groups.iter().map(|group| group.bars.len()).sum();
    let height = TOP + bars as i32 * BAR + plot.groups.len() as i32 * GAP;
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH as u32, height as u32)).into_drawing_area();
        draw(plot, &area, height).map_err(|error| anyhow!("draw {}: {error}", plot.title))?;
        area.present().map_err(|error| anyhow!("draw {}: {error}", plot.title))?;
    }
    // The size in the first tag is in pixels; the page shall fit it to the column.
    Ok(text.replacen(&format!("width=\"{WIDTH}\" height=\"{height}\" "), "", 1))
}

type Failed<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn draw<'a>(plot: &Plot, area: &DrawingArea<SVGBackend<'a>, Shift>, height: i32) -> Result<(), Failed<'a>> {
    let ink = colour(INK);
    let write = |text: &str, size: i32, at: (i32, i32), anchor: HPos| {
        let style = ("sans-serif", size).into_font().color(&ink).pos(Pos::new(anchor, VPos::Center));
        area.draw(&Text::new(text.to_owned(), at, style))
    };
    write(&plot.title, 16, (0, 10), HPos::Left)?;

    let largest =
        plot.groups.iter().flat_map(|group| &group.bars).map(|bar| bar.spread.max).fold(0.0, f64::max);
    let length = |value: f64| LEFT + (value / largest.max(f64::MIN_POSITIVE) * f64::from(SPAN)) as i32;
    let mut y = TOP;
    for group in &plot.groups {
        let middle = y + group.bars.len() as i32 * BAR / 2;
        write(&group.label, 14, (LEFT - 8, middle), HPos::Right)?;
        for bar in &group.bars {
            let Spread { median, min, max } = bar.spread;
            let fill = colour(SERIES[bar.series % SERIES.len()]);
            area.draw(&Rectangle::new([(LEFT, y + 2), (length(median), y + BAR - 2)], fill.filled()))?;
            let centre = y + BAR / 2;
            area.draw(&PathElement::new(
                [(length(min), centre), (length(max), centre)],
                ink.stroke_width(1),
            ))?;
            for end in [min, max] {
                let tick = [(length(end), centre - 3), (length(end), centre + 3)];
                area.draw(&PathElement::new(tick, ink.stroke_width(1)))?;
            }
            write(&bar.text, 13, (length(max) + 6, centre), HPos::Left)?;
            y += BAR;
        }
        y += GAP;
    }
    area.draw(&PathElement::new([(LEFT, TOP - 4), (LEFT, height - GAP + 4)], colour(FAINT).stroke_width(1)))
}

/// The colour of a mark.
fn colour(mark: &str) -> RGBColor {
    let part = |at: usize| u8::from_str_radix(&mark[at..at + 2], 16).expect("a mark is six digits");
    RGBColor(part(1), part(3), part(5))
}

const WIDTH: i32 = 560;
/// Where bars begin.
const LEFT: i32 = 92;
/// How long the longest is; beside it stands its text.
const SPAN: i32 = 320;
const TOP: i32 = 30;
const BAR: i32 = 17;
const GAP: i32 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_medians() {
        let bar = |series, median, max| Bar {
            series,
            spread: Spread { median, min: median, max },
            text: format!("{median} <units>"),
        };
        let group = Group { label: "tcp-1".into(), bars: vec![bar(0, 50.0, 50.0), bar(1, 25.0, 100.0)] };
        let svg = svg(&Plot { title: "Throughput".into(), groups: vec![group] }).unwrap();
        let width = |mark: &str| {
            let bar = svg.lines().find(|line| line.contains("<rect") && line.contains(mark));
            let bar = bar.unwrap_or_else(|| panic!("no bar of {mark} in {svg}"));
            let width = bar.split("width=\"").nth(1).and_then(|rest| rest.split('"').next());
            width.and_then(|width| width.parse::<i32>().ok()).unwrap_or_else(|| panic!("no width in {bar}"))
        };
        assert!((width(SERIES[0]) - SPAN / 2).abs() <= 1, "{svg}");
        assert!((width(SERIES[1]) - SPAN / 4).abs() <= 1, "{svg}");
        assert!(svg.contains("tcp-1") && svg.contains("50 &lt;units&gt;") && !svg.contains("<svg width"));
    }

    #[test]
    fn nothing_measured_draws_nothing_long() {
        let bar = Bar { series: 9, spread: Spread { median: 0.0, min: 0.0, max: 0.0 }, text: "0".into() };
        let group = Group { label: "loss".into(), bars: vec![bar] };
        assert!(svg(&Plot { title: "Lost".into(), groups: vec![group] }).is_ok());
    }
}

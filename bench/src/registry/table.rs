//! What several rounds measured of several servers: a row for each server, and what is compared within a round.

use crate::numbers::Figure;

/// The name of the server that is compared with the others.
pub const LARDER: &str = "larder";

/// Figures of every server, by column.
#[derive(Debug)]
pub struct Table {
    title: String,
    /// Headings, and how many decimals their figures have.
    columns: &'static [(&'static str, usize)],
    /// A name, and the figures of each round.
    rows: Vec<(&'static str, Vec<Vec<f64>>)>,
}

impl Table {
    /// Nothing measured yet.
    pub fn new(title: String, columns: &'static [(&'static str, usize)]) -> Self {
        Self { title, columns, rows: Vec::new() }
    }

    /// Takes the figures of one server in one round, one for each column.
    pub fn add(&mut self, server: &'static str, figures: Vec<f64>) {
        match self.rows.iter_mut().find(|(name, _)| *name == server) {
            Some((_, rounds)) => rounds.push(figures),
            None => self.rows.push((server, vec![figures])),
        }
    }

    /// Prints all of it.
    pub fn print(&self) {
        println!("\n{}", self.title);
        print!("  {:<15}", "");
        for (heading, _) in self.columns {
            print!("{heading:>28}");
        }
        println!();
        let mut names: Vec<_> = self.rows.iter().map(|(name, _)| *name).collect();
        names.sort_by_key(|name| *name != LARDER);
        for name in names {
            print!("  {name:<15}");
            for (column, (_, decimals)) in self.columns.iter().enumerate() {
                print!("{:>28.decimals$}", self.figures(name, column).unwrap_or_default());
            }
            println!();
        }
    }

    /// Larder's figure in a column.
    pub fn larder(&self, column: usize) -> Option<Figure> {
        self.figures(LARDER, column)
    }

    fn figures(&self, server: &str, column: usize) -> Option<Figure> {
        let (_, rounds) = self.rows.iter().find(|(name, _)| *name == server)?;
        let mut figure = Figure::default();
        for round in rounds {
            figure.add(round[column]);
        }
        Some(figure)
    }

    /// Larder's figure in a column as a multiple of another server's in the same round.
    pub fn larder_to(&self, other: &str, column: usize) -> Option<Figure> {
        let of = |server: &str| self.rows.iter().find(|(name, _)| *name == server).map(|(_, rounds)| rounds);
        let mut ratio = Figure::default();
        for (own, others) in of(LARDER)?.iter().zip(of(other)?) {
            ratio.add(own[column] / others[column]);
        }
        Some(ratio)
    }
}

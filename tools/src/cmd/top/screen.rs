//! A terminal that shows one frame after the other, in place.
//!
//! Invariants
//! - The other screen and the hidden cursor are undone when it goes, also by a failure or a signal that ends the loop.
//! - A line is cut at the right edge, a frame at the bottom: nothing wraps or scrolls.
//!
//! Does not know: what is shown.

use std::io::{self, Write};

use console::Term;

use crate::failure::Failure;

/// The other screen, without a cursor.
const BEGIN: &str = "\x1b[?1049h\x1b[?25l";

/// As it was.
const END: &str = "\x1b[?25h\x1b[?1049l";

/// Columns and lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) lines: usize,
}

/// Undoes what a screen has changed.
pub(super) fn give_back(out: &mut impl Write) {
    let _ = out.write_all(END.as_bytes()).and_then(|()| out.flush());
}

/// See the module.
pub(super) struct Screen<W: Write> {
    out: W,
    has_begun: bool,
}

impl<W: Write> Screen<W> {
    pub(super) fn begin(out: W) -> Screen<W> {
        Screen { out, has_begun: false }
    }

    /// Shows a frame, in a terminal of the size that it has now.
    pub(super) fn show(&mut self, draw: impl FnOnce(Size) -> io::Result<Vec<u8>>) -> Result<(), Failure> {
        let (lines, columns) = Term::stdout().size();
        let size = Size { columns: columns.into(), lines: lines.into() };
        let drawn = draw(size).and_then(|text| self.put(&String::from_utf8_lossy(&text), size));
        drawn.map_err(Failure::Output)
    }

    fn put(&mut self, text: &str, size: Size) -> io::Result<()> {
        if !self.has_begun {
            self.has_begun = true;
            self.out.write_all(BEGIN.as_bytes())?;
        }
        let mut frame = String::from("\x1b[H");
        for (index, line) in text.lines().take(size.lines.max(1)).enumerate() {
            if index > 0 {
                frame.push_str("\r\n");
            }
            frame.extend(line.chars().filter(|character| !character.is_control()).take(size.columns));
            // What was there before, to the right and, at the end, below.
            frame.push_str("\x1b[K");
        }
        frame.push_str("\x1b[J");
        self.out.write_all(frame.as_bytes())?;
        self.out.flush()
    }
}

impl<W: Write> Drop for Screen<W> {
    fn drop(&mut self) {
        if self.has_begun {
            give_back(&mut self.out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_to_the_terminal_and_it_is_given_back() {
        let mut shown = Vec::new();
        let mut screen = Screen::begin(&mut shown);
        let size = Size { columns: 5, lines: 2 };
        screen.put("long line\nb\x1b[2Jc\nthird\n", size).unwrap();
        screen.put("x\n", size).unwrap();
        drop(screen);
        let frames = "\x1b[Hlong \x1b[K\r\nb[2Jc\x1b[K\x1b[J\x1b[Hx\x1b[K\x1b[J";
        assert_eq!(String::from_utf8(shown).unwrap(), format!("{BEGIN}{frames}{END}"));
        let mut unused = Vec::new();
        drop(Screen::begin(&mut unused));
        assert_eq!(unused, b"", "a terminal that was not used is left alone");
    }
}

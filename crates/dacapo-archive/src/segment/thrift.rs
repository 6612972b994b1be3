//! Walks Thrift's compact protocol without building anything of it: what a library would allocate
//! for is known, and can be refused, before it is asked to.
//!
//! Source: "Thrift compact protocol encoding" of Apache Thrift. Invariant: nothing here allocates
//! or recurses by what the bytes say; the depth is bounded.

use super::limits;

/// Why bytes are refused, as a fragment.
pub(crate) type Refused = &'static str;

/// What a structure holds at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// An integer.
    Number(i64),
    /// A list of so many elements.
    List(usize),
}

/// The field numbers that lead to a value, from the outermost structure in.
pub(super) type Path = [i16];

/// Reads one structure and tells `visit` of its integers and lists, also of those inside; returns
/// how many bytes the structure has.
///
/// # Errors
/// It is not one, ends early, nests deeper or has more elements than `elements_max` in its lists,
/// or `visit` refuses.
pub(super) fn walk(
    bytes: &[u8],
    elements_max: usize,
    visit: &mut dyn FnMut(&Path, Found) -> Result<(), Refused>,
) -> Result<usize, Refused> {
    let mut walk = Walk { bytes, at: 0, elements_left: elements_max, path: Vec::new(), visit };
    walk.structure()?;
    Ok(walk.at)
}

const BOOLEAN_TRUE: u8 = 1;
const BOOLEAN_FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const STRUCTURE: u8 = 12;

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    elements_left: usize,
    path: Vec<i16>,
    visit: &'a mut dyn FnMut(&Path, Found) -> Result<(), Refused>,
}

impl Walk<'_> {
    fn structure(&mut self) -> Result<(), Refused> {
        if self.path.len() >= limits::THRIFT_DEPTH_MAX {
            return Err("it nests deeper than a footer does");
        }
        let mut field: i16 = 0;
        loop {
            let head = self.byte()?;
            let kind = head & 0x0f;
            if kind == 0 {
                return Ok(());
            }
            field = match head >> 4 {
                0 => i16::try_from(self.number()?).map_err(|_| "a field has an absurd number")?,
                delta => field.checked_add(i16::from(delta)).ok_or("too many fields")?,
            };
            self.path.push(field);
            // In a field a boolean's value is its kind; in a list it is a byte.
            if kind != BOOLEAN_TRUE && kind != BOOLEAN_FALSE {
                self.value(kind)?;
            }
            self.path.pop();
        }
    }

    fn value(&mut self, kind: u8) -> Result<(), Refused> {
        match kind {
            BOOLEAN_TRUE | BOOLEAN_FALSE | BYTE => self.skip(1),
            I16 | I32 | I64 => {
                let number = self.number()?;
                (self.visit)(&self.path, Found::Number(number))
            }
            DOUBLE => self.skip(8),
            BINARY => {
                let length = self.unsigned()?;
                self.skip(usize::try_from(length).map_err(|_| ENDS)?)
            }
            LIST | SET => self.list(),
            STRUCTURE => self.structure(),
            // No structure of Parquet has a map or a UUID.
            _ => Err("it has a value of a kind that Parquet does not use"),
        }
    }

    fn list(&mut self) -> Result<(), Refused> {
        let head = self.byte()?;
        let kind = head & 0x0f;
        let count = match head >> 4 {
            15 => usize::try_from(self.unsigned()?).map_err(|_| ENDS)?,
            count => usize::from(count),
        };
        // Every element takes a byte at least.
        if count > self.bytes.len() - self.at {
            return Err("a list claims more elements than there are bytes");
        }
        self.elements_left =
            self.elements_left.checked_sub(count).ok_or("its lists have too many elements")?;
        (self.visit)(&self.path, Found::List(count))?;
        if kind == LIST || kind == SET {
            return Err("it has a list of lists, which Parquet does not use");
        }
        (0..count).try_for_each(|_| self.value(kind))
    }

    fn byte(&mut self) -> Result<u8, Refused> {
        let byte = *self.bytes.get(self.at).ok_or(ENDS)?;
        self.at += 1;
        Ok(byte)
    }

    fn skip(&mut self, count: usize) -> Result<(), Refused> {
        self.at = self.at.checked_add(count).filter(|at| *at <= self.bytes.len()).ok_or(ENDS)?;
        Ok(())
    }

    fn unsigned(&mut self) -> Result<u64, Refused> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number has too many digits")
    }

    /// Takes a number in zigzag form.
    fn number(&mut self) -> Result<i64, Refused> {
        let value = self.unsigned()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }
}

const ENDS: Refused = "it ends early";

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks what a walk finds, as (path, what).
    #[track_caller]
    fn check(bytes: &[u8], expected: Result<&[(&Path, Found)], Refused>) {
        let mut found = Vec::new();
        let walked = walk(bytes, 100, &mut |path, item| {
            found.push((path.to_vec(), item));
            Ok(())
        });
        let expected = expected.map(|items| {
            items.iter().map(|(path, item)| (path.to_vec(), *item)).collect::<Vec<_>>()
        });
        assert_eq!(walked.map(|_| found), expected, "{bytes:?}");
    }

    #[test]
    fn integers_and_lists_are_found_where_they_are() {
        check(&[0], Ok(&[]));
        check(&[0x15, 0x08, 0], Ok(&[(&[1], Found::Number(4))]));
        check(
            &[0x15, 0x07, 0x26, 0x80, 0x01, 0],
            Ok(&[(&[1], Found::Number(-4)), (&[3], Found::Number(64))]),
        );
        // A text, a boolean and a double are passed over.
        check(&[0x18, 2, b'h', b'i', 0x11, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0], Ok(&[]));
        check(
            &[0x19, 0x25, 2, 4, 0],
            Ok(&[(&[1], Found::List(2)), (&[1], Found::Number(1)), (&[1], Found::Number(2))]),
        );
        check(&[0x5c, 0x15, 6, 0, 0], Ok(&[(&[5, 1], Found::Number(3))]));
        check(&[0x05, 0x90, 0x03, 2, 0], Ok(&[(&[200], Found::Number(1))]));
    }

    #[test]
    fn what_claims_too_much_is_refused() {
        check(&[], Err(ENDS));
        check(&[0x18, 200], Err(ENDS));
        check(&[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], Err(ENDS));
        check(
            &[0x19, 0xfc, 0xff, 0xff, 0x03, 0],
            Err("a list claims more elements than there are bytes"),
        );
        check(
            &[&[0x19, 0xf3, 0x65], [0; 200].as_slice()].concat(),
            Err("its lists have too many elements"),
        );
        check(&[0x1c; 100_000], Err("it nests deeper than a footer does"));
        check(
            &[0x19, 0x19, 0x19, 0x19, 0],
            Err("it has a list of lists, which Parquet does not use"),
        );
        check(&[0x1b, 0, 0], Err("it has a value of a kind that Parquet does not use"));
        check(
            &[0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0],
            Err("a number has too many digits"),
        );
    }
}

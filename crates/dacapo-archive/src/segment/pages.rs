//! Pages, held against what they claim before the decoder gets them.
//!
//! Parquet's decoder of plain byte arrays believes that a page has as many values as its header
//! says, and that a dictionary came before what refers to it; it panics where that is not so.

use bytes::{Buf, Bytes};
use parquet::basic::Encoding;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};

/// Hands on the pages of another reader once they are found sound.
pub(crate) struct Sound<R> {
    pages: R,
    texts: bool,
    optional: bool,
    /// Whether the decoder has a dictionary, or can take one.
    dictionary: bool,
}

impl<R: PageReader> Sound<R> {
    /// Reads the pages of a column of texts (byte arrays) or numbers, which may be absent or not.
    pub(crate) fn new(pages: R, texts: bool, optional: bool) -> Self {
        Sound { pages, texts, optional, dictionary: false }
    }

    fn check(&mut self, page: &Page) -> Result<()> {
        match page {
            Page::DictionaryPage { .. } => self.dictionary = true,
            page if refers(page.encoding()) && !self.dictionary => {
                let problem = "a page refers to a dictionary that is not there".to_owned();
                return Err(ParquetError::General(problem));
            }
            _ => {}
        }
        if !self.texts {
            return Ok(());
        }
        let sound = match page {
            Page::DictionaryPage { buf, num_values, .. } => has_texts(buf.clone(), *num_values),
            Page::DataPage { buf, num_values, encoding: Encoding::PLAIN, .. } => {
                let mut texts = buf.clone();
                let there = if self.optional {
                    take_levels(&mut texts).map(|levels| ones(levels, *num_values))
                } else {
                    Some(*num_values as usize)
                };
                there
                    .is_some_and(|there| has_texts(texts, u32::try_from(there).unwrap_or(u32::MAX)))
            }
            _ => true,
        };
        if sound {
            Ok(())
        } else {
            Err(ParquetError::General("a page has fewer texts than it claims".to_owned()))
        }
    }
}

/// Returns whether values of this encoding are places in a dictionary.
fn refers(encoding: Encoding) -> bool {
    matches!(encoding, Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY)
}

/// Returns whether so many texts follow, each with its length (4 bytes, little-endian) before it.
fn has_texts(mut bytes: Bytes, count: u32) -> bool {
    (0..count).all(|_| {
        let Ok(length) = bytes.try_get_u32_le() else { return false };
        let fits = length as usize <= bytes.len();
        if fits {
            bytes.advance(length as usize);
        }
        fits
    })
}

/// Takes the levels before the values of a page, which have their length before them.
fn take_levels(bytes: &mut Bytes) -> Option<Bytes> {
    let length = bytes.try_get_u32_le().ok()? as usize;
    (length <= bytes.len()).then(|| bytes.split_to(length))
}

/// Returns how many of the first `count` levels of one bit are set (Parquet's "RLE/bit-packing
/// hybrid"); of levels that end early, those that are there.
fn ones(mut levels: Bytes, count: u32) -> usize {
    let (mut left, mut ones) = (count as usize, 0);
    while left > 0 {
        let Some(head) = take_variable(&mut levels) else { break };
        let length = usize::try_from(head >> 1).unwrap_or(usize::MAX);
        if head & 1 == 0 {
            let length = length.min(left);
            let Ok(level) = levels.try_get_u8() else { break };
            ones += if level & 1 == 1 { length } else { 0 };
            left -= length;
            continue;
        }
        for _ in 0..length {
            let Ok(eight) = levels.try_get_u8() else { return ones };
            let wanted = if left >= 8 { eight } else { eight & ((1 << left) - 1) };
            ones += wanted.count_ones() as usize;
            left = left.saturating_sub(8);
            if left == 0 {
                break;
            }
        }
    }
    ones
}

fn take_variable(bytes: &mut Bytes) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.try_get_u8().ok()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

impl<R: PageReader> Iterator for Sound<R> {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl<R: PageReader> PageReader for Sound<R> {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page {
            self.check(page)?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        // A dictionary that is skipped is put off: the decoder takes it when a page refers to it.
        if self.pages.peek_next_page()?.is_some_and(|page| page.is_dict) {
            self.dictionary = self.pages.supports_deferred_dictionary();
        }
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.pages.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>> {
        let page = self.pages.take_deferred_dictionary()?;
        if let Some(page) = &page {
            self.check(page)?;
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_counted() {
        let two = Bytes::from_static(&[1, 0, 0, 0, b'a', 0, 0, 0, 0]);
        assert!(has_texts(two.clone(), 2) && has_texts(two.clone(), 0));
        assert!(!has_texts(two.clone(), 3));
        assert!(!has_texts(two.slice(..8), 2));
        assert!(!has_texts(Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, b'a']), 1));
    }

    #[test]
    fn levels_are_counted_in_runs_and_packed() {
        // A run of 5 ones, then one of 3 zeros; then eight levels in a byte.
        let levels = Bytes::from_static(&[10, 1, 6, 0, 3, 0b0101_0101]);
        for (count, expected) in [(5, 5), (8, 5), (9, 6), (11, 7), (16, 9), (100, 9)] {
            assert_eq!(ones(levels.clone(), count), expected, "{count}");
        }
    }
}

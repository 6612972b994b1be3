//! A set of rows within one row group, as sorted ranges.

use std::ops::Range;

/// Rows of one row group: sorted, disjoint, non-empty ranges of row numbers from 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows(Vec<Range<usize>>);

impl Rows {
    /// Returns the first `count` rows.
    pub fn all(count: usize) -> Self {
        let mut rows = Rows::default();
        rows.extend_to(0..count);
        rows
    }

    /// Returns these row numbers, which must rise.
    pub fn from_sorted(numbers: impl IntoIterator<Item = usize>) -> Self {
        let mut rows = Rows::default();
        for number in numbers {
            rows.extend_to(number..number + 1);
        }
        rows
    }

    /// Adds a range that begins at or after the end of the last one.
    pub fn extend_to(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => self.0.push(range),
        }
    }

    /// Returns the rows that are in both.
    #[must_use]
    pub fn intersect(&self, other: &Rows) -> Rows {
        let mut both = Rows::default();
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            both.extend_to(x.start.max(y.start)..x.end.min(y.end));
            if x.end <= y.end {
                a.next();
            } else {
                b.next();
            }
        }
        both
    }

    /// Returns the ranges.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.0
    }

    /// Returns the row numbers, rising.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().flat_map(Clone::clone)
    }

    /// Returns how many rows there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(Range::len).sum()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether any row lies in `range`.
    pub fn touches(&self, range: &Range<usize>) -> bool {
        let after = self.0.partition_point(|rows| rows.end <= range.start);
        !range.is_empty() && self.0.get(after).is_some_and(|rows| rows.start < range.end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_are_a_set(a in proptest::collection::btree_set(0usize..60, 0..40),
                          b in proptest::collection::btree_set(0usize..60, 0..40),
                          range in (0usize..60, 0usize..60)) {
            let (x, y) = (Rows::from_sorted(a.iter().copied()), Rows::from_sorted(b.iter().copied()));
            prop_assert_eq!(x.len(), a.len());
            prop_assert!(x.ranges().windows(2).all(|w| w[0].end < w[1].start));
            let both: BTreeSet<usize> = x.intersect(&y).iter().collect();
            prop_assert_eq!(both, a.intersection(&b).copied().collect::<BTreeSet<_>>());
            let range = range.0..range.1;
            prop_assert_eq!(x.touches(&range), a.iter().any(|row| range.contains(row)));
        }
    }
}

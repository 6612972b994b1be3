//! AMQP field tables with the types that RabbitMQ accepts.
//!
//! Source: "AMQP 0-9-1 errata" of RabbitMQ, section 3 (field types as implemented).

use bytes::Bytes;

use crate::ShortStr;

/// A header table in the order that it had on the bus.
///
/// Equality is that of maps: RabbitMQ and its clients do not keep the order.
#[derive(Debug, Clone, Default)]
pub struct FieldTable(Vec<(ShortStr, FieldValue)>);

/// One value of a header table; the letter is RabbitMQ's type tag.
#[derive(Debug, Clone)]
pub enum FieldValue {
    /// `t`
    Boolean(bool),
    /// `b`
    ShortShortInt(i8),
    /// `B`
    ShortShortUInt(u8),
    /// `s`
    ShortInt(i16),
    /// `u`
    ShortUInt(u16),
    /// `I`
    LongInt(i32),
    /// `i`
    LongUInt(u32),
    /// `l`
    LongLongInt(i64),
    /// `f`
    Float(f32),
    /// `d`
    Double(f64),
    /// `D`: `value` divided by ten to the power of `scale`
    Decimal {
        /// Decimal places.
        scale: u8,
        /// The unscaled value.
        value: u32,
    },
    /// `S`: text or bytes
    LongString(Bytes),
    /// `A`
    Array(Vec<FieldValue>),
    /// `T`: seconds since 1970
    Timestamp(u64),
    /// `F`
    Table(FieldTable),
    /// `V`
    Void,
    /// `x`
    ByteArray(Bytes),
}

impl FieldTable {
    /// Returns an empty table.
    pub const fn new() -> Self {
        FieldTable(Vec::new())
    }

    /// Makes room for so many more fields.
    pub fn reserve(&mut self, more: usize) {
        self.0.reserve(more);
    }

    /// Returns the value of the first field of that name.
    pub fn get(&self, name: &str) -> Option<&FieldValue> {
        self.0.iter().find(|(field, _)| field.as_bytes() == name.as_bytes()).map(|(_, value)| value)
    }

    /// Sets a field, in place of an earlier one of that name.
    pub fn insert(&mut self, name: ShortStr, value: FieldValue) {
        match self.0.iter_mut().find(|(field, _)| *field == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// Adds a field whose name is known to be new; a repeat would shadow nothing and be sent twice.
    pub fn push(&mut self, name: ShortStr, value: FieldValue) {
        self.0.push((name, value));
    }

    /// Removes the fields of that name and returns the first one's value.
    pub fn remove(&mut self, name: &str) -> Option<FieldValue> {
        let mut removed = None;
        self.0.retain_mut(|(field, value)| {
            let keep = field.as_bytes() != name.as_bytes();
            if !keep && removed.is_none() {
                removed = Some(std::mem::replace(value, FieldValue::Void));
            }
            keep
        });
        removed
    }

    /// Returns the fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&ShortStr, &FieldValue)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// Returns how many fields there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no fields.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns roughly how many bytes its fields take in memory, which is not less than what they
    /// take when they are encoded.
    pub fn weight(&self) -> usize {
        let fields = self.iter().map(|(name, value)| name.as_bytes().len() + value.weight());
        self.len() * size_of::<(ShortStr, FieldValue)>() + fields.sum::<usize>()
    }
}

impl PartialEq for FieldTable {
    fn eq(&self, other: &Self) -> bool {
        fn sorted(table: &FieldTable) -> Vec<&(ShortStr, FieldValue)> {
            let mut fields: Vec<_> = table.0.iter().collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            fields
        }
        self.0.len() == other.0.len() && sorted(self) == sorted(other)
    }
}

impl FromIterator<(ShortStr, FieldValue)> for FieldTable {
    fn from_iter<I: IntoIterator<Item = (ShortStr, FieldValue)>>(fields: I) -> Self {
        FieldTable(fields.into_iter().collect())
    }
}

impl IntoIterator for FieldTable {
    type Item = (ShortStr, FieldValue);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl FieldValue {
    /// Returns a long string of this text.
    pub fn text(text: impl Into<String>) -> Self {
        FieldValue::LongString(Bytes::from(text.into()))
    }

    /// Returns the text of a long string, or nothing if it is another type or not UTF-8.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            FieldValue::LongString(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Returns roughly how many bytes it takes in memory beside itself.
    fn weight(&self) -> usize {
        match self {
            FieldValue::LongString(bytes) | FieldValue::ByteArray(bytes) => bytes.len(),
            FieldValue::Array(values) => {
                let within: usize = values.iter().map(FieldValue::weight).sum();
                values.len() * size_of::<FieldValue>() + within
            }
            FieldValue::Table(table) => table.weight(),
            _ => 0,
        }
    }

    /// Returns the value as a person would write it: text as it is, numbers in decimal,
    /// bytes that are not UTF-8 with U+FFFD, tables and arrays as JSON.
    pub fn to_text_lossy(&self) -> String {
        match self {
            FieldValue::LongString(bytes) | FieldValue::ByteArray(bytes) => {
                String::from_utf8_lossy(bytes).into_owned()
            }
            FieldValue::Void => String::new(),
            other => crate::ndjson::field_to_json(other).to_string(),
        }
    }
}

/// Floats are compared by their bits: a NaN that came back is the NaN that went in.
impl PartialEq for FieldValue {
    fn eq(&self, other: &Self) -> bool {
        use FieldValue as V;
        match (self, other) {
            (V::Boolean(a), V::Boolean(b)) => a == b,
            (V::ShortShortInt(a), V::ShortShortInt(b)) => a == b,
            (V::ShortShortUInt(a), V::ShortShortUInt(b)) => a == b,
            (V::ShortInt(a), V::ShortInt(b)) => a == b,
            (V::ShortUInt(a), V::ShortUInt(b)) => a == b,
            (V::LongInt(a), V::LongInt(b)) => a == b,
            (V::LongUInt(a), V::LongUInt(b)) => a == b,
            (V::LongLongInt(a), V::LongLongInt(b)) => a == b,
            (V::Float(a), V::Float(b)) => a.to_bits() == b.to_bits(),
            (V::Double(a), V::Double(b)) => a.to_bits() == b.to_bits(),
            (V::Decimal { scale: a, value: x }, V::Decimal { scale: b, value: y }) => {
                a == b && x == y
            }
            (V::LongString(a), V::LongString(b)) | (V::ByteArray(a), V::ByteArray(b)) => a == b,
            (V::Array(a), V::Array(b)) => a == b,
            (V::Timestamp(a), V::Timestamp(b)) => a == b,
            (V::Table(a), V::Table(b)) => a == b,
            (V::Void, V::Void) => true,
            _ => false,
        }
    }
}

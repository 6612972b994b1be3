//! Field tables from and to their bytes, names and strings as they are.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dacapo_event::wire::NESTING_MAX;
use dacapo_event::{FieldTable, FieldValue};

use super::Malformed;
use super::frame::{put_counted, put_long, put_short, take, take_long, take_short};

/// Returns the table whose fields these bytes are.
///
/// Tables and arrays below the depth that an archive can hold are kept as the bytes they were
/// ([`FieldValue::ByteArray`]): deeper ones would cost stack, and no program writes them.
pub(crate) fn decode(bytes: Bytes) -> Result<FieldTable, Malformed> {
    fields(bytes, 0)
}

fn fields(mut bytes: Bytes, depth: usize) -> Result<FieldTable, Malformed> {
    let mut table = FieldTable::new();
    while bytes.has_remaining() {
        let name = take_short(&mut bytes)?;
        table.push(name, value(&mut bytes, depth + 1)?);
    }
    Ok(table)
}

/// Takes one value; the tags are those that RabbitMQ reads, `U` and `L` as it reads them.
fn value(bytes: &mut Bytes, depth: usize) -> Result<FieldValue, Malformed> {
    // A table's own depth and that of its fields must both be within the limit.
    let too_deep = depth + 2 > NESTING_MAX;
    Ok(match bytes.try_get_u8()? {
        b't' => FieldValue::Boolean(bytes.try_get_u8()? != 0),
        b'b' => FieldValue::ShortShortInt(bytes.try_get_i8()?),
        b'B' => FieldValue::ShortShortUInt(bytes.try_get_u8()?),
        b's' | b'U' => FieldValue::ShortInt(bytes.try_get_i16()?),
        b'u' => FieldValue::ShortUInt(bytes.try_get_u16()?),
        b'I' => FieldValue::LongInt(bytes.try_get_i32()?),
        b'i' => FieldValue::LongUInt(bytes.try_get_u32()?),
        b'l' | b'L' => FieldValue::LongLongInt(bytes.try_get_i64()?),
        b'f' => FieldValue::Float(bytes.try_get_f32()?),
        b'd' => FieldValue::Double(bytes.try_get_f64()?),
        b'D' => FieldValue::Decimal { scale: bytes.try_get_u8()?, value: bytes.try_get_u32()? },
        b'S' => FieldValue::LongString(take_long(bytes)?),
        b'x' => FieldValue::ByteArray(take_long(bytes)?),
        b'T' => FieldValue::Timestamp(bytes.try_get_u64()?),
        b'V' => FieldValue::Void,
        b'A' | b'F' if too_deep => FieldValue::ByteArray(take_long(bytes)?),
        b'F' => FieldValue::Table(fields(take_long(bytes)?, depth + 1)?),
        b'A' => {
            let mut elements = take_long(bytes)?;
            let mut values = Vec::new();
            while elements.has_remaining() {
                values.push(value(&mut elements, depth + 1)?);
            }
            FieldValue::Array(values)
        }
        _ => return Err(Malformed),
    })
}

/// Writes a table with its length before it.
pub(crate) fn encode(to: &mut BytesMut, table: &FieldTable) {
    put_counted(to, |to| {
        for (name, value) in table.iter() {
            put_short(to, name.as_bytes());
            encode_value(to, value);
        }
    });
}

fn encode_value(to: &mut BytesMut, value: &FieldValue) {
    to.put_u8(tag(value));
    match value {
        FieldValue::Boolean(flag) => to.put_u8(u8::from(*flag)),
        FieldValue::ShortShortInt(n) => to.put_i8(*n),
        FieldValue::ShortShortUInt(n) => to.put_u8(*n),
        FieldValue::ShortInt(n) => to.put_i16(*n),
        FieldValue::ShortUInt(n) => to.put_u16(*n),
        FieldValue::LongInt(n) => to.put_i32(*n),
        FieldValue::LongUInt(n) => to.put_u32(*n),
        FieldValue::LongLongInt(n) => to.put_i64(*n),
        FieldValue::Float(x) => to.put_f32(*x),
        FieldValue::Double(x) => to.put_f64(*x),
        FieldValue::Decimal { scale, value } => {
            to.put_u8(*scale);
            to.put_u32(*value);
        }
        FieldValue::LongString(bytes) | FieldValue::ByteArray(bytes) => put_long(to, bytes),
        FieldValue::Timestamp(seconds) => to.put_u64(*seconds),
        FieldValue::Void => {}
        FieldValue::Table(table) => encode(to, table),
        FieldValue::Array(values) => {
            put_counted(to, |to| values.iter().for_each(|value| encode_value(to, value)));
        }
    }
}

fn tag(value: &FieldValue) -> u8 {
    match value {
        FieldValue::Boolean(_) => b't',
        FieldValue::ShortShortInt(_) => b'b',
        FieldValue::ShortShortUInt(_) => b'B',
        FieldValue::ShortInt(_) => b's',
        FieldValue::ShortUInt(_) => b'u',
        FieldValue::LongInt(_) => b'I',
        FieldValue::LongUInt(_) => b'i',
        FieldValue::LongLongInt(_) => b'l',
        FieldValue::Float(_) => b'f',
        FieldValue::Double(_) => b'd',
        FieldValue::Decimal { .. } => b'D',
        FieldValue::LongString(_) => b'S',
        FieldValue::Array(_) => b'A',
        FieldValue::Timestamp(_) => b'T',
        FieldValue::Table(_) => b'F',
        FieldValue::Void => b'V',
        FieldValue::ByteArray(_) => b'x',
    }
}

/// Returns whether every number in a table is one; Erlang has no others, and RabbitMQ closes the
/// connection over them.
pub(crate) fn is_finite(table: &FieldTable) -> bool {
    table.iter().all(|(_, value)| value_is_finite(value))
}

fn value_is_finite(value: &FieldValue) -> bool {
    match value {
        FieldValue::Float(x) => x.is_finite(),
        FieldValue::Double(x) => x.is_finite(),
        FieldValue::Table(table) => is_finite(table),
        FieldValue::Array(values) => values.iter().all(value_is_finite),
        _ => true,
    }
}

/// Returns how many bytes a table takes on the wire, its length included.
pub(crate) fn encoded_len(table: &FieldTable) -> usize {
    let fields = table.iter().map(|(name, value)| 1 + name.as_bytes().len() + value_len(value));
    4 + fields.sum::<usize>()
}

fn value_len(value: &FieldValue) -> usize {
    1 + match value {
        FieldValue::Boolean(_) | FieldValue::ShortShortInt(_) | FieldValue::ShortShortUInt(_) => 1,
        FieldValue::ShortInt(_) | FieldValue::ShortUInt(_) => 2,
        FieldValue::LongInt(_) | FieldValue::LongUInt(_) | FieldValue::Float(_) => 4,
        FieldValue::LongLongInt(_) | FieldValue::Double(_) | FieldValue::Timestamp(_) => 8,
        FieldValue::Decimal { .. } => 5,
        FieldValue::LongString(bytes) | FieldValue::ByteArray(bytes) => 4 + bytes.len(),
        FieldValue::Array(values) => 4 + values.iter().map(value_len).sum::<usize>(),
        FieldValue::Table(table) => encoded_len(table),
        FieldValue::Void => 0,
    }
}

/// Takes a table with its length before it.
pub(crate) fn take_table(from: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = from.try_get_u32()?;
    take(from, length as usize)
}
